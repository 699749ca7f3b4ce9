"""`python -m tests.crash.launch_with_lazy_log serve ...`: respkv that keeps the log's last bytes to itself.

A planted bug, so that a test of `kill -9` can show that it would notice one: what is appended to the
log reaches the kernel only once there is enough of it.
"""

from __future__ import annotations

import sys

from engine.disk import RealFile
from respkv.cli import main

ENOUGH_BYTES = 128 * 1024

append_now = RealFile.append
waiting: dict[str, bytes] = {}


def append(self: RealFile, data: bytes) -> None:
    """Claim that it is done."""
    if not self.name.endswith(".log"):
        append_now(self, data)
        return
    data = waiting.pop(self.name, b"") + data
    if len(data) < ENOUGH_BYTES:
        waiting[self.name] = data
    else:
        append_now(self, data)


if __name__ == "__main__":
    RealFile.append = append  # type: ignore[method-assign]
    sys.exit(main())
