"""Who imports whom, what `import zoo` loads, and that nothing prints or breaks on import."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import callbacks
import datamodules
import zoo

ROOTS = {p.__name__: Path(str(p.__file__)).parent for p in (zoo, datamodules, callbacks)}

# Where all folders meet: the command line (and every `zoo.*_cli`), what runs it, the kit.
FRONT = {
    "zoo.__main__", "zoo.analysis", "zoo.cli", "zoo.demo", "zoo.fit", "zoo.info", "zoo.reproduce",
    "zoo.request", "zoo.runs", "zoo.testing", "zoo.tracking",
}  # fmt: skip
# What users call, and no method needs.
TOOLS = {
    "zoo.checkpoint", "zoo.correction", "zoo.detect", "zoo.draw", "zoo.keypoints", "zoo.lift2d",
    "zoo.draw_video", "zoo.predict", "zoo.predict_keypoints", "zoo.predict_video", "zoo.registry",
    "zoo.seen", "zoo.smooth", "zoo.track", "zoo.video", "zoo.video_files",
}  # fmt: skip
DATA_MAY = {
    "zoo.actions", "zoo.base", "zoo.batch", "zoo.crop", "zoo.errors", "zoo.geometry",
    "zoo.protocols", "zoo.skeleton", "zoo.video",
}  # fmt: skip
CALLBACKS_MAY = {
    "zoo", "zoo.base", "zoo.batch", "zoo.correction", "zoo.draw", "zoo.errors", "zoo.metrics",
    "zoo.paper_tables", "zoo.pose", "zoo.protocols", "zoo.skeleton",
}  # fmt: skip
# These and the front speak to the user at a terminal; everything else logs, warns or raises.
MAY_PRINT = {"callbacks.action_report", "callbacks.time_left"}


def module_name(path: Path, package: str) -> str:
    parts = path.relative_to(ROOTS[package]).with_suffix("").parts
    return ".".join((package, *(p for p in parts if p != "__init__")))


@cache
def sources() -> dict[str, ast.Module]:
    """Every module of the three packages by name."""
    found = {}
    for package, root in ROOTS.items():
        for path in sorted(root.rglob("*.py")):
            found[module_name(path, package)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.Module, top_only: bool = False) -> Iterator[str]:
    """Absolute names of the imported modules; with ``top_only`` those that run on import."""
    nodes: list[ast.stmt | ast.AST] = list(tree.body) if top_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            base = str(node.module)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in sources() else base


def inside(module: str, groups: set[str]) -> bool:
    return any(module == g or module.startswith(f"{g}.") for g in groups)


def front(module: str) -> bool:
    return inside(module, FRONT) or (module.startswith("zoo.") and module.endswith("_cli"))


def own(names: Iterator[str]) -> set[str]:
    return {n for n in names if n.split(".")[0] in ROOTS}


def select(prefix: str) -> list[str]:
    return [n for n in sources() if n.startswith(f"{prefix}.")]


BELOW = [n for n in sources() if n.startswith("zoo.") and not front(n)]


def test_the_packages_were_found() -> None:
    assert {"zoo.base", "zoo.methods.park", "datamodules.synthetic", "callbacks.phases"} <= set(
        sources()
    )


@pytest.mark.parametrize("module", BELOW)
def test_only_the_front_knows_datamodules_callbacks_and_itself(module: str) -> None:
    for name in own(imports(sources()[module])):
        assert not inside(name, {"datamodules", "callbacks"}), name
        assert not front(name), name


@pytest.mark.parametrize("module", [n for n in BELOW if not n.startswith("zoo.methods.")])
def test_a_shared_module_imports_no_method(module: str) -> None:
    assert not [n for n in own(imports(sources()[module])) if inside(n, {"zoo.methods"})]


@pytest.mark.parametrize("module", select("zoo.methods"))
def test_a_method_imports_no_other_method_and_no_tool(module: str) -> None:
    mine = ".".join(module.split(".")[:3])
    for name in own(imports(sources()[module])):
        assert not inside(name, {"zoo.methods"}) or inside(name, {mine}), name
        # A method may start from the weights of another: read when asked for, not on import.
        assert not inside(name, TOOLS - {"zoo.checkpoint"}), name
    assert not [n for n in imports(sources()[module], top_only=True) if inside(n, TOOLS)]


@pytest.mark.parametrize("module", select("datamodules"))
def test_a_datamodule_knows_batch_skeleton_and_geometry_only(module: str) -> None:
    for name in own(imports(sources()[module])):
        # A mixture makes its sets by their registered names.
        by_name = module == "datamodules.mixed" and name == "zoo.registry"
        assert inside(name, {"datamodules"}) or name in DATA_MAY or by_name, name
    for node in ast.walk(sources()[module]):
        if isinstance(node, ast.ImportFrom) and node.module == "zoo.base":
            assert [alias.name for alias in node.names] == ["InputSpec"]


@pytest.mark.parametrize("module", select("callbacks"))
def test_a_callback_knows_no_method_and_no_datamodule(module: str) -> None:
    for name in own(imports(sources()[module])):
        assert inside(name, {"callbacks"}) or name in CALLBACKS_MAY, name


@pytest.mark.parametrize(
    ("module", "may"),
    [
        ("zoo.skeleton", {"zoo.errors"}),
        ("zoo.geometry", {"zoo.errors", "zoo.skeleton"}),
        ("zoo.errors", set()),
        ("zoo.batch", set()),
    ],
)
def test_the_ground_floor_needs_torch_and_numpy_only(module: str, may: set[str]) -> None:
    names = set(imports(sources()[module]))
    assert own(iter(names)) <= may
    others = {n.split(".")[0] for n in names} - set(sys.stdlib_module_names) - set(ROOTS)
    assert others <= {"torch", "numpy"}


def test_packages_import_nothing_of_their_own_by_themselves() -> None:
    for package in ("zoo", "zoo.methods", "datamodules", "callbacks"):
        assert own(imports(sources()[package], top_only=True)) == set(), package


def test_no_two_modules_import_each_other_on_import() -> None:
    # A package's __init__ gathers its parts, so edges inside one package do not count as a circle.
    edges = {n: own(imports(t, top_only=True)) - {n} for n, t in sources().items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for name in sorted(edges.get(module, ())):
                visit(name, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


@pytest.mark.parametrize("module", sorted(sources()))
def test_no_leftovers(module: str) -> None:
    for node in ast.walk(sources()[module]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "breakpoint", f"line {node.lineno}"
            if not (front(module) or module in MAY_PRINT):
                assert node.func.id != "print", f"line {node.lineno} prints"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: a bare except"
        if isinstance(node, ast.ImportFrom):
            assert all(a.name != "*" for a in node.names), f"line {node.lineno}: a star import"


# ---- in new processes ----------------------------------------------------------------------------

LIGHT = """
import json, sys, time
start = time.process_time()
import zoo
seconds = time.process_time() - start
zoo.__version__, dir(zoo)
import zoo.registry
names = zoo.registry.method_names()
print(json.dumps({"seconds": seconds, "names": names, "modules": sorted(sys.modules)}))
"""

ALL = """
import importlib, json, os, pkgutil, socket, sys

def refuse(*args, **kwargs):
    raise RuntimeError("an import reached for the network")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
failed = {}
for package in ("zoo", "datamodules", "callbacks"):
    module = importlib.import_module(package)
    for info in pkgutil.walk_packages(module.__path__, package + "."):
        if info.name == "zoo.__main__":
            continue
        try:
            importlib.import_module(info.name)
        except Exception as error:
            failed[info.name] = repr(error)
left = [name for name in os.listdir(".")]
print(json.dumps({"failed": failed, "left": left, "wandb": "wandb" in sys.modules}))
"""


def run(code: str, folder: Path) -> dict[str, object]:
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_import_zoo_is_quick_and_loads_neither_torch_nor_a_method(tmp_path: Path) -> None:
    facts = run(LIGHT, tmp_path)
    modules = facts["modules"]
    assert isinstance(modules, list)
    loaded = {m.split(".")[0] for m in modules}
    assert not loaded & {"torch", "lightning", "numpy", "timm", "albumentations", "datamodules",
                         "callbacks"}  # fmt: skip
    assert not [m for m in modules if m.startswith("zoo.methods")]
    assert "park" in facts["names"]  # type: ignore[operator]
    assert float(facts["seconds"]) < 0.3  # type: ignore[arg-type]


def test_every_module_imports_without_network_and_leaves_nothing_behind(tmp_path: Path) -> None:
    facts = run(ALL, tmp_path)
    assert facts["failed"] == {}
    assert facts["left"] == []
    assert facts["wandb"] is False  # an extra: imported where it is asked for
