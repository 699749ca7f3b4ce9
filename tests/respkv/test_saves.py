"""The course of saves and rewrites."""

from __future__ import annotations

from respkv.saves import Saves


def test_a_save_ends_when_its_position_is_in_tables() -> None:
    saves = Saves(100, changes=5)
    saves.ask("save", 200)
    assert saves.is_running("save")
    assert saves.wants_freeze
    assert not saves.is_running("rewrite")
    saves.frozen(1000)
    assert not saves.wants_freeze
    saves.flush_begins(9)
    saves.flushed(999, 203)
    assert saves.is_running("save"), "what it asked for is not flushed yet"
    assert saves.running_s("save", 204) == 4
    saves.flushed(1000, 205)
    assert not saves.is_running("save")
    course = saves.courses["save"]
    assert (course.count, course.last_duration_s, course.is_last_ok) == (1, 5, True)
    assert (saves.last_s, saves.changes) == (205, 9)
    assert saves.running_s("save", 300) == -1


def test_a_flush_that_nobody_asked_for_counts_as_saved_and_as_no_save() -> None:
    saves = Saves(100)
    saves.flush_begins(70)
    saves.flushed(500, 150)
    assert (saves.last_s, saves.changes) == (150, 70)
    assert saves.courses["save"].count == 0


def test_one_asked_for_later_waits_for_its_own_freeze() -> None:
    saves = Saves(100)
    saves.ask("save", 101)
    saves.frozen(1000)
    saves.ask("rewrite", 102)
    assert saves.wants_freeze
    saves.flushed(1000, 103)
    assert not saves.is_running("save")
    assert saves.is_running("rewrite")
    saves.frozen(2000)
    saves.flushed(2000, 104)
    assert not saves.is_running("rewrite")


def test_asking_again_changes_nothing() -> None:
    saves = Saves(100)
    saves.ask("save", 101)
    saves.frozen(1000)
    saves.ask("save", 110)
    assert not saves.wants_freeze
    assert saves.running_s("save", 111) == 10


def test_a_failure_is_told_until_it_is_done() -> None:
    saves = Saves(100)
    saves.failed()
    assert saves.courses["save"].is_last_ok, "none was running"
    saves.ask("save", 101)
    saves.frozen(1000)
    saves.failed()
    assert not saves.courses["save"].is_last_ok
    assert saves.is_running("save")
    saves.flushed(1000, 120)
    assert saves.courses["save"].is_last_ok


def test_a_synchronous_save_makes_all_changes_saved() -> None:
    saves = Saves(100)
    saves.synced(12, 130)
    assert (saves.last_s, saves.changes, saves.courses["save"].count) == (130, 12, 1)
