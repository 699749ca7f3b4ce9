"""What it costs to find a key's policy.

    python -m bench.policy

Some policies as a configuration may have them, and keys that end in each of them or in none. The figure
is the CPU time of one look-up, the least of several runs, without the loop around it. The aim is that of
the mixture: 0.2 microseconds a command. Without any policy nothing is looked up: a node has no
`Policies` then, and its fast paths ask once for a whole batch whether there are any.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from timeit import repeat

from bench.report import columns
from respkv.consistency import Scope
from respkv.policy import Policy
from respkv.policy_match import Policies

AIM_US = 0.2
NUMBER, ROUNDS = 20_000, 25
POLICIES = (
    Policy(prefix="cart:", write="ALL"),
    Policy(prefix="cart:vip:", read="ALL"),
    Policy(prefix="user:", read="QUORUM"),
    Policy(prefix="session:", read=1, write=1),
    Policy(pattern="session:*:tmp", ttl_s=60),
)
KEYS: tuple[tuple[str, bytes], ...] = (
    ("no policy", b"key:000000012345"),
    ("no policy, first byte of one", b"count:000000012345"),
    ("prefix, of two", b"cart:000000012345"),
    ("the longer prefix", b"cart:vip:000012345"),
    ("prefix, the only one", b"user:000000012345"),
    ("prefix, beside a pattern", b"session:0000012345"),
    ("pattern", b"session:000012345:tmp"),
)


def cost_us(find: Callable[[bytes], object], keys: Sequence[bytes]) -> float:
    """CPU time of one look-up, in microseconds."""

    def least(statement: str) -> float:
        names = {"find": find, "keys": keys}
        return min(
            repeat(
                statement,
                globals=names,
                timer=time.process_time,
                number=NUMBER // len(keys),
                repeat=ROUNDS,
            )
        )

    count = NUMBER // len(keys) * len(keys)
    spent_s = least("for key in keys: find(key)") - least("for key in keys: pass")
    return spent_s / count * 1e6


def main() -> None:
    find = Policies(POLICIES, Scope(3)).find
    rows: list[tuple[str, ...]] = [("key", "us", "")]
    rows += [(name, f"{cost_us(find, [key] * 7):.3f}", "") for name, key in KEYS]
    mixture = cost_us(find, [key for _, key in KEYS])
    mark = "" if mixture <= AIM_US else " !"
    rows.append(("all of them", f"{mixture:.3f}", f"aim {AIM_US}{mark}"))
    print(f"{len(POLICIES)} policies")
    print(columns(rows))


if __name__ == "__main__":
    main()
