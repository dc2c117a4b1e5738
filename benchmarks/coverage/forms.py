"""The forms in which exporters write a fully-connected layer, and what becomes of each; writes docs/forms.md.

    python -m benchmarks forms    # about a minute

The forms are those of tests/model_forms.py, compressed by plain product quantization.
"""

import argparse
from pathlib import Path

import onnxruntime
from form_checks import Outcome, outcome
from model_forms import FORMS, Form

from onnxpq.config.settings import PQConfig

SETTINGS = {"d = 8, K = 16": PQConfig(), "d = 4, K = 16": PQConfig(sub_vector=4)}

TEXT = """# Forms of a fully-connected layer

Written by `python -m benchmarks forms` with onnxruntime {onnxruntime}; not to be edited.

Each form is a small model (`tests/model_forms.py`), compressed by plain product quantization, without training, with
{settings}.

* Bytes are those of the whole file, before and after, with each setting; the function body that stock runtimes use
  takes 1,200 to 1,500 of them.
* The errors are relative L2 differences of the output to onnxruntime's with the decoded weights, at the first setting,
  on the function body ("stock") and on the operator library. They say that the rewritten model computes what it should,
  not how good the quantization is.
* "Trainable" says that a gradient reaches every weight.
* A model that computes in bfloat16 is compared with the same in float32, as onnxruntime has no MatMul of bfloat16 on a
  CPU.

The first twelve are the forms that other compressors were tried on.

| form | verdict | bytes before | after | stock error | library error | trainable |
|---|---|---|---|---|---|---|
{rows}
"""


def verdict(form: Form, found: Outcome) -> str:
    if not found.layers:
        return next(reason for reason in found.reasons if form.reason in reason)
    return "compressed" if len(found.layers) == 1 else f"compressed, {len(found.layers)} nodes"


def number(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}"


def row(name: str, form: Form) -> str:
    found = [outcome(form, pq) for pq in SETTINGS.values()]
    first = found[0]
    after = " / ".join(f"{entry.bytes_after:,}" for entry in found if entry.bytes_after is not None) or "-"
    errors = (number(first.stock_error), number(first.library_error))
    trainable = {True: "yes", False: "no", None: "-"}[first.trainable]
    cells = (name, verdict(form, first), f"{first.bytes_before:,}", after, *errors, trainable)
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/forms.md"))
    output = parser.parse_args().output
    rows = []
    for name, form in FORMS.items():
        rows.append(row(name, form))
        print(rows[-1])
    text = TEXT.format(onnxruntime=onnxruntime.__version__, settings=" and with ".join(SETTINGS), rows="\n".join(rows))
    output.write_text(text, encoding="utf-8")
