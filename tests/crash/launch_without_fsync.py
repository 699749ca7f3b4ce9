"""`python -m tests.crash.launch_without_fsync serve ...`: respkv that never forces anything to the disk.

A planted bug, so that a test of durability can show that it would notice one. Names are synced: it is
the content of files that nobody waits for.
"""

from __future__ import annotations

import sys

from engine.disk import RealFile
from respkv.cli import main


def sync(self: RealFile) -> None:
    """Claim that it is done."""


if __name__ == "__main__":
    RealFile.sync = sync  # type: ignore[method-assign]
    sys.exit(main())
