"""What the models of `python -m benchmarks accuracy` are for, as figures: each task measures a model file on test data.

A task runs the original once and keeps what it gives in the folder of the data; then `measure` tells, for any model
file with the same inputs and outputs, the relative L2 error of the output and the figures of the task (shares in
[0, 1]; more is better, but for `wrong`). A compressed model runs on the operator library.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from onnxpq import runtime

Arrays = Mapping[str, NDArray[Any]]
Figures = dict[str, float]

REGULARIZATION: Final = 0.1
"""C of the logistic regression on embeddings."""

ALL_TEXTS: Final = ("train", "test", "documents")
"""Sets of texts that are embedded; the first only to fit a regression."""


@dataclass(frozen=True)
class Task:
    """How a model is judged.

    Attributes:
        figures: (data, expected output, found output, model file) -> figures by name; `expected` is the original's.
        output: name of the output that is looked at.
        key: the figure that stands for the task.
        data: file in the folder.
        batch: samples of a call.
        embeds: the model is run on several sets of word pieces, not on one set of inputs.
    """

    figures: Callable[[Arrays, Any, Any, Path], Figures]
    output: str
    key: str
    data: str = "test.npz"
    batch: int = 64
    embeds: bool = False


def measure(name: str, folder: Path, model: Path, *, refit: bool = False) -> Figures:
    """`relative_error` and the figures of a task for one model file.

    Args:
        name: key of `TASKS`.
        folder: with the original `model.onnx` and the task's data.
        model: the file to judge; may be the original.
        refit: for embeddings, also fit the regression to the model's own; it takes five times as long.
    """
    task = TASKS[name]
    with np.load(folder / task.data) as arrays:
        data = dict(arrays)
    expected = _original(task, folder, data)
    found = expected if model == folder / "model.onnx" else _outputs(task, model, data, ALL_TEXTS[not refit :])
    sets = ("test",) if task.embeds else ("",)
    missed = sum(float(np.square(found[part] - expected[part], dtype=np.float64).sum()) for part in sets)
    whole = sum(float(np.square(expected[part], dtype=np.float64).sum()) for part in sets)
    return {"relative_error": (missed / whole) ** 0.5, **task.figures(data, expected, found, model)}


def _original(task: Task, folder: Path, data: Arrays) -> dict[str, NDArray[np.float32]]:
    kept = folder / "original_outputs.npz"
    if not kept.exists():
        unfinished = kept.with_name("unfinished.npz")
        # "data" stands for the empty name, which no file in an archive can have.
        np.savez(
            unfinished,
            **{part or "data": array for part, array in _outputs(task, folder / "model.onnx", data, ALL_TEXTS).items()},
        )
        unfinished.replace(kept)
    with np.load(kept) as arrays:
        return {"" if part == "data" else part: arrays[part] for part in arrays.files}


def _outputs(task: Task, model: Path, data: Arrays, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """The output for each set of samples: the embedded `texts` by name, or all under the empty name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Nothing is timed here, and waiting threads would take the processor from a training beside it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = runtime.session(model, options=options)
    names = [entry.name for entry in session.get_inputs()]
    if not task.embeds:
        parts = (
            runtime.run(session, {name: data[name][start : start + task.batch] for name in names})[task.output]
            for start in range(0, len(data[names[0]]), task.batch)
        )
        return {"": np.concatenate(list(parts))}
    return {part: _embeddings(session, {name: data[f"{part}_{name}"] for name in names}, task) for part in texts}


def _embeddings(session: onnxruntime.InferenceSession, texts: Arrays, task: Task) -> NDArray[np.float32]:
    """Texts of about the same length are run together, without the padding that all of them have."""
    lengths = texts["attention_mask"].sum(1)
    order = np.argsort(lengths, kind="stable")
    found: NDArray[np.float32] | None = None
    for start in range(0, len(order), task.batch):
        rows = order[start : start + task.batch]
        part = {name: array[rows, : lengths[rows].max()] for name, array in texts.items()}
        embedded = runtime.run(session, part)[task.output]
        found = np.empty((len(order), embedded.shape[1]), np.float32) if found is None else found
        found[rows] = embedded
    assert found is not None  # noqa: S101 -- there are texts
    return found


def images(data: Arrays, _: Any, found: Any, __: Path) -> Figures:
    """Handwritten digits: the share that is wrong."""
    return {"wrong": float(np.mean(found[""].argmax(1) != data["y"]))}


def file_types(data: Arrays, expected: Any, found: Any, _: Path) -> Figures:
    """Types of files: accuracy by extension, and the share that has the original's type."""
    types = found[""].argmax(1)
    return {
        "accuracy": float(np.mean(types == data["label"])),
        "agreement": float(np.mean(types == expected[""].argmax(1))),
    }


def sentences(data: Arrays, expected: Any, found: Any, _: Path) -> Figures:
    """Embeddings: whether a review praises, and how alike documents are.

    `reviews` is the accuracy of the logistic regression that was fitted to the original's embeddings of the training
    reviews, as for a user who puts the small model in the place of the original; `reviews_refitted` that of one fitted
    to the model's own. `lee` is Pearson's correlation of the cosines of 1225 pairs of documents with how alike people
    found them.
    """
    first, second = np.triu_indices(len(data["similarity"]), 1)
    unit = found["documents"] / np.linalg.norm(found["documents"], axis=1, keepdims=True)
    cosines, people = (unit @ unit.T)[first, second], data["similarity"][first, second]
    fitted_to = {"reviews": expected, **({"reviews_refitted": found} if "train" in found else {})}
    accuracies = {
        key: LogisticRegression(C=REGULARIZATION, max_iter=5000)
        .fit(embedded["train"], data["train_label"])
        .score(found["test"], data["test_label"])
        for key, embedded in fitted_to.items()
    }
    return {**accuracies, "lee": float(np.corrcoef(cosines, people)[0, 1])}


def lines_of_text(data: Arrays, _: Any, found: Any, model: Path) -> Figures:
    """Lines of text: the share read exactly, and of characters (1 - edit distance / length)."""
    alphabet = characters(model)
    read = [greedy_text(scores, alphabet) for scores in found[""]]
    texts = [str(text) for text in data["text"]]
    wrong = sum(edit_distance(a, b) for a, b in zip(read, texts, strict=True))
    return {
        "characters": 1 - wrong / sum(map(len, texts)),
        "exact": float(np.mean([a == b for a, b in zip(read, texts, strict=True)])),
    }


def characters(model: Path) -> list[str]:
    """What each column of a recognition model means, by its own metadata: a blank, its characters, a space."""
    entries = {entry.key: entry.value for entry in onnx.load(model, load_external_data=False).metadata_props}
    return ["", *entries["character"].split("\n"), " "]


def greedy_text(scores: NDArray[np.float32], alphabet: Sequence[str]) -> str:
    """Best path of connectionist temporal classification (Graves et al. 2006): repetitions first, then blanks go.

    Args:
        scores: [steps, columns].
        alphabet: text of each column; the blank's is empty.
    """
    best = scores.argmax(1)
    changed = np.diff(best, prepend=-1) != 0
    return "".join(alphabet[column] for column in best[changed])


def edit_distance(one: str, other: str) -> int:
    """Fewest insertions, deletions and substitutions (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        row = list(_next_row(row, i, a, other))
    return row[-1]


def _next_row(above: list[int], i: int, a: str, other: str) -> Iterator[int]:
    left = i
    yield left
    for j, b in enumerate(other):
        left = min(left + 1, above[j + 1] + 1, above[j] + (a != b))
        yield left


TASKS: Final = {
    "mnist_mlp": Task(images, "logits", "wrong", batch=500),
    "mnist_lenet": Task(images, "logits", "wrong", batch=500),
    "minilm": Task(sentences, "461", "reviews", data="task.npz", embeds=True),
    "magika": Task(file_types, "target_label", "accuracy", batch=16),
    "rapidocr": Task(lines_of_text, "softmax_11.tmp_0", "characters", batch=16),
}
