"""The parser reserves nothing for what was only announced, in whatever guise, however it is cut.

What a reader in C reserves is not seen by `tracemalloc`, and pages that nobody touches are not seen in
the resident memory. So each test parses in a process that may map only a little more than it has.
"""

import random
import resource
import subprocess
import sys
from collections.abc import Callable

import pytest

from respkv.parser import Parser, may_be_lone, parse_lone
from tests.respkv.test_parser import SMALL, check, encode, parse_obviously

ROOM_BYTES = 24 << 20
TIMEOUT_S = 120
KINDS = (b"*", b"~", b">", b"%", b"|")
COUNTS = (1, 99, 999, 1000, 9999, 10_000, 999_999_999, 4_294_967_294, 2**63 - 1)
# Where a header may stand that hiredis takes for one.
PLACES = (
    b"%b",
    b"*1\r\n%b",
    b"*99\r\n%b",
    b"*3\r\n$1\r\na\r\n%b",
    b"*2\r\n$1\r\naXX%b",  # The two bytes after a bulk are not its concern.
    b"*2\r\n*1\r\n%b",
    b"*1\r\n$4\r\nPING\r\n*1\r\n%b",
    b"*2\r\n$3\r\nGET\r\n$99\r\n%b",  # Here it is the start of a value.
)


def limit_memory() -> None:
    """From now on this process may map little more than it has."""
    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ROOM_BYTES,) * 2)


def announced() -> None:
    """Each length, of each kind, at each place: whole, in two, and in the chunk of another session."""
    for kind in KINDS:
        for count in COUNTS:
            for place in PLACES:
                stream = place % (kind + b"%d\r\n" % count)
                for cuts in ([], [4], [len(stream) - 1]):
                    check(stream, cuts)
                if may_be_lone(stream):
                    parse_lone([encode(b"PING"), stream])
                    parse_lone([stream] * 100)


def nested() -> None:
    """Lists in lists, a chunk full of them: short ones, but a thousand levels of them."""
    for kind in KINDS:
        for count in (99, 999, 9999):
            for between in (b"", b"$0\r\n\r\n"):
                level = kind + b"%d\r\n" % count + between
                for start in (b"*1\r\n", b"*10\r\n"):
                    stream = (start + level * 65_536)[:65_536]
                    Parser().feed(stream)
                    parse_lone([start + level * 60] * 100)


def random_announcement(rng: random.Random) -> bytes:
    digits = rng.choice((1, 2, 3, 4, 4, 5, 9, 10))
    number = rng.choice((rng.randrange(10**digits), rng.choice(COUNTS)))
    return rng.choice(KINDS) + b"%d" % number + rng.choice((b"\r\n", b"\r\n", b"\r\n", b"\r", b""))


def random_piece(rng: random.Random) -> bytes:
    match rng.randrange(6):
        case 0:
            return encode(b"SET", random_announcement(rng), random_announcement(rng))
        case 1:
            return encode(b"GET", b"k")
        case 2:
            return b"*%d\r\n" % rng.randrange(5)
        case 3:
            return b"$3\r\nabc" + rng.choice((b"\r\n", b"XX"))
        case _:
            return random_announcement(rng)


def fuzzed() -> None:
    """Streams that are full of announcements give what the obvious parser gives."""
    rng = random.Random(7)
    found = broken = 0
    for _ in range(6000):
        stream = b"*1\r\n" * rng.randrange(2)
        stream += b"".join(random_piece(rng) for _ in range(rng.randrange(1, 7)))
        cuts = [rng.randrange(len(stream) + 1) for _ in range(rng.randrange(4))]
        parsed = check(stream, cuts, SMALL, by_socket=rng.random() < 0.5)
        found += bool(parsed.commands)
        broken += parsed.error is not None
        if may_be_lone(stream):
            commands = parse_lone([stream, encode(b"PING"), stream])
            if commands is not None:
                alone = parse_obviously(stream, SMALL)
                assert commands == [*alone.commands, [b"PING"], *alone.commands]
                assert alone.held_bytes == 0
    assert found > 1000
    assert broken > 1000


def fill() -> None:
    """What must not go well, to see that the limit holds."""
    bytearray(2 * ROOM_BYTES)


def run(name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", __name__, name],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads its mapped memory from /proc")
@pytest.mark.parametrize("name", ["announced", "nested", "fuzzed"])
def test_announcements_reserve_no_memory(name: str) -> None:
    result = run(name)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.skipif(sys.platform != "linux", reason="reads its mapped memory from /proc")
def test_the_memory_is_limited() -> None:
    result = run("fill")
    assert result.returncode == 1
    assert result.stderr.endswith("MemoryError\n")


SUBJECTS: dict[str, Callable[[], None]] = {
    "announced": announced,
    "nested": nested,
    "fuzzed": fuzzed,
    "fill": fill,
}

if __name__ == "__main__":
    limit_memory()
    SUBJECTS[sys.argv[1]]()
