"""ONNX's own node tests through the importer, counted per operator; writes docs/importer.md.

Run ``PYTHONPATH=tests/ops python benchmarks/conformance.py`` from the top of the repository; it takes about a minute.
A case counts for the operator of its last node; cases in which ONNX has expanded an operator into its function body are
counted apart.
"""

import argparse
import collections
import warnings
from collections.abc import Iterable
from pathlib import Path

import onnx
from onnx.backend.test import loader
from onnx.backend.test.case.test_case import TestCase
from test_node_conformance import cases, outcome

from onnxpq.ops.registry import registered

PEERS = (("onnx2torch 1.5.15", 253), ("onnx2fx 0.0.1", 874), ("onnx2pytorch 0.6.0", 918))
PEER_CASES = 1037

TEXT = """# Operators that the importer knows

Written by `benchmarks/conformance.py` with onnx {onnx}; not to be edited.

The importer knows {operators} operators in {versions} versions. Of the {all} node tests of ONNX, {passed} pass
({share:.1f} %). Without the cases in which ONNX expands an operator into its function body ("expanded": they test other
operators again), {plain_passed} of {plain} pass; and {usable_passed} of {usable} if 8-bit and smaller floats, 4-bit and
smaller integers, strings, images, random numbers, training and preview operators are left out as well.

Other importers were measured in 2026 on {peer_cases} of the cases of onnx 1.23.2, whose selection was not kept:
{peers}. None of the counts above is over exactly these cases.

A case that does not pass has an operator that the importer refuses by name, or is one of the exceptions in
`tests/ops/test_node_conformance.py`, which gives the reason.

| domain | operator | passed | all |
|---|---|---|---|
{rows}
"""

NOT_USABLE = (
    *("float8", "float4", "int4", "int2", "e4m3", "e5m2", "e8m0", "string", "strnorm", "regex", "image_decoder"),
    *("training", "adagrad", "adam", "momentum", "preview", "bernoulli", "random", "tfidf", "flex_attention"),
)


def is_usable(case: TestCase) -> bool:
    return not any(part in case.name.lower() for part in NOT_USABLE)


def is_expanded(case: TestCase) -> bool:
    return "_expanded" in case.name


def operator_of(case: TestCase) -> tuple[str, str]:
    node = case.model.graph.node[-1]
    return node.domain, node.op_type


def passed_names() -> set[str]:
    return {case.name for case in cases() if outcome(case) is None}


def count(passed: set[str], every: Iterable[TestCase]) -> tuple[int, int]:
    names = [case.name for case in every]
    return sum(name in passed for name in names), len(names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/importer.md"))
    output = parser.parse_args().output
    warnings.simplefilter("ignore")  # the generators of the cases overflow on purpose
    every = loader.load_model_tests(kind="node")
    passed = passed_names()
    plain = [case for case in every if not is_expanded(case)]
    table: dict[tuple[str, str], list[TestCase]] = collections.defaultdict(list)
    for case in plain:
        table[operator_of(case)].append(case)
    rows = []
    for (domain, op_type), group in sorted(table.items()):
        good, total = count(passed, group)
        rows.append(f"| {domain or 'ai.onnx'} | {op_type} | {good} | {total} |")
        print(f"{domain or 'ai.onnx'}::{op_type} {good}/{total}")
    good, total = count(passed, every)
    plain_good, plain_total = count(passed, plain)
    usable_good, usable_total = count(passed, filter(is_usable, plain))
    print(f"all {good}/{total}, not expanded {plain_good}/{plain_total}, usable {usable_good}/{usable_total}")
    output.parent.mkdir(exist_ok=True)
    known = registered()
    output.write_text(
        TEXT.format(
            onnx=onnx.__version__,
            operators=len({key[:2] for key in known}),
            versions=len(known),
            all=total,
            passed=good,
            share=100 * good / total,
            plain=plain_total,
            plain_passed=plain_good,
            usable=usable_total,
            usable_passed=usable_good,
            peer_cases=PEER_CASES,
            peers=", ".join(f"{name} {number}" for name, number in PEERS),
            rows="\n".join(rows),
        ),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
