"""Who may import whom (docs/architecture.md), read off the source; and what `import onnxpq` loads."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "onnxpq"

FLOORS = (
    ("errors",),
    ("support",),
    ("operators", "report"),
    ("config", "graph", "pq"),
    ("data", "rewriting"),
    ("runtime",),
    ("network", "workspace"),
    ("verification",),
    ("training",),
    ("quantization",),
    ("targeting",),
    ("exporting", "pipeline"),
    ("library",),
    ("cli",),
)
"""The rooms from the bottom up; a room may import what stands below it."""

FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
ROOMS = sorted(room for room in FLOOR if (PACKAGE / room).is_dir())
ENTRANCES = frozenset({"__init__", "__main__"})
"""Of the package itself: they name the public names, and belong to no room."""

TORCH = frozenset({"network", "pq", "quantization", "support.device", "training", "workspace.checkpoints"})
"""Where torch may be imported: rooms, and single modules of other rooms."""

TORCH_FREE = (
    "config",
    "data",
    "graph",
    "operators",
    "pq",
    "quantization.allocation",
    "quantization.inspection",
    "report",
    "rewriting",
    "runtime",
    "verification",
    "workspace",
)
"""What works in an environment without torch: reading, listing, rewriting, serving."""

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """The dotted name below onnxpq; a face has the name of its room."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Module and name of each import of a file; those for type checking included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((str(node.module), alias.name) for alias in node.names)


def own_imports(path: Path) -> Iterator[tuple[str, str, str]]:
    """Room, module within it ("" for its face) and name ("" for the module itself) of what a file imports of ours."""
    for module, name in imports(path):
        if module == "onnxpq" and name in FLOOR:
            yield name, "", ""
        elif module.startswith("onnxpq."):
            room, _, rest = module.removeprefix("onnxpq.").partition(".")
            yield room, rest, name


def open_to_others(room: str) -> set[str]:
    return set(import_module(f"onnxpq.{room}").__all__) if (PACKAGE / room / "__init__.py").exists() else set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_what_stands_below_it(path: Path) -> None:
    room = module_of(path).split(".", maxsplit=1)[0]
    if room in ENTRANCES:
        return
    assert room in FLOOR, f"'{room}' is new: say in FLOORS on which floor it stands"
    for other, _, _ in own_imports(path):
        if other != room:
            assert FLOOR[other] < FLOOR[room], f"{room} imports {other}, which does not stand below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_other_rooms_are_entered_by_their_faces(path: Path) -> None:
    own = module_of(path).split(".", maxsplit=1)[0]
    if own in ENTRANCES:
        return
    for room, module, name in own_imports(path):
        if room == own or not (PACKAGE / room).is_dir():
            continue
        wanted = module.partition(".")[0] or name
        assert not wanted or wanted in open_to_others(room), f"{own} reaches into {room} for '{wanted}'"


@pytest.mark.parametrize("room", ROOMS)
def test_a_face_shows_what_others_use_and_no_more(room: str) -> None:
    shown = open_to_others(room)
    used = set()
    for path in FILES:
        own = module_of(path).split(".", maxsplit=1)[0]
        if own == room:
            continue
        used |= {module.partition(".")[0] or name for other, module, name in own_imports(path) if other == room}
        used |= attributes(path, room)
    assert shown - used == set(), "nobody uses these"
    face = import_module(f"onnxpq.{room}")
    assert face.__doc__
    for name in shown & {path.stem for path in (PACKAGE / room).iterdir()}:
        module = import_module(f"onnxpq.{room}.{name}")
        assert getattr(face, name) is module, f"'{name}' is a module of {room}, and the face means something else by it"


def attributes(path: Path, room: str) -> set[str]:
    """What a file takes of a room that it imports as a whole, as in ``runtime.run``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == room
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_torch_and_onnxruntime_stay_in_their_rooms(path: Path) -> None:
    module = module_of(path)
    roots = {name.partition(".")[0] for name, _ in imports(path)}
    if "torch" in roots:
        assert module in TORCH or module.partition(".")[0] in TORCH
    if "onnxruntime" in roots:
        assert module.partition(".")[0] == "runtime"


@pytest.mark.parametrize("statement", ["import onnxpq", "import onnxpq.cli; onnxpq.cli.main(['--help'])"])
def test_importing_is_light(statement: str) -> None:
    code = (
        f"import sys\ntry:\n    {statement}\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'numpy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_reading_listing_rewriting_and_serving_need_no_torch(tmp_path: Path) -> None:
    """Without torch: a model is listed, its layer replaced by codes, saved, and run by onnxruntime."""
    code = f"""
import sys
sys.modules["torch"] = None
import numpy as np
import onnx
import onnxpq
{"; ".join(f"import onnxpq.{name}" for name in TORCH_FREE)}
from onnxpq import rewriting
from onnxpq.cli import main
from onnxpq.graph import files, prepare
from onnxpq.pq import PQTensor

weight = onnx.numpy_helper.from_array(np.ones((32, 64), np.float32), "W")
x, y = (onnx.helper.make_tensor_value_info(n, 1, ["N", s]) for n, s in (("x", 64), ("y", 32)))
node = onnx.helper.make_node("Gemm", ["x", "W"], ["y"], name="fc", transB=1)
graph = onnx.helper.make_graph([node], "g", [x], [y], [weight])
onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), "m.onnx")
assert main(["inspect", "m.onnx"]) == 0
model = files.load("m.onnx")
layers, skipped = rewriting.find(model)
ones = np.ones((1, 1, 16, 8), np.float16)
tensor = PQTensor(ones, np.zeros((32, 1, 8), np.uint8), np.full(32, 2, np.float32), 64)
files.save(rewriting.rewrite(prepare(model), layers, {{"W": tensor}}), "o.onnx")
found = onnxpq.session("o.onnx").run(None, {{"x": np.ones((3, 64), np.float32)}})[0]
np.testing.assert_allclose(found, np.full((3, 32), 128.0), rtol=5e-3)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=tmp_path)


@pytest.mark.parametrize("room", ROOMS)
def test_tests_mirror_the_rooms(room: str) -> None:
    folder = PACKAGE.parent / "tests" / room
    modules = {path.stem for path in (PACKAGE / room).glob("*.py")}
    strays = {path.stem for path in folder.glob("test_*.py") if path.stem.removeprefix("test_") not in modules}
    assert not strays, f"tests/{room} has tests of no module of that room"
