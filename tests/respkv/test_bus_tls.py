"""TLS without a socket: both ends in memory, the bytes carried by hand."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from respkv.bus_tls import Tls, TlsError, TlsSettings
from tests.respkv.bus_harness import certify, files

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="certificates are made by the openssl program"
)


def settings(folder: Path, name: str = "a") -> TlsSettings:
    if not (folder / f"{name}.pem").exists():
        folder.mkdir(exist_ok=True)
        certify(folder, name)
    return TlsSettings.load(*files(folder, name))


def shake(dialling: Tls, accepting: Tls) -> None:
    assert dialling.receive(b"") == b""
    for _ in range(3):
        assert accepting.receive(dialling.take()) == b""
        assert dialling.receive(accepting.take()) == b""


def test_what_is_sent_arrives_and_is_not_readable_on_the_way(tmp_path: Path) -> None:
    both = settings(tmp_path)
    dialling, accepting = Tls(both, is_dialled=True), Tls(both, is_dialled=False)
    assert not dialling.is_ready
    shake(dialling, accepting)
    assert dialling.is_ready
    assert accepting.is_ready
    for sender, other in ((dialling, accepting), (accepting, dialling)):
        sender.send(b"a plain text")
        sender.send(b" in two")
        wire = sender.take()
        assert b"plain" not in wire
        assert other.receive(wire) == b"a plain text in two"
        assert sender.take() == b""
        large = os.urandom(200_000)
        sender.send(large)
        wire = sender.take()
        plain = [other.receive(wire[start : start + 999]) for start in range(0, len(wire), 999)]
        assert b"".join(plain) == large


def test_bytes_changed_on_the_way_are_noticed(tmp_path: Path) -> None:
    both = settings(tmp_path)
    dialling, accepting = Tls(both, is_dialled=True), Tls(both, is_dialled=False)
    shake(dialling, accepting)
    dialling.send(b"a plain text")
    wire = bytearray(dialling.take())
    wire[-1] ^= 1
    with pytest.raises(TlsError):
        accepting.receive(bytes(wire))


def test_another_ca_is_refused_by_either_end(tmp_path: Path) -> None:
    ours, theirs = settings(tmp_path / "ours"), settings(tmp_path / "theirs")
    dialling, accepting = Tls(ours, is_dialled=True), Tls(theirs, is_dialled=False)
    with pytest.raises(TlsError, match="CERTIFICATE_VERIFY_FAILED"):
        shake(dialling, accepting)
    assert dialling.take()  # The alert.
    mixed = TlsSettings(TlsSettings.load(*files(tmp_path / "ours", "a")[:2], str(tmp_path / "theirs/ca.pem")).dialling,
                        theirs.accepting)  # fmt: skip
    with pytest.raises(TlsError, match="CERTIFICATE_VERIFY_FAILED"):
        shake(Tls(mixed, is_dialled=True), Tls(mixed, is_dialled=False))


def test_one_without_a_certificate_is_refused(tmp_path: Path) -> None:
    import ssl

    both = settings(tmp_path)
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(str(tmp_path / "ca.pem"))
    dialling = Tls(TlsSettings(bare, both.accepting), is_dialled=True)
    accepting = Tls(both, is_dialled=False)
    with pytest.raises(TlsError, match="CERTIFICATE"):
        shake(dialling, accepting)


def test_no_older_protocol_is_spoken(tmp_path: Path) -> None:
    import ssl

    both = settings(tmp_path)
    old = TlsSettings.load(*files(tmp_path, "a")).dialling
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(TlsError, match=r"PROTOCOL|VERSION"):
        shake(Tls(TlsSettings(old, both.accepting), is_dialled=True), Tls(both, is_dialled=False))


def test_a_file_that_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    settings(tmp_path)
    certificate, key, ca = files(tmp_path, "a")
    (tmp_path / "wrong.pem").write_text("no certificate")
    for paths, named in (
        ((certificate, key, "/no/such/ca"), "/no/such/ca"),
        ((certificate, key, str(tmp_path / "wrong.pem")), "wrong.pem"),
        (("/no/such/file", key, ca), "/no/such/file"),
        ((certificate, str(tmp_path / "ca.key"), ca), "a.pem"),
    ):
        with pytest.raises(TlsError, match=named):
            TlsSettings.load(*paths)
