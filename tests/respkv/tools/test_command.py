"""The tools' help: that its examples can be typed, and that it says what the exit statuses mean."""

from __future__ import annotations

import shlex

import pytest

from respkv.cli import _parser, main

TOOLS = ("backup", "restore", "verify", "dump", "import", "status", "ring", "drill")


def help_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as exit:
        main([*words, "--help"])
    assert exit.value.code == 0
    return capsys.readouterr().out


def test_the_tools_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    listed = [line.split()[0] for line in help_of(capsys).splitlines() if line.startswith("    ")]
    assert set(TOOLS) <= set(listed)


@pytest.mark.parametrize("name", TOOLS)
def test_help_has_examples_that_can_be_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, name)
    assert "exit status:" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    _, _, examples = text.partition("\nexamples:\n")
    lines = [line.strip() for line in examples.splitlines() if line.strip().startswith("respkv ")]
    typed = [_parser().parse_args(shlex.split(line)[1:]) for line in lines]
    assert name in [arguments.command for arguments in typed]
