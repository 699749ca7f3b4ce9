"""The shape of the program, read from its imports: who may know whom, and who may touch the world.

Nothing is imported here: modules are parsed, so that an import inside a function counts too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("respkv", "cluster", "engine")  # Each may import itself and what stands after it.

SEAMS: dict[str, set[str]] = {
    # Files, descriptors, the environment.
    "os": {
        "engine/disk.py",
        "engine/worker.py",
        "respkv/bus_link.py",
        "respkv/cli.py",
        "respkv/config.py",
        "respkv/listener.py",
        "respkv/poller.py",
        "respkv/process.py",
        "respkv/serve.py",
        "respkv/supervisor.py",
        "respkv/tools/command.py",
        "respkv/tools/live.py",
    },
    "fcntl": {"engine/disk.py"},
    # The network. `setting` only asks whether a text is an address.
    "socket": {
        "respkv/bus.py",
        "respkv/bus_link.py",
        "respkv/connection.py",
        "respkv/listener.py",
        "respkv/setting.py",
        "respkv/tools/client.py",
    },
    "ssl": {"respkv/bus_tls.py"},
    "select": {"respkv/poller.py"},
    # The clock. The disk only rests, while it gives back a large file, and a worker within its budget.
    "time": {
        "engine/disk.py",
        "engine/worker.py",
        "respkv/logs.py",
        "respkv/node.py",
        "respkv/tools/command.py",
        "respkv/tools/live.py",
    },
    # `show` writes times that it is handed.
    "datetime": {"respkv/logs.py", "respkv/tools/show.py"},
    # Randomness. `random.Random` as the type of an argument is for everyone.
    "random": {"respkv/serve.py"},
    # Tasks, threads and processes. The log holds a lock, and starts nothing.
    "trio": {
        "engine/worker.py",
        "respkv/bus.py",
        "respkv/front.py",
        "respkv/group_commit.py",
        "respkv/jobs.py",
        "respkv/node.py",
        "respkv/pages.py",
        "respkv/poller.py",
        "respkv/serve.py",
        "respkv/supervisor.py",
        "respkv/ticker.py",
    },
    "threading": {"engine/log.py", "engine/worker.py", "respkv/supervisor.py"},
    "subprocess": {"engine/worker.py", "respkv/supervisor.py"},
    "signal": {"respkv/node.py", "respkv/supervisor.py"},
    "resource": {"respkv/process.py"},
}
NOBODY = {
    "asyncio",
    "concurrent",
    "mmap",
    "multiprocessing",
    "pathlib",
    "pickle",
    "secrets",
    "shutil",
    "tempfile",
    "uuid",
}

MODULES = sorted(
    str(path.relative_to(ROOT)) for layer in LAYERS for path in (ROOT / layer).rglob("*.py")
)


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text(), module)


def imports_of(module: str) -> Iterator[tuple[str, str | None]]:
    """(module, name) of each import, wherever it stands; the name is None if all of it is taken."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import in line {node.lineno}"
            assert node.module is not None
            for alias in node.names:
                yield node.module, alias.name


def effects_of(module: str) -> set[str]:
    """The packages by which a module reaches out of the process."""
    found = set()
    for name, part in imports_of(module):
        package = name.partition(".")[0]
        if package in SEAMS.keys() | NOBODY and (name, part) != ("random", "Random"):
            found.add(package)
    return found


def test_all_packages_are_here() -> None:
    assert {module.partition("/")[0] for module in MODULES} == set(LAYERS)
    assert len(MODULES) > 30


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    layer = LAYERS.index(module.partition("/")[0])
    above = {*LAYERS[:layer], "tests", "bench"}
    assert not {name for name, _ in imports_of(module)} & above
    assert not {name.partition(".")[0] for name, _ in imports_of(module)} & above


@pytest.mark.parametrize("module", MODULES)
def test_only_the_seams_touch_the_world(module: str) -> None:
    allowed = {package for package, modules in SEAMS.items() if module in modules}
    assert effects_of(module) <= allowed


def test_the_table_of_seams_names_no_more_than_there_are() -> None:
    stale = {
        (package, module)
        for package, modules in SEAMS.items()
        for module in modules
        if package not in effects_of(module)
    }
    assert not stale


@pytest.mark.parametrize("module", MODULES)
def test_generators_and_files_are_handed_in(module: str) -> None:
    """Who imports `Random` names the type of an argument; who opens a file is a seam."""
    made = {
        node.func.id
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert module in SEAMS["random"] or "Random" not in made
    assert module in SEAMS["os"] or "open" not in made
