"""The direction of imports: driver <- nvmefs <- mkfs (an arrow points at what is imported).

The modules are parsed, not imported: imports inside functions and under TYPE_CHECKING count as
well, and nothing has to be built. What a package may not see it may not see through others either:
the rules hold for everything reachable, and a failure prints the chain of imports that leads there.
"""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("driver", "nvmefs", "mkfs")

Graph = dict[str, set[str]]
"""Module name -> names it imports: modules of ours in full, everything else as written."""


@dataclass(frozen=True)
class Rule:
    """Nothing in `importer` may reach `forbidden`; both are a module and all below it."""

    importer: str
    forbidden: str
    because: str


RULES = [
    Rule("driver", "nvmefs", "the driver knows nothing of files"),
    Rule("driver", "mkfs", "the driver knows nothing of files"),
    Rule("driver", "pyfuse3", "the driver knows nothing of files"),
    Rule("nvmefs", "mkfs", "the offline tools stand on the filesystem, not under it"),
    Rule("mkfs", "nvmefs.operations", "the offline tools work without FUSE"),
    Rule("mkfs", "nvmefs.mount", "the offline tools work without FUSE"),
    Rule("mkfs", "nvmefs.cli", "the offline tools work without FUSE"),
    Rule("mkfs", "nvmefs.frontend", "the offline tools work without FUSE"),
    Rule("mkfs", "pyfuse3", "the offline tools work without FUSE"),
]

EMBEDDED = "driver.embedded"
EMBEDDED_DOOR = "driver.transports.embedded"


def is_within(name: str, package: str) -> bool:
    """Whether `name` is `package` or lies below it."""
    return name == package or name.startswith(package + ".")


def imported_names(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Every dotted name that `source`, the text of `module`, imports, in any scope.

    `from a import b` gives both `a` and `a.b`: which of them is a module is for the caller to know.
    """
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - (node.level - 1)]
                base = ".".join([*parents, base] if base else parents)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else None
            called = node.func.id if isinstance(node.func, ast.Name) else called
            if called in ("import_module", "__import__") and node.args:
                name = node.args[0]
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    yield name.value


def with_parents(name: str) -> Iterator[str]:
    """`a.b.c` -> a, a.b, a.b.c: importing a module runs the packages it lies in."""
    parts = name.split(".")
    return (".".join(parts[: i + 1]) for i in range(len(parts)))


def read_graph(root: Path, packages: Iterable[str] = PACKAGES) -> Graph:
    """The import graph of all modules in `packages` below `root`."""
    files: dict[str, Path] = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: Graph = {}
    for module, path in files.items():
        names = imported_names(path.read_text(), module, path.name == "__init__.py")
        reached = {part for name in names for part in with_parents(name)}
        graph[module] = reached - {module}
    return graph


def find_chain(graph: Graph, importer: str, forbidden: str) -> list[str]:
    """The shortest chain of imports from a module in `importer` into `forbidden`, or []."""
    starts = [module for module in graph if is_within(module, importer)]
    came_from: dict[str, str] = dict.fromkeys(starts, "")
    queue = deque(starts)
    while queue:
        module = queue.popleft()
        if is_within(module, forbidden):
            chain = [module]
            while came_from[chain[0]]:
                chain.insert(0, came_from[chain[0]])
            return chain
        for name in sorted(graph.get(module, ())):
            if name not in came_from:
                came_from[name] = module
                queue.append(name)
    return []


@pytest.fixture(scope="module")
def graph() -> Graph:
    return read_graph(ROOT)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.importer}-not-{rule.forbidden}")
def test_direction(graph: Graph, rule: Rule) -> None:
    chain = find_chain(graph, rule.importer, rule.forbidden)
    assert not chain, f"{' -> '.join(chain)}: {rule.because}"


def test_embedded_controller_has_one_door(graph: Graph) -> None:
    """The driver must not know that the embedded controller is not a real device."""
    importers = {
        module
        for module, names in graph.items()
        if not is_within(module, EMBEDDED) and any(is_within(name, EMBEDDED) for name in names)
    }
    assert importers <= {EMBEDDED_DOOR}


def test_every_package_is_seen(graph: Graph) -> None:
    """An empty graph would pass every rule."""
    assert set(PACKAGES) <= {module.partition(".")[0] for module in graph}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import nvmefs.cli", "nvmefs.cli"),
        ("import nvmefs.cli as x", "nvmefs.cli"),
        ("from nvmefs import cli", "nvmefs.cli"),
        ("from nvmefs.cli import main", "nvmefs.cli"),
        ("def f():\n    import nvmefs.cli", "nvmefs.cli"),
        ("if TYPE_CHECKING:\n    from nvmefs import cli", "nvmefs.cli"),
        ("importlib.import_module('nvmefs.cli')", "nvmefs.cli"),
        ("__import__('nvmefs.cli')", "nvmefs.cli"),
        ("from . import beside", "mkfs.check.beside"),
        ("from .beside import x", "mkfs.check.beside"),
        ("from .. import geometry", "mkfs.geometry"),
        ("from ..geometry import x", "mkfs.geometry"),
    ],
)
def test_each_form_of_import_is_seen(source: str, name: str) -> None:
    assert name in set(imported_names(source, "mkfs.check.scan", is_package=False))


def test_relative_import_in_a_package() -> None:
    assert "mkfs.check.scan" in set(imported_names("from .scan import x", "mkfs.check", True))


def test_chain_through_others_and_their_packages_is_found(tmp_path: Path) -> None:
    for path, text in {
        "mkfs/__init__.py": "",
        "mkfs/fsck.py": "from nvmefs.tree import Tree",
        "nvmefs/__init__.py": "from nvmefs.face import shown",
        "nvmefs/tree.py": "",
        "nvmefs/face.py": "import pyfuse3",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    chain = find_chain(read_graph(tmp_path, ("mkfs", "nvmefs")), "mkfs", "pyfuse3")
    assert chain == ["mkfs.fsck", "nvmefs", "nvmefs.face", "pyfuse3"]
