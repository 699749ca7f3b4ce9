"""Writers that know what they were promised, against a real server that will be killed under them.

Each `Writer` is a connection of its own in a thread of its own, with keys that nobody else writes. It
sends commands one by one or pipelined, and keeps each until its reply has come. So after a crash the
content of its keys must be what its acknowledged commands made of them, or that and the first few of
those that were sent and not answered: a prefix, because a connection's commands are executed in order
and the log is recovered up to some position. `settle` checks exactly that, by value.

It starts and ends no server, and decides nothing about when to kill.
"""

from __future__ import annotations

import random
import socket
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

Command = tuple[bytes, ...]
Content = dict[bytes, bytes]

KEYS_PER_WRITER = 120
PIPELINE_MAX = 40
LONG_TTL_S = b"1000000"
TIMEOUT_S = 30.0
CHECK_BATCH = 50


class Loss(Exception):
    """What a server holds is not what it had promised."""


class Refused(Exception):
    """The server answered a write with an error. `line` is the error."""

    def __init__(self, line: bytes) -> None:
        super().__init__(line.decode(errors="replace"))
        self.line = line


class Connection:
    """A blocking RESP2 client: enough for tests, and small enough to trust."""

    def __init__(self, port: int, timeout_s: float = TIMEOUT_S) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._input = self._sock.makefile("rb")

    def send(self, *commands: Command) -> None:
        """Send commands in one piece."""
        self._sock.sendall(b"".join(map(encode, commands)))

    def receive(self) -> object:
        """One reply: bytes, an int, None, a list, or `Refused`. Raises OSError at the end of the connection."""
        line = self._input.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionResetError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            return Refused(rest)
        if kind == b":":
            return int(rest)
        if kind == b"*":
            return [self.receive() for _ in range(int(rest))]
        assert kind == b"$", line
        if rest == b"-1":
            return None
        data = self._input.read(int(rest) + 2)
        if len(data) != int(rest) + 2:
            raise ConnectionResetError("the server closed the connection")
        return data[:-2]

    def ask(self, *command: bytes) -> object:
        """One command and its reply. Raises `Refused`."""
        self.send(command)
        reply = self.receive()
        if isinstance(reply, Refused):
            raise reply
        return reply

    def close(self) -> None:
        self._input.close()
        self._sock.close()


def encode(command: Command) -> bytes:
    return b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%b\r\n" % (len(a), a) for a in command)


def expected_reply(content: Content, command: Command) -> object:
    """What the command must answer, given the content before it; and `content` becomes that after it."""
    name, key = command[0], command[1]
    if name == b"SET":
        content[key] = command[2]
    elif name == b"SETEX":
        content[key] = command[3]
    elif name == b"MSET":
        content.update(zip(command[1::2], command[2::2], strict=True))
    elif name == b"APPEND":
        content[key] = content.get(key, b"") + command[2]
        return len(content[key])
    elif name == b"INCR":
        value = int(content.get(key, b"0")) + 1
        content[key] = b"%d" % value
        return value
    elif name == b"DEL":
        return int(content.pop(key, None) is not None)
    else:
        assert name == b"GET", command
        return content.get(key)
    return b"OK"


@dataclass
class Writer:
    """One client: what its keys hold for certain, and the commands that it has no answer to yet."""

    name: bytes
    rng: random.Random
    value_bytes_max: int = 4000
    content: Content = field(default_factory=dict)
    unanswered: deque[Command] = field(default_factory=deque)
    acknowledged: int = 0
    failure: BaseException | None = None
    refused: int = 0
    last_refusal: bytes = b""
    pause_s: float = 0.0
    _serial: int = 0
    _thread: threading.Thread | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    # Writing

    def start(self, port: int) -> None:
        """Write until the server is gone, or `stop`."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, args=(port,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def join(self, timeout_s: float = TIMEOUT_S * 2) -> None:
        """Wait for the end. Raises what the writer found wrong."""
        assert self._thread is not None
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise Loss(f"writer {self.name.decode()} gets no answer")
        if self.failure is not None:
            raise self.failure

    def _run(self, port: int) -> None:
        try:
            connection = Connection(port)
        except OSError:
            return
        try:
            while not self._stop.wait(self.pause_s):
                self._write_some(connection)
        except OSError:  # The server is gone.
            pass
        except BaseException as failure:
            self.failure = failure
        finally:
            connection.close()

    def _write_some(self, connection: Connection) -> None:
        count = 1 if self.rng.random() < 0.3 else self.rng.randint(2, PIPELINE_MAX)
        commands = [self._next_command() for _ in range(count)]
        self.unanswered += commands
        connection.send(*commands)
        for _ in commands:
            self._note_reply(connection.receive())

    def _note_reply(self, reply: object) -> None:
        command = self.unanswered[0]
        if isinstance(reply, Refused):
            # Not done, and must not be found later.
            self.unanswered.popleft()
            self.refused += 1
            self.last_refusal = reply.line
            return
        expected = expected_reply(self.content, command)
        self.unanswered.popleft()
        if reply != expected:
            raise Loss(f"{_shown(command)} answered {reply!r:.60}, not {expected!r:.60}")
        if command[0] != b"GET":
            self.acknowledged += 1

    def _next_command(self) -> Command:
        choice = self.rng.random()
        key = self._key()
        if choice < 0.40:
            return b"SET", key, self._value()
        if choice < 0.55:
            return b"INCR", b"%b:n%d" % (self.name, self.rng.randrange(20))
        if choice < 0.65:
            return b"APPEND", key, self._value()[:100]
        if choice < 0.75:
            return b"DEL", key
        if choice < 0.83:
            return b"SETEX", key, LONG_TTL_S, self._value()
        if choice < 0.90:
            pairs = {self._key(): self._value() for _ in range(3)}
            return b"MSET", *(word for pair in pairs.items() for word in pair)
        return b"GET", key

    def _key(self) -> bytes:
        return b"%b:%d" % (self.name, self.rng.randrange(KEYS_PER_WRITER))

    def _value(self) -> bytes:
        self._serial += 1
        size = self.rng.choice((0, 20, self.value_bytes_max // 4, self.value_bytes_max))
        return b"%d;" % self._serial + self.rng.randbytes(size)

    # Checking

    def settle(self, connection: Connection) -> int:
        """After a crash: find what survived, take it as the truth, and return how many unanswered commands are in it.

        Raises `Loss`.
        """
        found = self._read_all(connection)
        content = dict(self.content)
        unanswered = list(self.unanswered)
        for survived in range(len(unanswered) + 1):
            if content == found:
                self.content = content
                self.unanswered.clear()
                return survived
            if survived < len(unanswered):
                expected_reply(content, unanswered[survived])
        raise Loss(self._difference(found))

    def check(self, connection: Connection) -> None:
        """Without a crash: what is there is exactly what was acknowledged. Raises `Loss`."""
        assert not self.unanswered
        found = self._read_all(connection)
        if found != self.content:
            raise Loss(self._difference(found))

    def keys(self) -> list[bytes]:
        numbered = [b"%b:%d" % (self.name, number) for number in range(KEYS_PER_WRITER)]
        return numbered + [b"%b:n%d" % (self.name, number) for number in range(20)]

    def _read_all(self, connection: Connection) -> Content:
        found: Content = {}
        for keys in _batches(self.keys()):
            values = connection.ask(b"MGET", *keys)
            assert isinstance(values, list)
            found |= {
                key: value for key, value in zip(keys, values, strict=True) if value is not None
            }
        return found

    def _difference(self, found: Content) -> str:
        """The keys whose value no prefix explains; else those that contradict each other."""
        states = [self.content]
        for command in self.unanswered:
            states.append(dict(states[-1]))
            expected_reply(states[-1], command)
        wrong = [k for k in self.keys() if found.get(k) not in [s.get(k) for s in states]]
        places = wrong or [k for k in self.keys() if found.get(k) != self.content.get(k)]
        lines = [
            f"  {key.decode()}: acknowledged {self.content.get(key)!r:.60}, found {found.get(key)!r:.60}"
            for key in places[:5]
        ]
        kind = "acknowledged and lost" if wrong else "no order of commands explains what was found"
        return f"{kind}: {len(places)} keys of writer {self.name.decode()}\n" + "\n".join(lines)


def _batches(keys: list[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(keys), CHECK_BATCH):
        yield keys[start : start + CHECK_BATCH]


def _shown(command: Command) -> str:
    return b" ".join(word[:30] for word in command).decode(errors="replace")


def info(connection: Connection, section: bytes = b"respkv") -> dict[str, str]:
    """INFO's fields."""
    text = connection.ask(b"INFO", section)
    assert isinstance(text, bytes)
    lines = (line.partition(":") for line in text.decode().splitlines() if ":" in line)
    return {name: value for name, _, value in lines}
