"""What a history must not show. Each checker is a function from operations to findings, none if all is well.

They do not depend on each other, and each knows one promise; which of them hold in a run is the caller's
business. All allow for unknown outcomes: such a write may take effect at any later time, or never.
Operations that were refused, or whose form a checker does not know, it leaves alone.

The workloads (`workload.py`) see to it that values are unique, so a value names the write that made it.

    check_registers   no read shows what an acknowledged write had replaced before the read began
    check_sessions    each session reads its own writes, and never goes back
    check_appends     each acknowledged token is there once, in order, and all reads agree on it
    check_counters    a count is the sum of its increments, unknown ones bracketed
    check_locks       SET NX is held by one at a time
    check_private     what a session does to keys of its own is as if there were nobody else
    check_transfers   transactions on two keys are seen whole
    check_tokens      what is renamed is always somewhere, and twice only where nobody knows what was done
    check_leases      what expires is there until then, and not after it
    check_order       replies come in the order of the commands
    check_linearity   one order explains each key (`linearizable.py`)
    check_convergence all replicas of a slot hold the same

Core.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tests.sim import linearizable, model
from tests.sim.history import FOREVER, History, Operation, Reply
from tests.sim.linearizable import Verdict

LINEARITY_OPERATIONS_MAX: Final = 200
SHOWN_MAX: Final = 6


@dataclass(frozen=True, slots=True)
class Finding:
    """A promise that was broken, and what shows it."""

    promise: str
    key: bytes
    text: str
    operations: tuple[Operation, ...] = ()

    def __str__(self) -> str:
        shown = "".join(f"\n    {operation}" for operation in self.operations[:SHOWN_MAX])
        return f"{self.promise}: key {self.key.decode('latin-1')}: {self.text}{shown}"


Checker = Callable[[History], list[Finding]]


def with_only(history: History, names: Iterable[bytes]) -> dict[bytes, list[Operation]]:
    """The keys to which nothing was done but these commands."""
    allowed = set(names)
    return {
        key: operations
        for key, operations in history.by_key().items()
        if all(operation.name in allowed for operation in operations)
    }


# Registers


def _registers(history: History) -> dict[bytes, list[Operation]]:
    """Keys of plain SET and GET, with operations."""
    return {
        key: operations
        for key, operations in with_only(history, (b"SET", b"GET")).items()
        if all(op.name == b"GET" or len(op.args) == 3 for op in operations)
    }


def _writes(operations: Iterable[Operation]) -> dict[bytes, Operation]:
    writes = [operation for operation in operations if operation.name == b"SET"]
    by_value = {write.args[2]: write for write in writes}
    assert len(by_value) == len(writes), "values must be unique"
    return by_value


def _reads(operations: Iterable[Operation]) -> list[Operation]:
    return [op for op in operations if op.name == b"GET" and op.is_acknowledged]


def check_registers(history: History, *, sessions: Sequence[int] | None = None) -> list[Finding]:
    """No read shows what was replaced before it began, or what nobody wrote.

    With `sessions` only their reads are judged: those of an audit after the end say whether an
    acknowledged write was lost, also where reads in between may be stale.
    """
    findings = []
    for key, operations in _registers(history).items():
        writes = _writes(operations)
        acknowledged = [write for write in writes.values() if write.is_acknowledged]
        for read in _reads(operations):
            if sessions is not None and read.session not in sessions:
                continue
            before = [write for write in acknowledged if write.precedes(read)]
            if read.reply is None:
                if before:
                    findings.append(
                        Finding("no lost write", key, "a write is gone", (before[-1], read))
                    )
                continue
            assert isinstance(read.reply, bytes)
            source = writes.get(read.reply)
            if source is None or read.end < source.begin:
                findings.append(Finding("no invented value", key, "nobody wrote this", (read,)))
                continue
            later = next((write for write in before if source.precedes(write)), None)
            if later is not None:
                text = "a read shows what was replaced"
                findings.append(Finding("no lost write", key, text, (source, later, read)))
    return findings


def check_sessions(history: History) -> list[Finding]:
    """Read your writes, and monotonic reads: what a session knew of a key it never forgets."""
    findings = []
    for key, operations in _registers(history).items():
        writes = _writes(operations)
        sessions: dict[int, list[Operation]] = {}
        for operation in operations:
            if operation.is_acknowledged:
                sessions.setdefault(operation.session, []).append(operation)
        for own in sessions.values():
            findings += _check_session(key, own, writes)
    return findings


def _check_session(
    key: bytes, operations: list[Operation], writes: Mapping[bytes, Operation]
) -> list[Finding]:
    findings = []
    known: dict[
        Operation, Operation
    ] = {}  # A write, and how the session learned of it, the last at the end.
    for operation in sorted(operations, key=lambda each: each.number):
        if operation.name == b"SET":
            known[operation] = operation
            continue
        if operation.reply is None:
            if known:
                write, by = next(reversed(known.items()))
                text = "a session no longer sees anything"
                findings.append(Finding("session", key, text, (write, by, operation)))
            continue
        assert isinstance(operation.reply, bytes)
        source = writes.get(operation.reply)
        if source is None:
            continue  # `check_registers` tells.
        if source.session == operation.session and source.number > operation.number:
            text = "a session sees what it asks for later"
            findings.append(Finding("session", key, text, (operation, source)))
        for write, by in known.items():
            if source.precedes(write):
                text = "a session sees less than before"
                findings.append(Finding("session", key, text, (source, write, by, operation)))
                break
        if source in known and next(reversed(known)) is not source:
            text = "a session sees again what it had seen replaced"
            other = next(reversed(known))
            findings.append(Finding("session", key, text, (source, other, operation)))
        known.pop(source, None)
        known[source] = operation
    return findings


# Appends


def tokens_of(value: bytes) -> list[bytes]:
    """The tokens of a value made by APPEND, each of which ends with a semicolon."""
    return value.split(b";")[:-1] if value.endswith(b";") else value.split(b";")


def check_appends(history: History) -> list[Finding]:
    """Every read is the beginning of one sequence of tokens, which has each acknowledged one once and in order."""
    findings = []
    for key, operations in with_only(history, (b"APPEND", b"GET")).items():
        appends = {op.args[2].rstrip(b";"): op for op in operations if op.name == b"APPEND"}
        if not appends or not all(op.args[2].endswith(b";") for op in appends.values()):
            continue
        whole: list[bytes] = []
        for read in _reads(operations):
            assert read.reply is None or isinstance(read.reply, bytes)
            tokens = tokens_of(read.reply) if read.reply else []
            findings += _check_tokens(key, tokens, appends, read)
            shorter, longer = sorted((whole, tokens), key=len)
            if longer[: len(shorter)] != shorter:
                findings.append(Finding("appends", key, "two reads contradict each other", (read,)))
            whole = longer
    return findings


def _check_tokens(
    key: bytes, tokens: list[bytes], appends: Mapping[bytes, Operation], read: Operation
) -> list[Finding]:
    findings = []
    for token, count in Counter(tokens).items():
        if token not in appends:
            findings.append(Finding("appends", key, f"nobody wrote {token!r}", (read,)))
        elif count > 1:
            text = f"{token!r} is there {count} times"
            findings.append(Finding("appends", key, text, (appends[token], read)))
    if findings:
        return findings
    present = set(tokens)
    for token, append in appends.items():
        if append.precedes(read) and append.is_acknowledged and token not in present:
            findings.append(Finding("appends", key, f"{token!r} is lost", (append, read)))
    end_of_later = FOREVER  # The earliest end among what stands behind.
    last = None
    for token in reversed(tokens):
        append = appends[token]
        if end_of_later < append.begin and last is not None:
            findings.append(Finding("appends", key, "out of order", (append, last, read)))
        if append.end < end_of_later:
            end_of_later, last = append.end, append
    return findings


# Counters


def check_counters(history: History) -> list[Finding]:
    """Each value seen is at least what was acknowledged before, and at most what had been asked for.

    For keys of GET, INCR and INCRBY with positive amounts.
    """
    findings = []
    for key, operations in with_only(history, (b"INCR", b"INCRBY", b"GET")).items():
        increments = [op for op in operations if op.name != b"GET"]
        if not increments:
            continue
        for operation in operations:
            if not operation.is_acknowledged:
                continue
            if isinstance(operation.reply, bytes) and not operation.reply.isdigit():
                findings.append(Finding("counters", key, "this is no number", (operation,)))
                continue
            value = int(operation.reply or 0)  # type: ignore[arg-type]
            own = amount_of(operation)
            least = own + sum(amount_of(op) for op in increments if op.precedes(operation))
            most = sum(amount_of(op) for op in increments if op.begin < operation.end)
            if not least <= value <= most:
                text = f"{value} is not from {least} to {most}"
                findings.append(Finding("counters", key, text, (operation,)))
    return findings


def amount_of(operation: Operation) -> int:
    """By how much an operation increments."""
    if operation.name == b"INCR":
        return 1
    return int(operation.args[2]) if operation.name == b"INCRBY" else 0


# Locks


def check_locks(history: History) -> list[Finding]:
    """Between the reply to a holder's SET NX and its DEL nobody else gets the lock.

    A DEL with an unknown outcome may free the lock of a later holder; so a key is judged up to the
    first of those only. Keys on which anybody may do anything may look like locks; they are judged elsewhere.
    """
    findings = []
    for key, operations in with_only(history, (b"SET", b"SETNX", b"GET", b"DEL")).items():
        acquired = [op for op in operations if _acquires(op)]
        if key.startswith(b"change:") or not _is_lock(operations):
            continue
        dels = [op for op in operations if op.name == b"DEL"]
        horizon = min((op.begin for op in dels if not op.is_acknowledged), default=FOREVER)
        holds = [
            (op, min([each.begin for each in dels if _releases(each, op)] or [FOREVER]))
            for op in acquired
            if op.end < horizon
        ]
        for place, (op, until) in enumerate(holds):
            for other, other_until in holds[:place]:
                if max(op.end, other.end) < min(until, other_until):
                    findings.append(Finding("locks", key, "held by two at a time", (other, op)))
    return findings


def _is_lock(operations: Sequence[Operation]) -> bool:
    """Whether only SET NX or SETNX was asked for, and DEL only by who had got it."""
    holders = {op.session for op in operations if _acquires(op)}
    return all(op.args[3:] == (b"NX",) for op in operations if op.name == b"SET") and all(
        op.session in holders for op in operations if op.name == b"DEL"
    )


def _acquires(operation: Operation) -> bool:
    if operation.name == b"SETNX":
        return operation.reply == 1
    return operation.args[3:] == (b"NX",) and operation.reply == b"OK"


def _releases(release: Operation, acquired: Operation) -> bool:
    return release.session == acquired.session and release.number > acquired.number


# Several keys


def check_private(history: History) -> list[Finding]:
    """Keys with the tag `{private...}` belong to one session: each reply is what a single-threaded server would say.

    A group of keys is judged up to the first operation of which nobody knows whether it was done.
    """
    findings = []
    groups: dict[bytes, list[Operation]] = {}
    for operation in history.operations:
        if operation.key.startswith(b"{private:") and not operation.is_refused:
            groups.setdefault(operation.key.partition(b"}")[0], []).append(operation)
    for tag, operations in groups.items():
        state: model.State = {}
        for operation in sorted(operations, key=lambda each: each.number):
            if not operation.is_acknowledged:
                break
            before = state
            state, reply = _step(state, operation)
            if reply != operation.reply:
                text = f"should answer {reply!r} where {before!r} is"
                findings.append(Finding("private", tag, text, (operation,)))
                break
    return findings


def _step(state: model.State, operation: Operation) -> tuple[model.State, Reply]:
    if operation.name != b"EXEC":
        return model.step(state, operation.args)
    replies = []
    for text in operation.args[2:]:
        state, reply = model.step(state, tuple(text.split(b" ")))
        replies.append(reply)
    return state, replies


def check_transfers(history: History) -> list[Finding]:
    """Each transaction on a pair of keys leaves their sum at 0, and none that reads all of several sees another sum."""
    findings = []
    for operation in history.operations:
        is_transfer = operation.name == b"EXEC" and operation.key.startswith(b"pair")
        if not is_transfer or not operation.is_acknowledged:
            continue
        if operation.key.startswith(b"pairs") and not operation.args[2].startswith(b"GET"):
            continue  # It shows a part of them.
        assert isinstance(operation.reply, list)
        total = sum(int(each or 0) for each in operation.reply)  # type: ignore[arg-type,misc]
        if total:
            text = f"the sum is {total}"
            findings.append(Finding("transfers", operation.key, text, (operation,)))
    return findings


def check_tokens(history: History, sessions: Sequence[int] | None = None) -> list[Finding]:
    """A value that is only renamed is in one of its keys at each moment, and in one only unless a RENAME is under way.

    One of which nobody knows whether it was done may leave one more. With `sessions` only their looks are judged.
    """
    groups: dict[bytes, list[Operation]] = {}
    for operation in history.operations:
        if operation.key.startswith(b"{token:") and not operation.is_refused:
            name = operation.key if operation.name == b"EXEC" else operation.key.rpartition(b":")[0]
            groups.setdefault(name, []).append(operation)
    findings = []
    for name, operations in groups.items():
        made = next((op for op in operations if op.name == b"SET"), None)
        moves = [
            op
            for op in operations
            if op.name in (b"RENAME", b"RENAMENX") and not op.error.startswith(b"ERR no such key")
        ]
        for look in operations:
            if look.name != b"EXEC" or not look.is_acknowledged:
                continue
            if sessions is not None and look.session not in sessions:
                continue
            assert isinstance(look.reply, list)
            count = sum(each is not None for each in look.reply)
            under_way = [op for op in moves if op.begin < look.end and not op.precedes(look)]
            if not count and made is not None and made.is_acknowledged and made.precedes(look):
                findings.append(Finding("tokens", name, "it is lost", (made, *moves[-3:], look)))
            if count > 1 + len(under_way):
                text = f"it is there {count} times"
                findings.append(Finding("tokens", name, text, (*moves[-4:], look)))
    return findings


# Time


def check_leases(history: History, skew_s: float) -> list[Finding]:
    """What was to expire is there until then, and not after it.

    `skew_s`: how far a machine's clock was off at most. For keys that one session wrote, by SET with PX, or by
    SET and then PEXPIRE.
    """
    findings = []
    for key, operations in history.by_key().items():
        if not key.startswith(b"lease:"):
            continue
        last = next((op for op in reversed(operations) if op.name != b"GET"), None)
        if last is None or not last.is_acknowledged:
            continue
        if last.name == b"SET" and len(last.args) == 3:
            continue
        if last.reply == 0:
            findings.append(Finding("leases", key, "gone already", tuple(operations)))
            continue
        ttl_s = int(last.args[-1]) / 1000
        for read in operations:
            if read.name != b"GET" or not read.is_acknowledged or not last.precedes(read):
                continue
            if read.reply is None and read.ended_s + 2 * skew_s < last.began_s + ttl_s:
                findings.append(Finding("leases", key, "gone too early", (last, read)))
            if read.reply is not None and read.began_s - 2 * skew_s > last.ended_s + ttl_s:
                findings.append(Finding("leases", key, "there too long", (last, read)))
    return findings


# Sessions, one order, replicas


def check_order(history: History) -> list[Finding]:
    """Each reply belongs to its command: an ECHO among others answers its own argument."""
    return [
        Finding("order", op.key, "this is the reply of another command", (op,))
        for op in history.operations
        if op.name == b"ECHO" and op.is_acknowledged and op.reply != op.args[1]
    ]


def check_linearity(history: History, undecided: Counter[str] | None = None) -> list[Finding]:
    """Each key of at most 200 operations is linearizable. What could not be decided is counted."""
    findings = []
    for key, operations in with_only(history, linearizable.COMMANDS).items():
        if key.startswith(b"lease:"):
            continue  # What expires by itself.
        is_short = len(operations) <= LINEARITY_OPERATIONS_MAX
        verdict = linearizable.check(operations) if is_short else Verdict.UNDECIDED
        if undecided is not None:
            undecided[verdict.value] += 1
        if verdict is Verdict.VIOLATED:
            text = f"no order explains its {len(operations)} operations"
            findings.append(Finding("linearizable", key, text, tuple(operations)))
    return findings


Content = Mapping[tuple[int, bytes], object]
"""What a replica holds: live versions, in any form that compares, by slot and row."""


def check_convergence(
    replicas: Mapping[str, Content], owners: Callable[[int], Iterable[str]]
) -> list[Finding]:
    """All replicas of a slot hold the same live versions of each row."""
    findings = []
    for slot, row in sorted({place for content in replicas.values() for place in content}):
        names = [name for name in owners(slot) if name in replicas]
        held = {name: replicas[name].get((slot, row)) for name in names}
        if any(held[name] != held[names[0]] for name in names[1:]):
            text = ", ".join(f"{name} {content!r}" for name, content in held.items())
            findings.append(Finding("convergence", row, f"slot {slot}: {text}"))
    return findings
