"""What is measured and printed about a node that died and came back."""

import dataclasses
import time
from collections.abc import Sequence

import pytest

from bench import failover
from bench.failover import CatchUp, parse_options, result, text, wait_until_held
from bench.failover_clients import Operation, Seen
from bench.load import LoadFailed

BACK = CatchUp(missed_count=50, ready_s=0.5, held_s=2.0, lacking_count=0)


def operation(began_s: float, took_s: float, error: str | None = None) -> Operation:
    return Operation(b"k", began_s, took_s, error, is_write=True)


def seen(*operations: Operation) -> Seen:
    return Seen(list(operations))


SEEN = seen(operation(1.0, 0.001), operation(1.5, 0.75), operation(3.0, 0.002))


def test_operations_that_ended_after_the_kill_are_told_apart() -> None:
    one = result(SEEN, 2.0, [], BACK)
    assert (one.operation_count, one.after_count) == (3, 2)
    assert (one.longest_s, one.after_longest_s, one.after_p50_ms) == (0.75, 0.75, 2.0)
    assert result(SEEN, 2.5, [], BACK).after_longest_s == 0.002


def test_a_kill_after_the_end_measures_nothing() -> None:
    with pytest.raises(LoadFailed):
        result(SEEN, 9.0, [], BACK)


def test_aims_that_are_met() -> None:
    words = text(result(SEEN, 2.0, [], BACK))
    assert "Errors: 0, aim 0: met" in words
    assert "Wrong answers: 0, aim 0: met" in words
    assert "Longest operation: 0.750 s, aim <= 1 s: met" in words
    assert "held the 50 keys that it had missed 2.00 s after its start, 1.50 s after" in words
    assert words.endswith("aim <= 10 s: met")


def test_aims_that_are_missed() -> None:
    bad = seen(operation(1.0, 1.2, "TimeoutError: x"), operation(1.0, 0.1, "TimeoutError: x"))
    bad.wrong.append("b'k': None")
    late = CatchUp(50, 0.5, 10.5, 0)
    words = text(result(bad, 1.0, [operation(5.0, 0.1, "ERR")], late))
    assert "Errors: 2, aim 0: missed" in words
    assert "2 times TimeoutError: x" in words
    assert "Wrong answers: 1, aim 0: missed" in words
    assert "1.200 s, aim <= 1 s: missed" in words
    assert "1 of the further keys were not written" in words
    assert words.endswith("aim <= 10 s: missed")


def test_a_node_that_never_catches_up_is_said() -> None:
    never = CatchUp(50, 0.5, None, 7)
    words = text(dataclasses.replace(result(SEEN, 2.0, [], BACK), catch_up=never))
    assert "7 of 50 keys were still not there" in words
    assert words.endswith("missed")


def test_keys_are_asked_for_until_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failover, "ASK_PAUSE_S", 0.0)
    monkeypatch.setattr(failover, "ASK_BATCH", 2)
    held: dict[bytes, bytes] = {b"a": b"1", b"b": b"old"}
    asked: list[list[bytes]] = []

    def ask(names: Sequence[bytes]) -> list[object]:
        asked.append(list(names))
        answers: list[object] = [held.get(name) for name in names]
        if len(asked) == 3:
            held.update({b"b": b"2", b"c": b"3"})
        return answers

    wanted = {b"a": b"1", b"b": b"2", b"c": b"3"}
    assert wait_until_held(wanted, ask, time.monotonic() + 10) == 0
    # What was there is not asked for again.
    assert asked == [[b"a", b"b"], [b"c"], [b"b", b"c"], [b"b", b"c"]]


def test_keys_that_do_not_come_are_counted() -> None:
    def ask(names: Sequence[bytes]) -> list[object]:
        return [None] * len(names)

    assert wait_until_held({b"a": b"1", b"b": b"2"}, ask, time.monotonic() - 1) == 2


@pytest.mark.parametrize(
    "words", [["--operations", "0"], ["--operations", "63"], ["--further-keys", "-1"]]
)
def test_bad_choices_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(words)
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err
