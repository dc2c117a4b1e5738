"""Who may import whom (DESIGN.md, section 1), read off the source; and what `import onnxpq` loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "onnxpq"

LEAVES = {"errors", "opschema", "layers", "figures", "targetreport", "report"}
LIBRARY = LEAVES | {
    "constants",
    "einsum",
    "graphs",
    "preparing",
    "config",
    "data",
    "modelio",
    "modelproto",
    "mapped",
    "function_body",
    "pq",
    "metrics",
}
STAGES = {"importing", "finetuning", "quantization", "rewriting", "verification"}

ALLOWED = {
    "errors": set(),
    "opschema": set(),
    "layers": set(),
    "constants": set(),
    "graphs": set(),
    "writing": {"errors"},
    "memory": set(),
    "einsum": {"constants", "graphs"},
    "preparing": {"einsum", "errors", "opschema"},
    "figures": set(),
    "targetreport": {"figures"},
    "report": {"figures", "targetreport"},
    "checks": {"errors"},
    "units": {"errors"},
    "targetconfig": {"checks", "errors"},
    "pq": {"errors", "opschema"},
    "config": {"checks", "errors", "opschema", "targetconfig", "units"},
    "data": {"errors"},
    "metrics": {"errors", "figures", "report"},
    "modelproto": {"errors"},
    "mapped": {"memory", "modelproto"},
    "modelio": {"errors", "mapped", "modelproto", "writing"},
    "function_body": {"opschema", "errors"},
    "allocation": {"config", "errors", "layers", "pq"},
    "knapsack": {"errors"},
    "scoring": {"data", "errors", "figures", "metrics", "runtime"},
    "sensitivity": {"activations", "data", "graphs", "layers", "partition", "pq", "runtime"},
    "ordering": {"allocation", "config", "layers", "modelio", "pq", "quantization", "rules"},
    "powerlaw": set(),
    "targets": {"errors", "knapsack", "powerlaw", "pq", "scoring", "sensitivity", "targetconfig", "targetreport"},
    "lookups": {
        "activations",
        "calibration",
        "checkpoints",
        "data",
        "device",
        "errors",
        "layers",
        "partition",
        "pq",
        "routing",
        "runtime",
        "schedule",
        "workspace",
    },
    "subject": {"calibration", "data", "layers", "lookups", "modelio", "sampling"},
    "targeting": LEAVES
    | {
        "allocation",
        "calibration",
        "checkpoints",
        "config",
        "data",
        "memory",
        "modelio",
        "pq",
        "quantization",
        "rewriting",
        "runtime",
        "scoring",
        "sensitivity",
        "subject",
        "targets",
        "workspace",
    },
    "runtime": {"errors", "memory", "opschema", "modelio", "modelproto"},
    "fingerprint": set(),
    "activations": {"data", "errors", "fingerprint", "runtime"},
    "calibration": {"activations", "data", "errors", "layers", "memory", "pq", "runtime", "subgraphs"},
    "ops": {"errors"},
    "network": {"errors", "graphs", "ops"},
    "subgraphs": {"constants", "graphs", "modelproto"},
    "partition": {"activations", "constants", "errors", "graphs", "layers", "modelproto", "ops", "subgraphs"},
    "routing": {
        "activations",
        "data",
        "errors",
        "graphs",
        "importing",
        "layers",
        "network",
        "ops",
        "partition",
        "runtime",
    },
    "training": LEAVES
    | {
        "activations",
        "checkpoints",
        "config",
        "data",
        "finetuning",
        "importing",
        "objectives",
        "partition",
        "pq",
        "routing",
        "runtime",
        "subgraphs",
        "workspace",
    },
    "outputs": {"graphs", "metrics", "partition"},
    "objectives": {"config", "errors", "metrics"},
    "regularizers": set(),
    "rules": LIBRARY,
    "importing": {"constants", "errors", "graphs", "network", "ops", "preparing", "runtime"},
    "device": set(),
    "manifest": {"config", "data", "fingerprint", "modelio", "runtime"},
    "workspace": {"errors", "fingerprint", "manifest"},
    "checkpoints": {"fingerprint", "pq", "workspace"},
    "course": {"checkpoints", "pq", "report", "workspace"},
    "schedule": {"config"},
    "student": {"course", "layers", "network", "pq", "regularizers"},
    "finetuning": {
        "config",
        "course",
        "device",
        "errors",
        "layers",
        "memory",
        "network",
        "objectives",
        "pq",
        "report",
        "schedule",
        "student",
        "workspace",
    },
    "quantization": {"device", "errors", "layers", "pq", "report"},
    "sampling": {"config", "data", "errors"},
    "rewriting": LIBRARY | {"rules"},
    "verification": {"data", "errors", "metrics", "modelio", "report", "runtime"},
    "inspection": {"allocation", "config", "figures", "modelio", "modelproto", "rewriting"},
}
"""Modules (a package counts as one) and those of ours that they may import."""

TORCH = {
    "checkpoints",
    "course",
    "device",
    "lookups",
    "network",
    "ops",
    "importing",
    "routing",
    "finetuning",
    "schedule",
    "student",
    "objectives",
    "regularizers",
    "quantization",
    "pq",
    "sensitivity",
    "ordering",
}
TORCH_FREE_FILES = {"pq/__init__.py", "pq/tensor.py", "pq/layout.py", "pq/packing.py", "pq/reference.py"}
COMPOSERS = {"inspection": 1, "ordering": 1, "routing": 1, "targeting": 2, "training": 2}
"""Modules besides `pipeline` that use stages, and how many: they are steps of it that need a file of their own."""
UNRESTRICTED = {"pipeline", "cli", "__init__", "__main__"}


def unit(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported(path: Path) -> set[str]:
    """Absolute module names that a file imports anywhere; those for type checking included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_layers(path: Path) -> None:
    own = unit(path)
    others = {name.split(".")[1] for name in imported(path) if name.startswith("onnxpq.")} - {own}
    roots = {name.split(".")[0] for name in imported(path)}
    if own not in UNRESTRICTED:
        assert own in ALLOWED, f"{own} is new: say in this test what it may import"
        assert others <= ALLOWED[own]
    if "torch" in roots:
        assert own in TORCH
        assert path.relative_to(PACKAGE).as_posix() not in TORCH_FREE_FILES
    if "onnxruntime" in roots:
        assert own == "runtime"
    if own != "pipeline":
        assert len(others & STAGES) <= COMPOSERS.get(own, 0)
    if "pipeline" in others:
        assert own in {"cli", "__init__"}


@pytest.mark.parametrize("statement", ["import onnxpq", "import onnxpq.cli; onnxpq.cli.main(['--help'])"])
def test_importing_is_light(statement: str) -> None:
    code = (
        f"import sys\ntry:\n    {statement}\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'numpy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_serving_needs_no_torch() -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\n"
        "import onnxpq.runtime, onnxpq.rewriting, onnxpq.inspection, onnxpq.verification, onnxpq.pq.reference"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
