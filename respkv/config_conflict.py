"""Settings of which each is allowed, but not all together: what contradicts what, and the line that says so.

Bounds of one setting are its kind's (`setting.py`). Core: a function of the configuration.
"""

from __future__ import annotations

from respkv.node_config import Config
from respkv.setting import size_text


def conflict_of(config: Config) -> tuple[set[str], str] | None:
    """Return settings that contradict each other, with the line to say so, or None if none do."""
    memory, expiry = config.memory, config.expiry
    shares = memory.memtable_share + memory.row_cache_share + memory.block_cache_share
    if shares > 1 + 1e-9:
        return (
            {"memory.memtable_share", "memory.row_cache_share", "memory.block_cache_share"},
            "memory.memtable_share, memory.row_cache_share and memory.block_cache_share add up "
            f"to {shares:g}: must be at most 1",
        )
    if expiry.budget_ms > expiry.interval_ms:
        return (
            {"expiry.budget_ms", "expiry.interval_ms"},
            f"expiry.budget_ms = {expiry.budget_ms}: must be at most expiry.interval_ms "
            f"({expiry.interval_ms})",
        )
    siblings = config.siblings
    if siblings.soft_max > siblings.hard_max:
        return (
            {"siblings.soft_max", "siblings.hard_max"},
            f"siblings.soft_max = {siblings.soft_max}: must be at most siblings.hard_max "
            f"({siblings.hard_max})",
        )
    return _cluster_conflict_of(config)


def _cluster_conflict_of(config: Config) -> tuple[set[str], str] | None:
    cluster, count = config.cluster, config.owner_count
    if cluster.n > count:
        centres = {each.data_centre for each in config.nodes}
        nodes = "the smallest data centre's nodes" if len(centres) > 1 else "the number of nodes"
        weight = " with weight" if any(each.weight == 0 for each in config.nodes) else ""
        return {"cluster.n"}, f"cluster.n = {cluster.n}: must be at most {count}, {nodes}{weight}"
    for key, value in (("r", cluster.r), ("w", cluster.w)):
        if value > config.replica_count:
            name = f"cluster.{key}"
            most = f"cluster.n ({config.n})"
            if config.centre_count > 1:
                most = f"{config.replica_count}, cluster.n in each of {config.centre_count} data centres"
            return {name, "cluster.n"}, f"{name} = {value}: must be at most {most}"
    if cluster.bus_frame_bytes_max > cluster.bytes_in_flight_max:
        limit, size = map(size_text, (cluster.bytes_in_flight_max, cluster.bus_frame_bytes_max))
        return (
            {"cluster.bus_frame_bytes_max", "cluster.bytes_in_flight_max"},
            f'cluster.bus_frame_bytes_max = "{size}": must be at most cluster.bytes_in_flight_max '
            f'("{limit}")',
        )
    files = (cluster.tls_certificate_file, cluster.tls_key_file, cluster.tls_ca_file)
    if any(files) and not all(files):
        names = ("tls_certificate_file", "tls_key_file", "tls_ca_file")
        missing = [name for name, value in zip(names, files, strict=True) if not value]
        return (
            {f"cluster.{name}" for name in names},
            f"cluster.{missing[0]}: must be given too, since TLS between nodes needs "
            f"{', '.join(names[:2])} and {names[2]}",
        )
    return _drill_conflict_of(config)


def _drill_conflict_of(config: Config) -> tuple[set[str], str] | None:
    from respkv.members import is_loopback

    away = next((each for each in config.nodes if not is_loopback(each.host)), None)
    if not config.debug.drill or away is None:
        return None
    return (
        {"debug.drill"},
        "debug.drill = true: must be false, since it is for nodes with loopback addresses, and that of node "
        f'"{away.name}" is {away.host}',
    )
