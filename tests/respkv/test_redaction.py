"""What people may see of a command line."""

from __future__ import annotations

import pytest

from respkv.redaction import redacted


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("GET auth", "GET auth"),
        ("AUTH secret", "AUTH (redacted)"),
        ("auth user secret", "auth (redacted) (redacted)"),
        ("AUTH", "AUTH"),
        ("HELLO 3", "HELLO 3"),
        ("HELLO 3 auth user secret SETNAME n", "HELLO 3 auth (redacted) (redacted) SETNAME n"),
        ("HELLO 3 AUTH user", "HELLO 3 AUTH (redacted)"),
        ("ACL SETUSER user on >secret", "ACL SETUSER (redacted) (redacted) (redacted)"),
        ("ACL GETUSER user", "ACL GETUSER user"),
    ],
)
def test_passwords_are_hidden(line: str, shown: str) -> None:
    args = [word.encode() for word in line.split()]
    before = list(args)
    assert redacted(args) == [word.encode() for word in shown.split()]
    assert args == before
