"""ONNX's own node tests through the importer, counted per operator; writes docs/importer.md.

    python -m benchmarks conformance    # about a minute

A case counts for the operator of its last node; cases in which ONNX has expanded an operator into its function body are
counted apart.
"""

import argparse
import collections
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import onnx
from onnx.backend.test import loader
from onnx.backend.test.case.test_case import TestCase
from test_node_conformance import cases, outcome

from benchmarks.peers.peers import RESULTS, is_expanded, sets
from onnxpq.network.ops.registry import registered

TEXT = """# Operators that the importer knows

Written by `python -m benchmarks conformance` with onnx {onnx}; not to be edited.

The importer knows {operators} operators in {versions} versions. Of the {all} node tests of ONNX, {passed} pass
({share:.1f} %). Without the cases in which ONNX expands an operator into its function body ("expanded": they test other
operators again), {plain_passed} of {plain} pass; and {usable_passed} of {usable} if 8-bit and smaller floats, 4-bit and
smaller integers, strings, images, random numbers, training and preview operators are left out as well.

Beside other importers, on the same cases with the same tolerances (`python -m benchmarks peers`, in an environment of
each):

| importer | all | not expanded | usable |
|---|---|---|---|
{beside}

A case that does not pass has an operator that the importer refuses by name, or is one of the exceptions in
`tests/network/ops/test_node_conformance.py`, which gives the reason.

| domain | operator | passed | all |
|---|---|---|---|
{rows}
"""


def operator_of(case: TestCase) -> tuple[str, str]:
    node = case.model.graph.node[-1]
    return node.domain, node.op_type


def passed_names() -> set[str]:
    return {case.name for case in cases() if outcome(case) is None}


def count(passed: set[str], every: Iterable[TestCase]) -> tuple[int, int]:
    names = [case.name for case in every]
    return sum(name in passed for name in names), len(names)


def beside(ours: Mapping[str, Sequence[int]]) -> str:
    """Our counts and those of the peers that were measured, as rows of a table."""
    stored = RESULTS.rows()
    rows = [("onnxpq", ours), *((f"{name} {row['version']}", row) for name, row in sorted(stored.items()))]
    other = [name for name, row in stored.items() if row["onnx"] != onnx.__version__]
    if other:
        raise SystemExit(f"{', '.join(other)} ran the cases of another onnx than {onnx.__version__}: run them again.")
    return "\n".join(
        f"| {name} | " + " | ".join(f"{row[part][0]} of {row[part][1]}" for part in ("all", "plain", "usable")) + " |"
        for name, row in rows
    )


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
    counts = {name: (len(passed.intersection(part)), len(part)) for name, part in sets(every).items()}
    (good, total), (plain_good, plain_total), (usable_good, usable_total) = counts.values()
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
            beside=beside(counts),
            rows="\n".join(rows),
        ),
        encoding="utf-8",
    )
