"""`respkv status`: how each node is, and whether the cluster is healthy.

One node is asked who the members are (KV.NODES) and what is served (KV.RING); then each member is asked for
itself (INFO, KV.NODES). So a partition shows as nodes that see fewer than there are.

    healthy     each member answers, sees all others, and is complete
    degraded    something is wrong with a node, and the node that was asked can serve every key
    failing     it cannot: some keys have too few replicas within its reach

Core: what was answered in, text out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from respkv.tools.progress import bytes_text
from respkv.tools.redis_cli import fields
from respkv.tools.ring import Ring, served_line

WIDTH: Final = 80
HEALTHY: Final = "healthy"
DEGRADED: Final = "degraded"
FAILING: Final = "failing"
EXIT_STATUS: Final = {HEALTHY: 0, DEGRADED: 1, FAILING: 2}
COLUMNS: Final = (
    ("node", -14), ("state", -10), ("sees", 5), ("keys", 8), ("ops/s", 6), ("memory", 8), ("disk", 8), ("lag", 5),
    ("version", 7),
)  # fmt: skip


@dataclass(slots=True)
class NodeStatus:
    """One member. What it did not tell is None; `failure` says why."""

    name: str
    host: str
    port: int
    state: str  # As the node that was asked sees it: up, incomplete, down.
    is_asked: bool = False
    failure: str = ""
    sees: int | None = None  # How many members it reaches, itself included.
    is_complete: bool | None = None
    is_clock_off: bool | None = None
    refuses_writes: bool | None = None
    keys: int | None = None  # Of its replicas, of all databases.
    ops_per_s: int | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    lag_slots: int | None = None  # In which it knows that it lacks something.
    version: str | None = None
    problems: list[str] = field(default_factory=list)


def members_of(reply: Any) -> list[NodeStatus]:
    """The members, from what KV.NODES answers."""
    return [
        NodeStatus(
            each["name"].decode(), each["host"].decode(), each["port"], each["state"].decode(),
            is_asked=bool(each["myself"]),
        )
        for each in map(fields, reply)
    ]  # fmt: skip


def add_answers(node: NodeStatus, info: bytes, nodes: Any) -> None:
    """Take what a member says of itself: INFO everything, and KV.NODES."""
    told = info_of(info)
    node.sees = sum(1 for each in map(fields, nodes) if each["reachable"])
    node.is_complete = told.get("is_complete", "1") == "1"
    node.is_clock_off = told.get("is_clock_off", "0") == "1"
    node.refuses_writes = told.get("writes_refused", "0") not in ("0", "")
    node.keys = sum(
        int(value.split(",")[0].partition("=")[2])
        for name, value in told.items()
        if name.startswith("db") and value.startswith("keys=")
    )
    node.ops_per_s = _number(told, "instantaneous_ops_per_sec")
    node.memory_bytes = _number(told, "used_memory")
    node.disk_bytes = (_number(told, "log_bytes") or 0) + (_number(told, "table_bytes") or 0)
    node.lag_slots = _number(told, "exchange_slots_left") or 0
    node.version = told.get("respkv_version")


def info_of(text: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.decode("utf-8", "replace").splitlines())
    return {name: value for name, sign, value in pairs if sign and not name.startswith("#")}


def _number(told: dict[str, str], name: str) -> int | None:
    value = told.get(name, "")
    return int(value) if value.isdecimal() else None


def judge(nodes: list[NodeStatus], ring: Ring) -> tuple[str, list[str]]:
    """The verdict, and a line for each thing that is wrong."""
    count = len(nodes)
    for node in nodes:
        add = node.problems.append
        if node.failure:
            add(f"does not answer: {node.failure}")
        if node.state == "down":
            add("the node that was asked cannot reach it")
        if node.state == "incomplete" or node.is_complete is False:
            add("incomplete: it compares its data with others before it answers")
        if node.sees is not None and node.sees < count:
            add(f"reaches {node.sees} of {count} nodes")
        if node.is_clock_off:
            add("its clock is off, so it does not coordinate")
        if node.refuses_writes:
            add("refuses writes: its disk is nearly full, or cannot be written")
    problems = [f"{node.name}: {problem}" for node in nodes for problem in node.problems]
    if ring.slots_ok < ring.slots:
        return FAILING, [served_line(ring), *problems]
    return (DEGRADED if problems else HEALTHY), problems


def status_lines(
    nodes: list[NodeStatus], ring: Ring, verdict: str, problems: list[str]
) -> list[str]:
    """A table for people. Nothing in it but long names and addresses is wider than `WIDTH`."""
    lines = [
        f"cluster {ring.cluster}: {verdict}; {len(nodes)} nodes, n={ring.n} r={ring.r} w={ring.w}",
        "",
        _line([title for title, _ in COLUMNS]),
    ]
    for node in nodes:
        seen = None if node.sees is None else f"{node.sees}/{len(nodes)}"
        lines.append(
            _line(
                [
                    f"{'*' if node.is_asked else ' '} {node.name}",
                    node.state,
                    _shown(seen),
                    _shown(node.keys),
                    _shown(node.ops_per_s),
                    "-" if node.memory_bytes is None else _size(node.memory_bytes),
                    "-" if node.disk_bytes is None else _size(node.disk_bytes),
                    _shown(node.lag_slots),
                    _shown(node.version),
                ]
            )
        )
    if problems:
        lines += ["", *problems]
    lines += ["", "* was asked, and sees the states; lag: slots of which a node lacks something"]
    return lines


def status_json(
    nodes: list[NodeStatus], ring: Ring, verdict: str, problems: list[str]
) -> dict[str, Any]:
    """The same for scripts."""
    return {
        "cluster": ring.cluster,
        "verdict": verdict,
        "problems": problems,
        "slots": ring.slots,
        "slots_ok": ring.slots_ok,
        "nodes": [
            {name: getattr(node, name) for name in NodeStatus.__dataclass_fields__}
            for node in nodes
        ],
    }


def _line(cells: list[str]) -> str:
    shown = []
    for (_, width), cell in zip(COLUMNS, cells, strict=True):
        shown.append(f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}")
    return " ".join(shown).rstrip()


def _shown(value: object) -> str:
    return "-" if value is None else str(value)


def _size(count: int) -> str:
    return bytes_text(count).replace(" ", "")
