"""The failure detector: phi against the formula, suspicion against silence, and what must not count as silence."""

from __future__ import annotations

from math import inf
from random import Random
from statistics import NormalDist, fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.phi import PHI_MAX, FailureDetector, PhiSettings, deviations_of, phi_of


def beating(
    detector: FailureDetector, count: int, *, interval_s: float = 1.0, start_s: float = 0.0
) -> float:
    """`count` regular heartbeats of peer b. Returns the time of the last."""
    for i in range(count):
        detector.heartbeat("b", start_s + i * interval_s)
    return start_s + (count - 1) * interval_s


def suspected_after(detector: FailureDetector, last_s: float, *, step_s: float = 0.01) -> float:
    """The silence after `last_s` at which b becomes suspect."""
    return next(i * step_s for i in range(100_000) if detector.is_suspect("b", last_s + i * step_s))


@pytest.mark.parametrize("deviations", [-3.0, -1.0, 0.0, 1.0, 2.0, 4.0, 5.0])
def test_phi_is_the_logarithm_of_the_normal_tail(deviations: float) -> None:
    tail = NormalDist().cdf(-deviations)
    assert 10 ** -phi_of(deviations) == pytest.approx(tail, rel=1e-6)


def test_phi_grows_with_silence_and_stays_finite() -> None:
    values = [phi_of(d / 10) for d in range(-400, 1000)]
    assert values == sorted(values)
    assert values[-1] == PHI_MAX


@pytest.mark.parametrize("phi", [0.5, 1.0, 3.0, 8.0, 16.0, 200.0])
def test_the_limit_in_deviations_is_the_inverse_of_phi(phi: float) -> None:
    assert phi_of(deviations_of(phi)) == pytest.approx(phi, rel=1e-9)


@given(
    intervals=st.lists(st.integers(1, 10_000_000), min_size=1, max_size=60),
    window_count=st.integers(2, 20),
)
def test_mean_and_deviation_are_those_of_the_last_intervals(
    intervals: list[int], window_count: int
) -> None:
    detector = FailureDetector(
        PhiSettings(threshold=250, window_count=window_count, deviation_min_s=1e-9)
    )
    detector._limit = 1e15  # No interval is cut.
    detector.heartbeat("b", 0.0)
    for interval in intervals:
        detector._rhythms["b"].last_s = 0.0
        detector.heartbeat("b", interval / 1e6)
    made_up = [1_000_000, 3_000_000]
    window = [i / 1e6 for i in (made_up + intervals)[-window_count:]]
    rhythm = detector._rhythms["b"]
    assert len(rhythm.intervals) == len(window)
    # A float may fall a microsecond short of what was meant.
    assert rhythm.mean_s == pytest.approx(fmean(window), abs=1.1e-6)
    assert rhythm.deviation_s == pytest.approx(pstdev(window), abs=1.1e-6)


def test_sums_are_exact_after_many_beats() -> None:
    detector = FailureDetector(PhiSettings(window_count=50))
    rng = Random("beats")
    now_s = 0.0
    for _ in range(100_000):
        now_s += rng.uniform(0.5, 1.5)
        detector.heartbeat("b", now_s)
    rhythm = detector._rhythms["b"]
    assert rhythm.sum == sum(rhythm.intervals)
    assert rhythm.square_sum == sum(i * i for i in rhythm.intervals)
    assert len(rhythm.intervals) == 50


def test_a_dead_peer_is_suspected_and_stays_so() -> None:
    detector = FailureDetector()
    last_s = beating(detector, 100)
    silence_s = suspected_after(detector, last_s)
    assert 3 < silence_s < 5
    assert silence_s == pytest.approx(detector.patience_s("b"), abs=0.02)
    assert detector.phi("b", last_s + silence_s) == pytest.approx(8, abs=0.2)
    assert detector.is_suspect("b", last_s + 1e6)


def test_a_peer_heard_once_is_suspected_from_the_first_interval() -> None:
    detector = FailureDetector(PhiSettings(first_interval_s=2))
    detector.heartbeat("b", 100.0)
    assert not detector.is_suspect("b", 104.0)
    assert detector.is_suspect("b", 108.0)


def test_a_perfect_rhythm_is_not_broken_by_one_late_beat() -> None:
    detector = FailureDetector(PhiSettings(deviation_min_s=0.5))
    last_s = beating(detector, 5000)
    assert detector._rhythms["b"].deviation_s < 0.05  # Nearly no deviation was measured.
    assert not detector.is_suspect("b", last_s + 3)
    eager = FailureDetector(PhiSettings(deviation_min_s=0.01))
    beating(eager, 5000)
    assert eager.is_suspect("b", last_s + 3)


def test_an_irregular_rhythm_is_given_more_time() -> None:
    rng = Random("irregular")
    regular, irregular = FailureDetector(), FailureDetector()
    now_s = 0.0
    for i in range(500):
        regular.heartbeat("b", float(i))
        irregular.heartbeat("b", now_s)
        now_s += rng.uniform(0, 5)
    assert irregular.patience_s("b") > 2 * regular.patience_s("b")


def test_the_threshold_orders_the_times() -> None:
    times = []
    for threshold in (1, 4, 8, 12):
        detector = FailureDetector(PhiSettings(threshold=threshold))
        times.append(suspected_after(detector, beating(detector, 50)))
    assert times == sorted(times)
    assert len(set(times)) == 4


def test_a_heartbeat_ends_a_suspicion() -> None:
    detector = FailureDetector()
    last_s = beating(detector, 20)
    assert detector.is_suspect("b", last_s + 60)
    detector.heartbeat("b", last_s + 60)
    assert not detector.is_suspect("b", last_s + 61)


def test_a_long_death_does_not_make_the_detector_blind() -> None:
    detector = FailureDetector()
    last_s = beating(detector, 20)
    before_s = detector.patience_s("b")
    detector.heartbeat("b", last_s + 3600)
    assert detector.patience_s("b") < before_s * 1.5


def test_a_peer_that_became_slower_is_believed_after_a_few_beats() -> None:
    detector = FailureDetector()
    now_s = beating(detector, 100)
    falsely = 0
    for _ in range(60):
        now_s += 8
        falsely += detector.is_suspect("b", now_s)
        detector.heartbeat("b", now_s)
    assert 0 < falsely < 15
    assert not detector.is_suspect("b", now_s + 8)


def test_a_refused_connection_suspects_at_once_until_the_next_heartbeat() -> None:
    detector = FailureDetector()
    last_s = beating(detector, 20)
    assert not detector.is_suspect("b", last_s)
    detector.mark_unreachable("b")
    assert detector.is_suspect("b", last_s)
    assert detector.phi("b", last_s) == inf
    detector.heartbeat("b", last_s + 1)
    assert not detector.is_suspect("b", last_s + 1)
    assert detector.phi("b", last_s + 1) < 8


def test_a_peer_that_is_not_watched_is_not_suspected() -> None:
    detector = FailureDetector()
    detector.mark_unreachable("b")
    assert not detector.is_suspect("b", 1e9)
    assert detector.phi("b", 1e9) == 0
    assert detector.patience_s("b") == inf
    beating(detector, 5)
    detector.forget("b")
    assert not detector.is_suspect("b", 1e9)


def test_a_restart_begins_anew() -> None:
    detector = FailureDetector()
    for i in range(100):
        detector.heartbeat("b", i * 9.0)
    slow_s = detector.patience_s("b")
    detector.mark_unreachable("b")
    detector.restart("b", 5000.0)
    assert not detector.is_suspect("b", 5000.0)
    assert detector.patience_s("b") < slow_s


def test_a_pause_of_this_process_suspects_nobody() -> None:
    detector = FailureDetector()
    last_s = beating(detector, 100)
    # The loop stood still for a minute just after the last heartbeat.
    assert detector.is_suspect("b", last_s + 60)
    detector.observe_local_pause(60)
    assert not detector.is_suspect("b", last_s + 60)
    assert detector.phi("b", last_s + 60) < 1


def test_a_peer_that_died_in_a_pause_is_suspected_afterwards() -> None:
    detector = FailureDetector()
    last_s = beating(detector, 100)
    detector.observe_local_pause(60)
    assert suspected_after(detector, last_s + 60) == pytest.approx(
        detector.patience_s("b"), abs=0.02
    )


def test_a_pause_does_not_spoil_the_rhythm() -> None:
    detector = FailureDetector()
    last_s = beating(detector, 100)
    before_s = detector.patience_s("b")
    detector.observe_local_pause(60)
    detector.heartbeat("b", last_s + 61)
    assert detector.patience_s("b") == pytest.approx(before_s, abs=0.01)


def test_a_heartbeat_within_a_pause_that_is_reported_late_delays_nothing() -> None:
    """Packets that queued up may be read before the loop has seen that it was late."""
    detector = FailureDetector()
    last_s = beating(detector, 100)
    detector.heartbeat("b", last_s + 60)
    detector.observe_local_pause(60)
    assert not detector.is_suspect("b", last_s + 60)
    assert suspected_after(detector, last_s + 60) <= detector.patience_s("b") + 0.02


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 0},
        {"threshold": 300},
        {"window_count": 1},
        {"first_interval_s": 0},
        {"deviation_min_s": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        PhiSettings(**wrong)


def test_a_negative_pause_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        FailureDetector().observe_local_pause(-1)


@pytest.mark.parametrize("jitter_s", [0.0, 0.2, 0.5, 1.0])
def test_jitter_makes_few_false_suspicions(jitter_s: float) -> None:
    """20,000 beats of one peer, each sent after a second and late by an exponential delay."""
    detector = FailureDetector()
    rng = Random(f"jitter-{jitter_s}")
    arrivals = sorted(i + (rng.expovariate(1 / jitter_s) if jitter_s else 0) for i in range(20_000))
    falsely = 0
    for at_s in arrivals:
        falsely += detector.is_suspect("b", at_s)
        detector.heartbeat("b", at_s)
    print(f"jitter {jitter_s} s: {falsely} of {len(arrivals)} beats came after a suspicion")
    assert falsely == 0


def test_a_touch_begins_the_silence_anew_and_teaches_no_rhythm() -> None:
    touched, alone = FailureDetector(), FailureDetector()
    for detector in (touched, alone):
        beating(detector, 30)
    for i in range(1, 1001):
        touched.touch("b", 29 + i / 100)
    assert touched.patience_s("b") == alone.patience_s("b")
    assert alone.is_suspect("b", 39)
    assert not touched.is_suspect("b", 39)
    assert touched.phi("b", 39) < 1
    assert suspected_after(touched, 39) == pytest.approx(alone.patience_s("b"), abs=0.011)


def test_the_interval_between_heartbeats_is_recorded_whole_whatever_was_heard_between() -> None:
    touched, alone = FailureDetector(), FailureDetector()
    for detector in (touched, alone):
        last_s = beating(detector, 30)
        if detector is touched:
            detector.touch("b", last_s + 1.5)
        detector.heartbeat("b", last_s + 2)
    assert touched.patience_s("b") == alone.patience_s("b")


def test_a_touch_ends_a_mark_and_begins_no_watch() -> None:
    detector = FailureDetector()
    detector.touch("b", 0)
    assert detector.phi("b", 1e6) == 0
    detector.heartbeat("b", 0)
    detector.mark_unreachable("b")
    detector.touch("b", 1)
    assert not detector.is_suspect("b", 1)


def test_a_touch_in_the_past_takes_no_patience_away() -> None:
    detector = FailureDetector()
    last_s = beating(detector, 30)
    detector.touch("b", last_s - 10)
    assert suspected_after(detector, last_s) == pytest.approx(detector.patience_s("b"), abs=0.011)


def test_a_touch_within_a_pause_counts_from_its_end() -> None:
    detector = FailureDetector()
    last_s = beating(detector, 30)
    detector.touch("b", last_s + 100)
    detector.observe_local_pause(100)
    detector.is_suspect("b", last_s + 100)
    assert suspected_after(detector, last_s + 100) == pytest.approx(
        detector.patience_s("b"), abs=0.011
    )
