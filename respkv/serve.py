"""The process of one node: the data folder is opened, the node gets the real disk, randomness and bus, and runs.

What goes wrong before the node serves is said in one line on standard error:

    status 1    the data folder cannot be opened, or the addresses cannot be listened on
    status 2    the configuration of the cluster cannot be used: its secret, its TLS files, its nodes

Otherwise the status is the node's own (`Node.run`). Shell.
"""

from __future__ import annotations

import os
import random
import sys
from functools import partial
from typing import Final

import structlog
import trio

from cluster.gossip_message import GossipError
from cluster.replica import Replica
from engine.disk import RealDisk
from engine.errors import EngineError
from respkv import logs
from respkv.bus import Bus, make_bus
from respkv.bus_link import BusLimits
from respkv.bus_tls import TlsError
from respkv.commands import load as load_commands
from respkv.config import Config, ConfigError, read_secret
from respkv.node import Node
from respkv.peers import Peers
from respkv.process import allow_files, boot_id
from respkv.store_share import store_settings

FILES_BESIDE_CLIENTS: Final = 1024  # Tables, log segments, listeners.
STATUS_MISUSED: Final = 2


def run(config: Config, data_dir: str, node_name: str) -> int:
    """Open the data folder and serve; returns the exit status."""
    logs.setup(config.logging.level, config.logging.format)
    log = structlog.get_logger("respkv.node")
    load_commands()
    rng = random.Random(int.from_bytes(os.urandom(16), "big"))
    try:
        replica = Replica.open(
            RealDisk(data_dir),
            store_settings(config),
            rng.getrandbits(62) | 1,
            boot=boot_id(),
            is_durable=config.log.fsync == "always",
        )
    except EngineError as error:
        print(f"respkv: {error}", file=sys.stderr)
        return 1
    recovery = replica.store.recovery
    log.info(
        "data folder opened",
        path=data_dir,
        log_entries=recovery.entry_count,
        tables=len(replica.store.tables),
        actor=f"{replica.actor:016x}",
    )
    for torn in recovery.torn:
        log.warning("the log's torn end was cut off", file=torn.name, offset=torn.offset)
    files_max = config.client.clients_max + FILES_BESIDE_CLIENTS
    if (allowed := allow_files(files_max)) < files_max:
        log.warning(
            "not all of client.clients_max will fit: raise the limit on open files (ulimit -n)",
            files_max=allowed,
            needed=files_max,
        )
    try:
        secret = read_secret(config) if config.nodes else None
        node = Node(
            config,
            replica,
            name=node_name,
            data_dir=data_dir,
            rng=rng,
            make_transport=partial(_make_bus, secret=secret) if config.nodes else None,
            secret=secret,
        )
    except (ConfigError, TlsError, GossipError) as error:
        print(f"respkv: {error}", file=sys.stderr)
        return STATUS_MISUSED
    try:
        return trio.run(node.run)
    except OSError as error:
        print(f"respkv: cannot listen: {error}", file=sys.stderr)
        return 1


def _make_bus(peers: Peers, *, secret: bytes | None) -> Bus:
    node = peers.node
    config = node.config
    settings = config.cluster
    tls_files = (settings.tls_certificate_file, settings.tls_key_file, settings.tls_ca_file)
    return make_bus(
        peers.topology.me,
        config.nodes,
        peers.terms,
        secret=secret,
        descriptors=node.front,
        receiver=peers,
        rng=node.rng,
        entropy=os.urandom,
        clock_ns=node.clock_ns,
        log=structlog.get_logger("respkv.bus"),
        limits=BusLimits(
            frame_bytes_max=settings.bus_frame_bytes_max,
            queue_bytes_max=settings.bytes_in_flight_max,
        ),
        tls_files=tls_files if any(tls_files) else None,
    )
