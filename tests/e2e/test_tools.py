"""The operator's tools on real servers and folders: a snapshot under load, backup, restore, verify, dump, import."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from respkv.cli import main
from respkv.tools.client import Address, Client
from respkv.tools.importer import Importer, ImportState, run_id_of
from tests.servers import RunningServer, redis_server, respkv_server

LITTLE_MEMORY = ("--set", "memory.bytes_max=16MiB")


def client_of(server: RunningServer, db: int = 0) -> Client:
    return Client(Address(server.host, server.port, db))


def url_of(server: RunningServer, db: int = 0) -> str:
    return f"redis://{server.host}:{server.port}/{db}"


def tool(*words: str) -> int:
    """The exit status of a command line."""
    try:
        return main(words)
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else -1


class Writer:
    """Writes `key0`, `key1`, ... until it is told to stop; `acknowledged` is how many were answered."""

    def __init__(self, server: RunningServer) -> None:
        self.acknowledged = 0
        self._client = client_of(server)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            commands = [("SET", f"key{n}", f"{n}:" + "x" * 200) for n in range(number, number + 20)]
            assert list(self._client.pipeline(commands)) == [b"OK"] * 20
            number += 20
            self.acknowledged = number

    def wait_for(self, count: int) -> None:
        while self.acknowledged < count:
            assert self._thread.is_alive()
            self._stop.wait(0.005)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(20)
        self._client.close()


def keys_of(server: RunningServer, count: int) -> int:
    client = client_of(server)
    values = list(client.pipeline([("GET", f"key{n}") for n in range(count)]))
    client.close()
    return sum(value is not None and value.startswith(b"%d:" % n) for n, value in enumerate(values))


def actor_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert tool("dump", "--json", str(folder / "manifest")) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_from_a_snapshot_under_load_to_a_restored_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, copy, saved, fresh = (tmp_path / name for name in ("data", "copy", "saved", "fresh"))
    with respkv_server(*LITTLE_MEMORY, data_dir=data) as server:
        writer = Writer(server)
        writer.wait_for(12_000)  # More than a memtable: tables are made and replaced meanwhile.
        admin = client_of(server)
        counts = []
        for name in ("first", "second"):
            counts.append(writer.acknowledged)
            reply = admin.ask("KV.SNAPSHOT", "CREATE", name)
            shown = dict(zip(reply[::2], reply[1::2], strict=True))
            assert Path(shown[b"path"].decode()) == data / "snapshots" / name
            writer.wait_for(writer.acknowledged + 4000)
        writer.stop()
        admin.ask("DEL", "key0")
        assert tool("backup", str(data / "snapshots/second"), str(saved)) == 0
        assert tool("verify", str(data / "snapshots/first")) == 0
        assert tool("verify", str(data)) == 2
        assert "in use by a node" in capsys.readouterr().err
        assert admin.ask("KV.SNAPSHOT", "DROP", "second") == b"OK"
        admin.close()
    assert tool("verify", str(data)) == 0

    shutil.copytree(data / "snapshots/first", copy)
    with respkv_server(*LITTLE_MEMORY, data_dir=copy) as server:
        assert keys_of(server, counts[0]) == counts[0]

    assert tool("restore", str(saved), str(fresh)) == 0
    assert tool("restore", str(saved), str(fresh)) == 1
    capsys.readouterr()
    old = actor_of(data, capsys)
    assert actor_of(fresh, capsys)["is_copy"] is True
    with respkv_server(*LITTLE_MEMORY, data_dir=fresh) as server:
        assert keys_of(server, counts[1]) == counts[1]
        client = client_of(server)
        client.ask("SET", "key0", "of the new node")
        client.ask("BGREWRITEAOF")
        while b"aof_rewrite_in_progress:1" in client.ask("INFO", "persistence"):
            pass
        client.close()
    new = actor_of(fresh, capsys)
    assert new["actor"] != old["actor"]
    assert new["past_actors"] == [old["actor"]]
    assert new["is_copy"] is False
    assert tool("dump", "--json", "--key", "key0", str(fresh)) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {entry["versions"][0]["actor"] for entry in entries} >= {new["actor"]}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a stopped node, with a table and a log."""
    folder = tmp_path_factory.mktemp("stopped") / "data"
    with respkv_server(data_dir=folder) as server:
        client = client_of(server)
        list(client.pipeline([("SET", f"key{n}", "v" * 30) for n in range(500)]))
        client.ask("BGREWRITEAOF")
        while b"aof_rewrite_in_progress:1" in client.ask("INFO", "persistence"):
            pass
        client.ask("SET", "late", "a\nb", "PX", 10**9)
        client.ask("SELECT", 2)
        client.ask("SET", "key7", "other")
        client.close()
    return folder


def test_verify_finds_a_flipped_byte_and_dump_shows_the_rest(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(stopped, folder)
    assert tool("verify", "--cold", str(folder)) == 0
    assert "sound; 1 tables" in capsys.readouterr().out
    (table,) = folder.glob("*.sst")
    data = bytearray(table.read_bytes())
    data[100] ^= 1
    table.write_bytes(data)
    assert tool("verify", str(folder)) == 1
    assert f"damaged: {table.name} at offset 0: expected 0x" in capsys.readouterr().out
    assert tool("backup", str(folder), str(tmp_path / "b")) == 1
    assert table.name in capsys.readouterr().err
    assert tool("dump", str(table)) == 1
    out = capsys.readouterr().out
    assert f"! {table.name} is damaged at offset 0" in out
    assert out.count(" string ") > 100


def test_dump_shows_all_three_formats(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool("dump", str(stopped)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(" string " in line for line in lines) == 502
    assert any(line.startswith("actor ") for line in lines)
    assert any(line.startswith("# ") and line.endswith(".sst") for line in lines)
    (late,) = (line for line in lines if '"late"' in line)
    assert late.endswith('complete "a\\nb"')

    assert tool("dump", "--key", "key7", str(stopped)) == 0
    found = [line for line in capsys.readouterr().out.splitlines() if '"key7"' in line]
    assert [line.split()[2] for line in found] == ["0", "2"]

    assert tool("dump", "--limit", "3", "--json", str(stopped)) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(shown) == 4
    assert shown[0]["file"] == "manifest"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["verify", "/none"], "respkv verify: /none: no such folder"),
        (["dump", "/none/x.sst"], "respkv dump: /none/x.sst: no such file or folder"),
        (["dump", os.devnull], "not a table (.sst)"),
        (["backup", "/none", "x"], "respkv backup: /none: no such folder"),
        (["import", "http://h", "--to", "redis://h"], "a server is named redis://"),
        (["dump", "--limit", "0", "/"], "must be 1 or more"),
    ],
)
def test_what_is_wrong_is_one_line(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert tool(*words) == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# Import


@pytest.fixture
def servers() -> Iterator[tuple[RunningServer, RunningServer]]:
    with redis_server() as source, respkv_server() as target:
        yield source, target


def fill(source: RunningServer) -> None:
    client = client_of(source, 1)
    list(client.pipeline([("SET", f"key{n}", f"value {n}") for n in range(1990)]))
    list(client.pipeline([("SET", f"brief{n}", "v", "PX", 10**7) for n in range(9)]))
    client.ask("SET", b"\xff\x00\r\n", b"\x00" * 5_000_000)
    client.close()


def test_an_interrupted_import_goes_on_and_ends_with_every_key(
    servers: tuple[RunningServer, RunningServer], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source, target = servers
    monkeypatch.chdir(tmp_path)
    fill(source)
    kept = tmp_path / f"respkv-import-{source.host}-{source.port}-1.json"

    def save(state: ImportState) -> None:
        kept.write_text(
            json.dumps({name: getattr(state, name) for name in state.__struct_fields__})
        )

    reader, writer = client_of(source, 1), client_of(target, 2)
    state = ImportState(str(reader.address), str(writer.address), run_id_of(reader))
    importer = Importer(reader, writer, state, save, 100)
    for _ in range(5):
        importer.step()
    importer._copy([b"key1"])  # Of a batch whose end was not saved.
    copied = writer.ask("DBSIZE")
    assert 400 < copied < 1000
    reader.close()

    assert tool("import", url_of(source, 1), "--to", url_of(target, 2), "--batch", "100") == 0
    captured = capsys.readouterr()
    assert "going on after" in captured.err
    assert "copied 2000 string keys" in captured.out
    assert "2000 of 2000 string keys of the source are in the target" in captured.out
    assert not kept.exists()
    assert writer.ask("DBSIZE") == 2000
    assert writer.ask("GET", "key1989") == b"value 1989"
    assert writer.ask("GET", b"\xff\x00\r\n") == b"\x00" * 5_000_000
    assert 0 < writer.ask("PTTL", "brief3") <= 10**7
    assert writer.ask("PTTL", "key3") == -1
    writer.close()


def test_keys_of_other_types_are_counted_and_told(
    servers: tuple[RunningServer, RunningServer], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source, target = servers
    monkeypatch.chdir(tmp_path)
    client = client_of(source)
    for words in (
        ("SET", "s", "v"),
        ("RPUSH", "l", "1"),
        ("RPUSH", "m", "1"),
        ("HSET", "h", "f", "v"),
    ):
        client.ask(*words)
    client.close()
    assert tool("import", url_of(source), "--to", url_of(target)) == 3
    out = capsys.readouterr().out
    assert "copied 1 string keys" in out
    assert "not copied: 3 keys of types that are not supported yet: 1 hash, 2 list" in out


def test_a_key_that_the_target_lost_is_missed(
    servers: tuple[RunningServer, RunningServer], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    source, target = servers
    monkeypatch.chdir(tmp_path)
    reader = client_of(source)
    reader.ask("SET", "lost", "v")
    run_id = run_id_of(reader)
    state = {
        "source": str(reader.address),
        "target": url_of(target),
        "run_id": run_id,
        "is_scanned": True,
    }
    (tmp_path / "p.json").write_text(json.dumps(state))
    assert tool("import", url_of(source), "--to", url_of(target), "--progress", "p.json") == 1
    assert "missing in the target: 1 keys, such as b'lost'" in capsys.readouterr().out
    state["run_id"] = "another"
    (tmp_path / "p.json").write_text(json.dumps(state))
    assert tool("import", url_of(source), "--to", url_of(target), "--progress", "p.json") == 0
    assert "the source was restarted since" in capsys.readouterr().err
    state["source"] = "redis://elsewhere:1/0"
    (tmp_path / "p.json").write_text(json.dumps(state))
    assert tool("import", url_of(source), "--to", url_of(target), "--progress", "p.json") == 2
    reader.close()


def test_a_target_that_refuses_ends_the_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with redis_server() as source, redis_server("--maxmemory", "1") as full:
        client = client_of(source)
        client.ask("SET", "k", "v")
        client.close()
        assert tool("import", url_of(source), "--to", url_of(full)) == 1
        assert "refused key b'k': OOM" in capsys.readouterr().err


def test_head_may_close_the_pipe(stopped: Path) -> None:
    command = f"python -m respkv dump {stopped} --json | head -1"
    environment = {**os.environ, "PATH": f"{Path(os.sys.executable).parent}:{os.environ['PATH']}"}  # type: ignore[attr-defined]
    done = subprocess.run(
        ["sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env=environment,
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        url = f"redis://127.0.0.1:{probe.getsockname()[1]}"
    assert tool("import", url, "--to", url) == 1
    assert capsys.readouterr().err.startswith("respkv import: cannot connect to redis://127.0.0.1:")
