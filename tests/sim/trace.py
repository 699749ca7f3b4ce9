"""What was delivered in a run, as one digest: two runs of a seed are the same if their digests are.

Each delivery goes in with its time, number, source, destination and bytes. The last ones are kept as text,
for a look at what two runs did differently.

Core.
"""

from __future__ import annotations

import hashlib
from collections import deque

KEPT = 2000


class Trace:
    """A digest that grows."""

    def __init__(self) -> None:
        self.count = 0
        self._last: deque[tuple[str, bytes]] = deque(maxlen=KEPT)
        self._hash = hashlib.blake2b(digest_size=16)

    def record(self, tick: int, source: str, target: str, data: bytes) -> None:
        """Something arrives in a millisecond."""
        self.count += 1
        head = f"{tick} {self.count} {source}>{target} {len(data)} "
        self._hash.update(head.encode())
        self._hash.update(data)
        self._last.append((head, data[:200]))

    @property
    def lines(self) -> list[str]:
        return [head + repr(data) for head, data in self._last]

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()
