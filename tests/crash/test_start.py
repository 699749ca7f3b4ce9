"""What a start refuses, it refuses in one clear line with exit status 1, and it touches nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest

from engine import manifest
from engine.disk import RealDisk
from engine.log_format import FORMAT_VERSION as LOG_VERSION
from tests.crash.server import RefusedStart, Server
from tests.crash.workload import Connection


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with a write in it."""
    server = Server(tmp_path, ["log.fsync=always"])
    server.start()
    connection = Connection(server.port)
    assert connection.ask(b"SET", b"key", b"value") == b"OK"
    connection.close()
    server.kill()
    return tmp_path


def refused(folder: Path) -> str:
    """What a start says, which has to fail in one line."""
    before = content(folder / "data")
    server = Server(folder, [])
    with pytest.raises(RefusedStart) as caught:
        server.start()
    assert caught.value.status == 1
    assert content(folder / "data") == before
    lines = caught.value.said.splitlines()
    assert len(lines) == 1, caught.value.said
    assert lines[0].startswith("respkv: ")
    return lines[0]


def content(data: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in data.iterdir() if path.name != "lock"}


def test_a_folder_that_another_process_holds(folder: Path) -> None:
    holder = Server(folder, [])
    holder.start()
    try:
        other = folder / "other"
        other.mkdir()
        server = Server(other, [], data_dir=folder / "data")
        with pytest.raises(RefusedStart) as caught:
            server.start()
        assert caught.value.status == 1
        assert len(caught.value.said.splitlines()) == 1, caught.value.said
        assert "respkv: the data folder is in use: process " in caught.value.said
        connection = Connection(holder.port)
        assert connection.ask(b"GET", b"key") == b"value"
        connection.close()
    finally:
        holder.kill()


def test_a_folder_of_a_newer_version(folder: Path) -> None:
    disk = RealDisk(str(folder / "data"))
    found = manifest.read(disk)
    assert found is not None
    found.format_version += 1
    manifest.write(disk, found)
    disk.close()
    said = refused(folder)
    assert f"/data/manifest has format version {found.format_version}" in said
    assert f"this program reads version {manifest.FORMAT_VERSION}" in said


def test_a_log_of_a_newer_version(folder: Path) -> None:
    segment = next((folder / "data").glob("*.log"))
    data = segment.read_bytes()
    header = data[:8] + (LOG_VERSION + 1).to_bytes(4, "little") + data[12:32]
    segment.write_bytes(header + xxh3_64_intdigest(header).to_bytes(8, "little") + data[40:])
    assert f"{segment.name} has format version {LOG_VERSION + 1}" in refused(folder)


def test_a_folder_whose_manifest_is_gone(folder: Path) -> None:
    """Nothing of its data is taken for rubbish."""
    (folder / "data" / manifest.NAME).unlink()
    assert "expected a manifest, because there is data, found no such file" in refused(folder)


def test_a_damaged_manifest(folder: Path) -> None:
    path = folder / "data" / manifest.NAME
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "/data/manifest is damaged at offset 0" in refused(folder)


def test_a_folder_without_a_parent(tmp_path: Path) -> None:
    server = Server(tmp_path, [], data_dir=tmp_path / "missing" / "data")
    with pytest.raises(RefusedStart) as caught:
        server.start()
    assert caught.value.status == 1
    assert "Traceback" not in caught.value.said
    assert len(caught.value.said.splitlines()) == 1
