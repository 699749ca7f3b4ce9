"""CLIENT TRACKING (to be written)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from respkv.command import Command
    from respkv.node import Node
    from respkv.session import Session


class Tracking:
    def __init__(self, node: Node) -> None:
        self.is_active = False

    def invalidate(self, effects: Any, flushed: set[int], session: Session) -> None: ...

    def remember(self, session: Session, command: Command, args: list[bytes]) -> None: ...

    def forget(self, session: Session) -> None: ...
