"""What the fuzzer tries: a `Case` says all of it in plain values; `cases` draws them."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from pq_layers import PQLayer, random_layer

from onnxpq.operators.schema import ATTR_FIRST, ATTR_SHAPE, INPUTS, MATMUL_OP_TYPES, OP_TYPE

CONSTANTS = INPUTS[1:]
FLOATS = ("codebooks", "scales", "bias")

ELEMENT_TYPES = [
    *("FLOAT16", "FLOAT", "DOUBLE", "BFLOAT16", "FLOAT8E4M3FN", "INT8", "UINT8", "INT16", "UINT16", "INT32", "UINT32"),
    *("INT64", "UINT64", "BOOL", "STRING", "INT4", "UINT4", "COMPLEX64"),
]
PLACES = ["initializer", "typed", "external", "constant node", "identity", "overridable", "graph input", "computed"]
DAMAGES = [
    *("short", "long", "empty", "negative size", "huge size", "overflowing sizes", "type 0", "type 99"),
    *("external past the end", "external file missing", "external far offset"),
]
MAX_ELEMENTS = 1 << 18
SPECIALS = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 1e-30, 3e38, -3e38, 65504.0, 6e-8]
"""Overwritten at random places; what a type cannot hold becomes an infinity or zero."""


@dataclass(frozen=True)
class Case:
    """A model of one node and a batch for it. Lists of pairs name a constant input first."""

    seed: int
    out: int
    in_features: int
    d: int
    codewords: int
    groups: int
    stages: int
    codebook_type: str = "float16"
    scale_type: str = "float32"
    leading: tuple[int, ...] = (2,)
    x_more: int = 0  # features of X beyond in_features
    x_scalar: bool = False
    x_type: str = "FLOAT"
    declared: str = "names"
    level: str = "all"
    threads: int = 1
    body: bool = False
    nested: str = ""  # in a branch of an If, with the constants "inside" or "outside"
    inputs: str = "all"
    op_type: str = OP_TYPE
    fast: int = 0  # the attribute
    fast_kind: str = "int"
    attributes: tuple[tuple[str, str], ...] = ()
    specials: tuple[tuple[str, int, int], ...] = ()  # tensor (or X), index into SPECIALS, how many
    flips: tuple[tuple[str, int], ...] = ()  # tensor, bit
    nudges: tuple[tuple[str, tuple[int, int]], ...] = ()  # tensor; axis, how much longer
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    types: tuple[tuple[str, str], ...] = ()
    places: tuple[tuple[str, str], ...] = ()
    damages: tuple[tuple[str, str], ...] = ()

    def layer(self) -> PQLayer:
        """The layer before anything was done to it."""
        return random_layer(
            self.seed,
            self.out,
            self.in_features,
            d=self.d,
            codewords=self.codewords,
            groups=self.groups,
            stages=self.stages,
            codebook_type=np.dtype(self.codebook_type).type,
            scale_type=np.dtype(self.scale_type).type,
        )

    def json(self) -> dict[str, Any]:
        """As plain values, without those that are the default."""
        default = asdict(Case(0, 0, 0, 0, 0, 0, 0))
        return {name: value for name, value in asdict(self).items() if name in NUMBERS or value != default[name]}


NUMBERS = ("seed", "out", "in_features", "d", "codewords", "groups", "stages")


def case_of_json(values: dict[str, Any]) -> Case:
    """Inverse of `Case.json`."""
    return Case(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _pairs(first: Any, second: Any, most: int) -> st.SearchStrategy[tuple[tuple[str, Any], ...]]:
    """Up to `most` pairs, each name once."""
    return st.lists(st.tuples(first, second), min_size=1, max_size=most, unique_by=lambda p: p[0]).map(tuple)


_CONSTANT = st.sampled_from(CONSTANTS)
_SIZE = st.one_of(st.integers(0, 3), st.sampled_from([4, 5, 15, 16, 17, 32, 33, 255, 256, 257, 300]))
_SHAPE = st.lists(_SIZE, max_size=5).map(tuple).filter(lambda shape: math.prod(shape) <= MAX_ELEMENTS)

_TWISTS: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "specials": st.lists(
        st.tuples(
            st.sampled_from(("X", *FLOATS)),
            st.integers(0, len(SPECIALS) - 1),
            st.one_of(st.integers(1, 3), st.integers(1, 400)),
        ),
        min_size=1,
        max_size=3,
    ).map(lambda v: {"specials": tuple(v)}),
    "flips": st.lists(st.tuples(_CONSTANT, st.integers(0, 1 << 16)), min_size=1, max_size=8).map(
        lambda v: {"flips": tuple(v)}
    ),
    "shapes": _pairs(_CONSTANT, _SHAPE, 2).map(lambda v: {"shapes": v}),
    "types": _pairs(_CONSTANT, st.sampled_from(ELEMENT_TYPES), 2).map(lambda v: {"types": v}),
    "places": _pairs(_CONSTANT, st.sampled_from(PLACES), 4).map(lambda v: {"places": v}),
    "damages": _pairs(_CONSTANT, st.sampled_from(DAMAGES), 1).map(lambda v: {"damages": v}),
    "nudges": _pairs(_CONSTANT, st.tuples(st.integers(0, 3), st.sampled_from([-1, 1, -2, 2])), 2).map(
        lambda v: {"nudges": v}
    ),
    "x_more": st.integers(-9, 9).map(lambda v: {"x_more": v}),
    "x_type": st.sampled_from(["FLOAT16", "FLOAT16", "FLOAT16", "DOUBLE", "INT64", "BFLOAT16"]).map(
        lambda v: {"x_type": v}
    ),
    "declared": st.sampled_from(["exact", "unnamed", "no rank", "other size", "other rank"]).map(
        lambda v: {"declared": v}
    ),
    "leading": st.lists(st.integers(0, 3), max_size=4).map(lambda v: {"leading": tuple(v)}),
    "rows": st.integers(3, 90).map(lambda v: {"leading": (v,)}),
    "scalar": st.just({"x_scalar": True, "leading": ()}),
    "inputs": st.sampled_from(["four", "six", "none", *(f"no {name}" for name in INPUTS)]).map(lambda v: {"inputs": v}),
    "attributes": _pairs(
        st.sampled_from([ATTR_SHAPE, ATTR_FIRST, "nonsense", ""]),
        st.sampled_from(["int", "float", "string", "ints", "tensor"]),
        3,
    ).map(lambda v: {"attributes": v}),
    "fast": st.sampled_from([1, 1, 1, 2, -1, 2**62]).map(lambda v: {"fast": v}),
    "fast_kind": st.sampled_from(["float", "string", "ints", "tensor"]).map(lambda v: {"fast_kind": v}),
    "level": st.sampled_from(["off", "basic"]).map(lambda v: {"level": v}),
    "threads": st.just({"threads": 2}),
    "body": st.just({"body": True}),
    "op_type": st.sampled_from(MATMUL_OP_TYPES).map(lambda v: {"op_type": v}),
    "nested": st.sampled_from(["inside", "outside"]).map(lambda v: {"nested": v}),
}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A valid layer, and up to four twists; about half of them are harmless."""
    large = draw(st.integers(0, 19)) == 0
    in_features = draw(st.integers(1, 700 if large else 40))
    d = draw(st.integers(1, 9))
    sub_vectors = -(-in_features // d)
    values: dict[str, Any] = {
        "seed": draw(st.integers(0, 2**32 - 1)),
        "out": draw(st.integers(1, 400 if large else 70)),
        "in_features": in_features,
        "d": d,
        "codewords": draw(st.one_of(st.integers(2, 16), st.just(16), st.integers(2, 256), st.just(256))),
        "groups": draw(st.one_of(st.just(sub_vectors), st.just(1), st.integers(1, sub_vectors))),
        "stages": draw(st.sampled_from([1, 1, 1, 2, 3])),
        "codebook_type": draw(st.sampled_from(["float16", "float32", "int8"])),
        "scale_type": draw(st.sampled_from(["float16", "float32"])),
    }
    for twist in draw(st.lists(st.sampled_from([*sorted(_TWISTS), *["nudges"] * 3]), max_size=4)):
        values |= draw(_TWISTS[twist])
    return Case(**_reconciled(values))


def _reconciled(values: dict[str, Any]) -> dict[str, Any]:
    """Twists that would hide one another, or that onnxruntime's checker of functions sees first, give way."""
    if values.get("x_scalar"):
        values["leading"] = ()
    if values.keys() & {"attributes", "inputs", "types", "x_type", "damages", "fast_kind"}:
        values.pop("body", None)
    if "damages" in values:
        ((name, damage),) = values["damages"]
        kept = tuple(place for place in values.get("places", ()) if place[0] != name)
        values["places"] = (*kept, (name, "external")) if damage.startswith("external") else kept
    strings = {name for name, kind in values.get("types", ()) if kind == "STRING"}
    if strings or values.get("nested"):
        simple = ("initializer", "constant node", "identity", "overridable")
        values["places"] = tuple(
            (name, place) for name, place in values.get("places", ()) if place in simple and name not in strings
        )
        if values.get("nested"):
            values["places"] = ()
            values["damages"] = tuple(d for d in values.get("damages", ()) if not d[1].startswith("external"))
    return values
