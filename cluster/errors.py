"""What can go wrong between nodes: the root of the package's errors.

Each module that can fail has its own errors under this root, with fields for what a caller needs.
"""

from __future__ import annotations


class ClusterError(Exception):
    """The root of every error that `cluster` raises on purpose."""
