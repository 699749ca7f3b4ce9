"""Memory cgroups, on directories that only look like them."""

import os
from pathlib import Path

import pytest

from bench import memory_group as module
from bench.memory_group import GroupRefused, memory_group

NAME = f"respkv-bench-{os.getpid()}"


@pytest.fixture
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """These directories hold ordinary files, so they cannot be removed as the kernel's can."""
    monkeypatch.setattr(module, "REMOVE_PAUSE_S", 0.0)


@pytest.mark.usefixtures("_no_patience")
def test_version_2(tmp_path: Path) -> None:
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory\n")
    with memory_group(1000, tmp_path) as prefix:
        assert (tmp_path / NAME / "memory.max").read_text() == "1000"
        assert prefix[:2] == ["/bin/sh", "-c"]
        assert prefix[-1] == str(tmp_path / NAME / "cgroup.procs")


@pytest.mark.usefixtures("_no_patience")
def test_version_1(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("")
    with memory_group(1000, tmp_path):
        assert (tmp_path / "memory" / NAME / "memory.limit_in_bytes").read_text() == "1000"


def test_without_a_controller_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cgroup.subtree_control").write_text("cpu\n")
    with pytest.raises(GroupRefused, match="no memory controller"), memory_group(1, tmp_path):
        pass


def test_what_the_kernel_does_not_allow_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup.subtree_control").write_text("memory")

    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbidden)
    with pytest.raises(GroupRefused, match="Permission denied"), memory_group(1, tmp_path):
        pass
