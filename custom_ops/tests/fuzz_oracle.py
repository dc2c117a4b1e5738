"""What must come out of a case of the fuzzer: written from the operator's description, not from its C++ code."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from fuzz_cases import CONSTANTS, FLOATS, Case
from fuzz_models import Tensors
from numpy.typing import NDArray

from onnxpq.operators.schema import block_outputs, codes_per_byte
from onnxpq.pq.packing import unpack_codes
from onnxpq.pq.reference import group_of, pq_matmul_tables

X_TYPES = ("FLOAT", "FLOAT16")
LAYOUTS = {"codebooks": "[R, G, K, d]", "codes": "[B, R*M, 16]", "scales": "[out]", "bias": "[out]"}


def operator_of(case: Case) -> str:
    """What the operator's sentences begin with."""
    return f"onnxpq::{case.op_type} node 'fc': "


def sentences(case: Case, tensors: Tensors) -> list[re.Pattern[str]]:
    """The errors that a case may end in, any of them; none: it must end in an answer."""
    by_onnxruntime = list(_of_onnxruntime(case, tensors))
    by_operator = [re.compile(re.escape(operator_of(case) + text)) for text in _of_operator(case, tensors)]
    return [re.compile(text) for text in by_onnxruntime] + by_operator


def _of_onnxruntime(case: Case, tensors: Tensors) -> Iterator[str]:
    """What onnxruntime refuses before the operator sees it."""
    if case.inputs != "all":
        yield r"\(fc\).*has input size \d not in range|input .* is marked single but has an empty string"
    if case.damages:
        yield "."  # how onnxruntime calls a tensor that contradicts itself is its own affair
    if any(not name for name, _ in case.attributes):
        yield "Field 'name' of 'attr' is required to be non-empty"
    mistyped = [name for name in FLOATS if tensors.types[name] == "COMPLEX64"]  # the only one that it does not know
    mistyped += ["X"] * (case.x_type not in X_TYPES) + ["codes"] * (tensors.types["codes"] != "UINT8")
    for name in mistyped:
        yield rf"Type 'tensor\(\w+\)' of input parameter \({name}\) of operator \({case.op_type}\) in node \(fc\)"
    if case.declared in {"other size", "other rank"}:
        yield "Got invalid dimensions for input|Invalid rank for input|Invalid input shape"


def _of_operator(case: Case, tensors: Tensors) -> Iterator[str]:
    places = dict(case.places)
    for name in CONSTANTS:
        place = places.get(name)
        if place in {"overridable", "graph input", "computed"} or (place == "identity" and case.level == "off"):
            yield f"input '{name}' is computed when the model runs, or may be replaced by a graph input"
    if case.fast_kind != "int":
        yield "attribute 'fast' is no integer; expected 0 or 1."
    elif case.fast not in {0, 1}:
        yield f"attribute 'fast' is {case.fast}; expected 0 or 1."
    problems = list(_of_constants(case, tensors))
    yield from problems
    if not problems:
        yield from _of_x(tensors)


def _of_constants(case: Case, tensors: Tensors) -> Iterator[str]:
    for name in FLOATS:
        expected = ["INT8", *X_TYPES] if name == "codebooks" else X_TYPES
        if tensors.types[name] not in expected:
            called = {"UINT8": "uint8", "INT8": "int8"}.get(tensors.types[name], "of another type")
            names = "int8, float16 or float32" if name == "codebooks" else "float16 or float32"
            yield f"input '{name}' is {called}; expected {names}."
    shapes = {name: list(tensors.constants[name].shape) for name in CONSTANTS}
    wrong = [n for n in CONSTANTS if len(shapes[n]) != LAYOUTS[n].count(",") + 1 or 0 in shapes[n]]
    for name in wrong:
        yield f"input '{name}' has shape {shapes[name]}; expected {LAYOUTS[name]}, no size zero."
    if not {"scales", "bias"} & set(wrong) and shapes["bias"] != shapes["scales"]:
        yield f"input 'bias' has shape {shapes['bias']}; expected {shapes['scales']}, the shape of 'scales'."
    codewords = shapes["codebooks"][2] if "codebooks" not in wrong else 2
    if not 2 <= codewords <= 256:
        yield f"input 'codebooks' has shape {shapes['codebooks']}, {codewords} codewords; expected 2 to 256."
    if case.fast == 1 and case.fast_kind == "int" and 16 < codewords <= 256:
        yield f"attribute 'fast' is 1 with {codewords} codewords; expected 0 where"
    if 2 <= codewords <= 256 and not wrong:
        yield from _of_codes(tensors.constants["codes"], shapes, codewords)


def _of_codes(codes: NDArray[Any], shapes: dict[str, list[int]], codewords: int) -> Iterator[str]:
    stages, groups = shapes["codebooks"][:2]
    out, (blocks, units, unit_bytes) = shapes["scales"][0], shapes["codes"]
    expected_blocks = -(-out // block_outputs(codewords))
    if blocks != expected_blocks or unit_bytes != 16 or units % stages:
        yield (
            f"input 'codes' has shape {shapes['codes']}; expected [{expected_blocks}, a multiple of {stages}, 16] for"
            f" {out} outputs (the size of 'scales'), {codewords} codewords and {stages} stages."
        )
        return
    if groups > units // stages:
        yield (
            f"input 'codebooks' has shape {shapes['codebooks']}, {groups} groups; expected at most one for each of the"
            f" {units // stages} sub-vectors that 'codes' {shapes['codes']} has."
        )
    yield from _of_code_values(codes, codewords)


def _of_code_values(codes: NDArray[Any], codewords: int) -> Iterator[str]:
    flat = codes.reshape(-1).astype(np.int64)
    values = flat if codes_per_byte(codewords) == 1 else np.maximum(flat % 16, flat // 16)
    bad = np.flatnonzero(values >= codewords)
    if bad.size:
        yield (
            f"input 'codes' holds the code {values[bad[0]]} in byte {bad[0]}, past the end of its codebook; expected"
            f" codes below {codewords}."
        )


def _of_x(tensors: Tensors) -> Iterator[str]:
    stages, _, _, d = tensors.constants["codebooks"].shape
    sub_vectors = tensors.constants["codes"].shape[1] // stages
    least, most = (sub_vectors - 1) * d + 1, sub_vectors * d
    if tensors.x.ndim == 0 or not least <= tensors.x.shape[-1] <= most:
        yield (
            f"input 'X' has shape {list(tensors.x.shape)}; expected [..., in] with in from {least} to {most}, as the"
            " codes and codebooks have it."
        )


def right_answer(case: Case, tensors: Tensors) -> NDArray[Any]:
    """Y, bit for bit, of a case that nothing is wrong with."""
    codebooks, packed, scales, bias = (tensors.constants[name] for name in CONSTANTS)
    codes = unpack_codes(packed, len(scales), codebooks.shape[0], codebooks.shape[2])
    x = tensors.x.reshape(-1, tensors.x.shape[-1]).astype(np.float32)
    if codes_per_byte(codebooks.shape[2]) == 2:
        y = pq_matmul_tables(x, codebooks, codes, scales, bias, fast=bool(case.fast))
    else:
        y = _float32_sums(x, codebooks, codes, scales, bias)
    with np.errstate(over="ignore"):
        return y.reshape(*tensors.x.shape[:-1], len(scales)).astype(tensors.x.dtype)


@np.errstate(all="ignore")
def _float32_sums(
    x: NDArray[Any], codebooks: NDArray[Any], codes: NDArray[np.uint8], scales: NDArray[Any], bias: NDArray[Any]
) -> NDArray[np.float32]:
    """K > 16: a sub-vector's products with its codeword summed in order, these sums in order, all in float32."""
    out, stages, sub_vectors = codes.shape
    _, groups, _, d = codebooks.shape
    wide = codebooks.astype(np.float32)
    total = np.zeros((len(x), out), np.float32)
    for r in range(stages):
        for m in range(sub_vectors):
            codewords = wide[r, group_of(m, groups, sub_vectors)][codes[:, r, m]].T  # [d, out]
            entry = np.zeros_like(total)
            for i in range(min(d, x.shape[1] - m * d)):
                entry += x[:, m * d + i, None] * codewords[i]
            total += entry
    return total * scales.astype(np.float32) + bias.astype(np.float32)
