"""Admission of writes: whether the node takes them now, holds them back, or refuses them.

It is not where they are refused: whoever executes a write asks `Node.refusal`, and `Gate.is_stalled` for whether it
has to wait. Reads go on in any case. What it looks at, and what comes of it:

    free disk, once a second, after each job, and whenever the log has grown by a part of what is kept free
        more of it in use than `storage.disk_used_max`, or the log could not be written      -> refused: DISK_FULL
        memory is full, and jobs or freezes fail          -> refused: MEMORY_FULL
    the store's urgency, after each tick that wrote, each job, and at the end of a delay
        a delay or a stop, as `throttle` has it           -> held back; they run again when it is over

It knows neither the log nor the worker: `is_log_full` and which jobs are failing are told by those who do.

Core: the clock and the disk are the node's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from engine.errors import DiskError
from respkv.reply import ReplyError
from respkv.throttle import Throttle

if TYPE_CHECKING:
    from respkv.node import Node

# What compaction leaves of the room that writes may not take, and after how much of the log it is looked at again.
ROOM_KEPT_BYTES: Final = 64 << 20
LOOK_BYTES_MIN: Final = 64 << 10
LOOK_BYTES_MAX: Final = 8 << 20
DISK_FULL: Final = ReplyError(
    "MISCONF The disk that holds the data is nearly full: writes are refused until there is room. Reads go on."
)
MEMORY_FULL: Final = ReplyError(
    "MISCONF Memory is full and cannot be written to the disk (the node's log says why): writes are refused until it "
    "can. Reads go on."
)


class Admission:
    """One per node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._gate = node.runner.gate
        self._store = node.store
        self._clock_ns = node.clock_ns
        self.throttle = Throttle()
        self.is_log_full = False  # The disk did not take all that was applied.
        self.are_flushes_failing = self.are_compactions_failing = False
        self.check_position = 0  # Of the log: beyond it, look at the disk again.
        self.disk_bytes = 0  # As they were found last.
        self.disk_free_bytes = 0
        self._is_retry_due = False  # Of the writes that wait for the end of a stall.

    def check_stall(self) -> None:
        """While too much waits for the worker, writes wait too, and reads go on."""
        gate = self._gate
        is_held = self.throttle.update(self._clock_ns() / 1e9, is_stopped=self._store.is_stalled)
        if is_held:
            self._node.ticker.wake()  # It may be a delay, which ends by itself.
        if gate.is_stalled == is_held:
            return
        gate.is_stalled = is_held
        self._node.observe_changed()
        if not is_held:
            gate.try_again(self._node.now_ms())

    def check_disk(self) -> None:
        """Refuse writes before the disk is full, and take them again when there is room."""
        store, node = self._store, self._node
        disk = store.disk
        try:
            free = self.disk_free_bytes = disk.free_bytes()
            self.disk_bytes = disk.total_bytes()
        except DiskError:
            return
        kept = self._kept_bytes
        self.check_position = store.log.position + max(
            LOOK_BYTES_MIN, min(LOOK_BYTES_MAX, kept // 8)
        )
        if free < kept or self.is_log_full:
            reason: ReplyError | None = DISK_FULL
        elif self._waits_in_vain:
            reason = MEMORY_FULL
        else:
            reason = None
        if reason is node.refusal:
            return
        if reason is None:
            node.log.info("writes are taken again", free_bytes=free)
        else:
            node.log.error("writes are refused", reason=reason.line.decode(), free_bytes=free)
        node.refusal = reason
        # Not now: this may be the end of a tick, and what runs now would be answered unlogged.
        self._is_retry_due = True

    @property
    def _kept_bytes(self) -> int:
        """What writes leave free."""
        return int((1.0 - self._node.config.storage.disk_used_max) * self.disk_bytes)

    @property
    def _waits_in_vain(self) -> bool:
        """The worker cannot do what writes are held back for: they may wait for long."""
        store = self._store
        if store.waits_for_flush and (self.are_flushes_failing or store.freeze_failure):
            return True
        return store.waits_for_compaction and self.are_compactions_failing

    def retry(self, now_ms: int) -> None:
        """Between two ticks: run what waited, if `check_disk` has found a change since the last time."""
        if self._is_retry_due:
            self._is_retry_due = False
            self._gate.try_again(now_ms)

    def room_bytes(self) -> int:
        """What a compaction may fill: more than writes may, since it is what gives room."""
        try:
            return max(
                0, self._store.disk.free_bytes() - min(ROOM_KEPT_BYTES, self._kept_bytes // 2)
            )
        except DiskError:
            return 0
