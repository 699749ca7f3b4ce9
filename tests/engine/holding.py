"""A codec that holds a job in its middle, for as long as a test wants.

The record of a row is the path of a file: while there is such a file, `fate` does not return.
"""

from __future__ import annotations

import os
import time

from engine.codec import Fate
from tests.engine.toy import SetCodec


class HoldingCodec(SetCodec):
    """Sets, except that it waits."""

    def fate(self, row: bytes, raw: bytes, now_ms: int) -> Fate:
        while os.path.exists(raw):
            time.sleep(0.01)
        return super().fate(row, raw, now_ms)


CODEC = HoldingCodec()
