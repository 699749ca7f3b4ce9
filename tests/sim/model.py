"""What commands do to some keys, one after the other: the obvious implementation, with keys of several commands.

`linearizable.step` knows one key and is used in a search; this knows what a session does to keys that
nobody else touches.

Core.
"""

from __future__ import annotations

from tests.sim import linearizable
from tests.sim.history import Reply

State = dict[bytes, bytes]


def step(state: State, args: tuple[bytes, ...]) -> tuple[State, Reply]:
    """The state after a command, and its reply. The state that is given stays as it is."""
    name, words = args[0], args[1:]
    if name in (b"RENAME", b"RENAMENX"):
        source, target = words
        if name == b"RENAMENX" and target in state:
            return state, 0
        after = {key: value for key, value in state.items() if key != source}
        after[target] = state[source]
        return after, b"OK" if name == b"RENAME" else 1
    if name == b"MGET":
        return state, [state.get(key) for key in words]
    if name == b"MSET":
        return state | dict(zip(words[::2], words[1::2], strict=True)), b"OK"
    if name in (b"DEL", b"EXISTS"):
        count = sum(key in state for key in words)
        if name == b"EXISTS":
            return state, count
        return {key: value for key, value in state.items() if key not in words}, count
    value, reply = linearizable.step(state.get(words[0]), args)
    after = {key: old for key, old in state.items() if key != words[0]}
    if value is not None:
        after[words[0]] = value
    return after, reply
