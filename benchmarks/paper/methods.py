"""Every method, each from the ONNX file to the content of another one."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, cast

import torch
from torch import Tensor

from benchmarks.paper import ours, runtimes, terms
from benchmarks.paper.candidates import Candidate, Clusterer, choose
from benchmarks.paper.forms import FLOAT_BYTES, Coded, Dense, Form, Hashed, Sign
from benchmarks.paper.graph import Builder
from benchmarks.paper.tasks import Task
from benchmarks.paper.tuning import RATES, Effort, Student, tune

FACTORS: Final = (8.0, 16.0, 32.0, 64.0, 128.0)
"""How many times smaller the fully-connected layers are to be."""

MAIN_FACTORS: Final = (16.0, 64.0)
"""Those at which onnxpq is tried with every term, and the main methods with every seed."""

MAIN_SEEDS: Final = 3


@dataclass(frozen=True, eq=False)
class Made:
    """A compressed model.

    Attributes:
        model: the file's content.
        settings: in words.
        formula: the factor by the formula of Gong et al. (2014), where there is one for the method.
    """

    model: bytes
    settings: str
    formula: float | None = None


Make = Callable[[Task, float, int, Effort], Made | None]


@dataclass(frozen=True, eq=False)
class Method:
    """A method.

    Attributes:
        title: for tables.
        make: task, factor, seed, effort -> the compressed model; None where it cannot be so small.
        is_main: whether `MAIN_SEEDS` are run at `MAIN_FACTORS`; else, and elsewhere, one is.
        factors: at which it is run.
        trained: whether anything is trained.
    """

    title: str
    make: Make
    is_main: bool = False
    factors: tuple[float, ...] = FACTORS
    trained: bool = True

    def runs(self) -> Iterator[tuple[float, int]]:
        """Factors and seeds, all factors of a seed in a run: some methods have one training for all of them."""
        for seed in range(MAIN_SEEDS if self.is_main else 1):
            yield from ((factor, seed) for factor in self.factors if seed == 0 or factor in MAIN_FACTORS)


@lru_cache(maxsize=2)
def _clusterers(task: Task, seed: int) -> tuple[Clusterer, ...]:
    return tuple(Clusterer(task.matrix(layer), seed) for layer in task.layers)


def _chosen(task: Task, kind: str, factor: float, seed: int) -> list[Candidate] | None:
    return choose(_clusterers(task, seed), kind, task.weight_bytes / factor)


def _formula(task: Task, chosen: list[Candidate]) -> float | None:
    bits = [candidate.formula_bits for candidate in chosen if candidate.formula_bits is not None]
    return 8 * task.weight_bytes / sum(bits) if len(bits) == len(chosen) else None


def _forms(task: Task, chosen: list[Candidate]) -> dict[str, Form]:
    """By weight name: copies, as training changes them and other rows begin with the same ones."""
    return {layer.weight: copy.deepcopy(c.make()) for layer, c in zip(task.layers, chosen, strict=True)}


def _words(chosen: list[Candidate]) -> str:
    return "; ".join(candidate.settings for candidate in chosen)


def write(task: Task, forms: Mapping[str, Form], others: Mapping[str, Tensor] | None = None) -> bytes:
    """The file with forms in the place of weights, and new values for other constants."""
    builder = Builder(task.proto())
    layers = {layer.weight: layer for layer in task.chain}
    for name, form in forms.items():
        form.write(builder, layers[name])
    for name, value in (others or {}).items():
        builder.replace(name, value.detach().numpy())
    return builder.finish()


def _clustered(kind: str, *, tuned: bool) -> Make:
    """A method of `candidates.KINDS`, with or without fine-tuning of the numbers that it stores."""

    def make(task: Task, factor: float, seed: int, effort: Effort) -> Made | None:
        chosen = _chosen(task, kind, factor, seed)
        if chosen is None:
            return None
        content = _tuned(task, _forms(task, chosen), effort.tuned if tuned else 0, RATES[kind], seed)
        return Made(content, _words(chosen), _formula(task, chosen))

    return make


def _tuned(task: Task, forms: Mapping[str, Form], steps: int, rate: float, seed: int) -> bytes:
    if steps == 0:
        return write(task, forms)
    student = Student.of(task, forms)
    tune(student, steps, rate=rate, seed=seed)
    return write(task, forms, student.others)


def dense_tuned(task: Task, _factor: float, seed: int, effort: Effort) -> Made:
    """The weights themselves, trained on: what the training brings without compression."""
    return Made(_tuned(task, terms.dense(task), effort.tuned, RATES["dense"], seed), "float16")


def _signs(task: Task) -> dict[str, Form]:
    return {layer.weight: Sign(task.matrix(layer)) for layer in task.layers}


def _sign(*, tuned: bool) -> Make:
    def make(task: Task, _factor: float, seed: int, effort: Effort) -> Made:
        content = _tuned(task, _signs(task), effort.tuned if tuned else 0, RATES["sign"], seed)
        return Made(content, "1 bit, a scale per row")

    return make


def _hashed(task: Task, factor: float, seed: int) -> dict[str, Form]:
    forms: dict[str, Form] = {}
    for number, layer in enumerate(task.layers):
        count = max(1, int(layer.weight_bytes / factor / FLOAT_BYTES))
        shape = (layer.out_features, layer.in_features)
        forms[layer.weight] = Hashed.random(shape, count, 1000 * seed + number)
    return forms


def hashed(task: Task, factor: float, seed: int, effort: Effort) -> Made:
    """HashedNets: every layer has the same share of buckets; trained from random ones."""
    forms = _hashed(task, factor, seed)
    buckets = "; ".join(f"{form.parameters[0].numel()} buckets" for form in forms.values())
    student = Student.of(task, forms)
    tune(student, effort.scratch, rate=RATES["hashed"], seed=seed)
    return Made(write(task, forms, student.others), buckets)


def smaller(task: Task, factor: float, seed: int, effort: Effort) -> Made | None:
    """A dense network with narrower hidden layers, in float16, trained from random weights."""
    share = _largest_share(task, task.weight_bytes / factor)
    if share is None:
        return None
    generator = torch.Generator().manual_seed(seed)
    forms: dict[str, Form] = {}
    others = {}
    sizes = _sizes(task, share)
    for layer, (out, columns) in zip(task.chain, sizes, strict=True):
        forms[layer.weight] = Dense(torch.randn(out, columns, generator=generator) * (2 / columns) ** 0.5)
        if layer.bias is not None:
            others[layer.bias] = torch.zeros(out, requires_grad=True)
    student = Student(task, forms, others)
    tune(student, effort.scratch, rate=RATES["smaller"], seed=seed)
    hidden = "-".join(str(out) for out, _ in sizes[:-1])
    return Made(write(task, forms, others), f"hidden {hidden}")


def _sizes(task: Task, share: float) -> list[tuple[int, int]]:
    """(out, in) of all layers with the hidden ones narrowed to a share."""
    widths = [max(1, round(share * layer.out_features)) for layer in task.chain[:-1]]
    outs = [*widths, task.chain[-1].out_features]
    return list(zip(outs, [task.chain[0].in_features, *widths], strict=True))


def _largest_share(task: Task, budget: float) -> float | None:
    """The largest share at which the weights fit; layers that no method compresses count at what they take now."""
    left_alone = sum(layer.weight_bytes for layer in task.chain) - task.weight_bytes
    widest = max(layer.out_features for layer in task.chain[:-1])
    for width in range(widest, 0, -1):
        share = width / widest
        if sum(FLOAT_BYTES * out * columns for out, columns in _sizes(task, share)) <= budget + left_alone:
            return share
    return None


def codebooks_of(task: Task, factor: float, seed: int) -> dict[str, Coded] | None:
    """PQ alone at a factor, by weight name."""
    chosen = _chosen(task, "pq", factor, seed)
    return None if chosen is None else cast("dict[str, Coded]", _forms(task, chosen))


def _term(term: str) -> Make:
    """The term, then PQ with the settings that PQ alone has at the same factor."""

    def make(task: Task, factor: float, seed: int, effort: Effort) -> Made | None:
        chosen, coded = _chosen(task, "pq", factor, seed), codebooks_of(task, factor, seed)
        if chosen is None or coded is None:
            return None
        forms, biases = terms.then_pq(task, term, coded, steps=effort.tuned, seed=seed)
        return Made(write(task, forms, biases), _words(chosen), _formula(task, chosen))

    return make


def _onnxpq(regularizer: str | None) -> Make:
    def make(task: Task, factor: float, seed: int, effort: Effort) -> Made | None:
        found = ours.onnxpq(task, factor, seed, effort, regularizer=regularizer)
        return None if found is None else Made(*found)

    return make


def _runtime(bits: int) -> Make:
    def make(task: Task, _factor: float, _seed: int, _effort: Effort) -> Made:
        model = runtimes.int8(task) if bits == 8 else runtimes.few_bits(task, bits)
        return Made(model, "a scale per output" if bits == 8 else f"a scale per {runtimes.BLOCK} weights")

    return make


def _original(task: Task, _factor: float, _seed: int, _effort: Effort) -> Made:
    return Made(task.path.read_bytes(), "")


def _start(kind: str) -> Callable[[Task, float, int], dict[str, Form] | None]:
    def start(task: Task, factor: float, seed: int) -> dict[str, Form] | None:
        chosen = _chosen(task, kind, factor, seed)
        return None if chosen is None else _forms(task, chosen)

    return start


STARTS: Final[dict[str, Callable[[Task, float, int], dict[str, Form] | None]]] = {
    **{kind: _start(kind) for kind in ("svd", "kmeans", "residual", "pq")},
    "dense": lambda task, _factor, _seed: terms.dense(task),
    "sign": lambda task, _factor, _seed: _signs(task),
    "hashed": _hashed,
}
"""Where the training of a form begins, by kind: task, factor, seed -> forms by weight name."""

SCALAR: Final = (8.0, 16.0, 32.0)
"""A code per weight has at least a bit."""

METHODS: Final[dict[str, Method]] = {
    "original": Method("original", _original, factors=(1.0,), trained=False),
    "int8": Method("onnxruntime int8", _runtime(8), factors=(4.0,), trained=False),
    "int4": Method("onnxruntime 4 bit", _runtime(4), factors=(8.0,), trained=False),
    "int2": Method("onnxruntime 2 bit", _runtime(2), factors=(16.0,), trained=False),
    "svd": Method("truncated SVD", _clustered("svd", tuned=False), trained=False),
    "kmeans": Method("scalar k-means", _clustered("kmeans", tuned=False), factors=SCALAR, trained=False),
    "sign": Method("sign, scales", _sign(tuned=False), factors=(32.0,), trained=False),
    "residual": Method("residual VQ", _clustered("residual", tuned=False), trained=False),
    "pq": Method("PQ (Gong)", _clustered("pq", tuned=False), is_main=True, trained=False),
    "dense-tuned": Method("trained on, float16", dense_tuned, factors=(2.0,)),
    "svd-tuned": Method("truncated SVD, tuned", _clustered("svd", tuned=True)),
    "kmeans-tuned": Method("scalar k-means, tuned", _clustered("kmeans", tuned=True), factors=SCALAR),
    "sign-tuned": Method("sign, scales, tuned", _sign(tuned=True), factors=(32.0,)),
    "residual-tuned": Method("residual VQ, tuned", _clustered("residual", tuned=True)),
    "pq-tuned": Method("PQ (Gong), tuned", _clustered("pq", tuned=True)),
    "smaller": Method("smaller dense network", smaller),
    "hashed": Method("HashedNets", hashed, is_main=True),
    "none-pq": Method("trained on, then PQ", _term("none")),
    "murray-ng-pq": Method("murray-ng term, then PQ", _term("murray-ng")),
    "l1-pq": Method("l1 term, then PQ", _term("l1")),
    "l2-pq": Method("l2 term, then PQ", _term("l2")),
    "quartic-pq": Method("quartic term, then PQ", _term("quartic")),
    "codebook-pq": Method("codebook term, then PQ", _term("codebook"), is_main=True),
    "onnxpq": Method("onnxpq", _onnxpq(None), is_main=True),
    "onnxpq-none": Method("onnxpq, no term", _onnxpq("none"), factors=MAIN_FACTORS),
    "onnxpq-murray-ng": Method("onnxpq, murray-ng", _onnxpq("murray-ng"), factors=MAIN_FACTORS),
    "onnxpq-l1": Method("onnxpq, l1", _onnxpq("l1"), factors=MAIN_FACTORS),
    "onnxpq-l2": Method("onnxpq, l2", _onnxpq("l2"), factors=MAIN_FACTORS),
    "onnxpq-quartic": Method("onnxpq, quartic", _onnxpq("quartic"), factors=MAIN_FACTORS),
}
"""By the name that rows have; in the order in which they run."""
