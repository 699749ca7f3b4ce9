r"""Bytes of one client connection in, whole commands out, exactly as Redis 7.0 reads them.

Not here: sockets, replies, what a command means, and AUTH. This is a core: it is fed and asked,
and never waits.

A client speaks *multibulk* (``*2\r\n$3\r\nGET\r\n$1\r\nk\r\n``) or *inline* (``GET k\n``, quotes
as in a shell). The first byte of each command decides which: ``*`` or anything else.

There are two ways through this module, and they must never differ:

*Fast*. Nearly every chunk from a socket is a run of small, canonical multibulk commands that starts
at a boundary between commands. hiredis parses it in C. hiredis was made for replies, though, and
takes much that Redis refuses in a request (simple strings, maps, numbers), so its result counts
only once it is proved: see `_is_plain` and `Parser._prove`. The reader's state never outlives
one chunk.

*Slow*. An exact state machine for the rest: inline commands, a command cut by the end of a chunk,
large values, long argument lists, and whatever is wrong. Its state is:

    _buffer         bytes not looked at yet, starting where the machine stands
    _missing_count  arguments that the current multibulk still lacks; 0 between commands
    _bulk_bytes     announced length of the current argument; None while its header is awaited
    _large          the current argument, when it is large and still arriving

The cost is linear in what arrives however it is cut: large values are written straight to their
place, and each chunk is given to hiredis at most once. (A line that comes byte by byte is searched
anew for each. It is short: the search is cheaper than the call.)

Invariant: `is_at_rest` means between two commands, nothing held, nothing broken. Only then may
the fast way start.

Redis looks for ``\r`` and then skips two bytes, so ``$4\rXPINGYY`` is a legal argument; it searches
lines as C strings, so a line with a NUL never ends, until it is too long. Both hold here. One thing
is stricter: Redis may or may not notice that a line is longer than `inline_bytes_max`, depending
on how the network cut it. Here such a line is always refused, as Redis does when bytes come singly.

Sources: the Redis protocol specification; behaviour observed on redis-server 7.0.15, which
``tests/e2e/test_parser_against_redis.py`` repeats. Speed: ``tests/respkv/test_parser.py`` run as a
program prints microseconds per command.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from io import SEEK_END, BytesIO
from itertools import chain
from typing import Any

import hiredis

UNAUTHENTICATED_ARGUMENTS_MAX = 10
UNAUTHENTICATED_BULK_BYTES_MAX = 16384

# A bulk at least this long is received into its own place, as in Redis.
LARGE_BULK_BYTES_MIN = 32 * 1024
# How much of a large bulk is made room for at a time. An announcement alone reserves nothing.
LARGE_BULK_STEP_BYTES = 1024 * 1024

# hiredis moves what it has not parsed to the front of its buffer after each KiB: so not too much.
_FAST_CHUNK_BYTES_MAX = 64 * 1024
# A reader keeps the memory of its largest chunk. After one larger than this it is dropped.
_READER_BYTES_KEPT_MAX = 16 * 1024
# The shortest argument on the wire, "$0\r\n\r\n": how many can be in a chunk follows.
_ARGUMENT_WIRE_BYTES_MIN = 6

# hiredis reserves a list as long as announced, in any of its five kinds: for 14 bytes up to 32 GiB. It
# must see no long ones, but for those of four digits while they are so few that commands may fill them.
_announces_many = re.compile(rb"\*\d{4,}\r").search
_all_of_many = re.compile(rb"\*\d{4,}\r").findall
_MANY_BYTES_MAX = len(b"*9999\r")
_MANY_COUNT_MAX = _FAST_CHUNK_BYTES_MAX // (1000 * _ARGUMENT_WIRE_BYTES_MIN) + 1  # One is cut.
_is_number = re.compile(rb"0|-?[1-9][0-9]{0,18}").fullmatch
_INT64_MAX = 2**63 - 1

# First bytes of what hiredis hands out in the guise of a bulk string (+ = and big number) or of an
# array (~ | > %). All other foreign types give objects that are not `bytes`, or not iterable.
_PLUS, _EQUALS, _BRACKET, _TILDE, _BAR, _GREATER, _PERCENT = b"+=(~|>%"
_STAR, _CR = b"*\r"
# One search for a character is many times faster than one for any of five.
_AS_STARS = bytes(_STAR if char in b"*~|>%" else char for char in range(256))
_BELOW_10 = bytes(range(10))
_BELOW_100 = bytes(range(100))

_BLANKS = b" \t\n\v\f\r"
# One word of an inline command: bare text, then at most one quoted part, which ends the word.
# Nothing can be matched in two ways, so that an escaped quote never becomes the closing one on a
# second try. The bare text is atomic by a look-ahead and a back reference: possessive quantifiers,
# made for this, match wrongly in Python 3.11.0 to 3.11.4.
_word = re.compile(
    rb"""(?=([^ \t\n\r"']*))\1"""
    rb"""(?:"((?:\\.|[^"\\])*)"|'((?:\\'|\\(?!')|[^'\\])*)')?"""
    rb"""(?=[ \t\n\v\f\r]|\Z)""",
    re.DOTALL,
).match
_blanks = re.compile(rb"[ \t\n\v\f\r]*").match
_escape = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL).sub
_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}


class ProtocolError(Exception):
    """The stream of a client can't be understood any further.

    The text is what Redis writes after ``-ERR Protocol error: ``. The caller answers it after the
    replies of the commands before, and closes the connection. A byte of the client's may be in the
    text: encode it as latin-1 to give back that byte.
    """


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one command may hold. Each is checked when it is announced.

    A client that must still authenticate may announce next to nothing, and hears that it is
    unauthenticated.
    """

    arguments_max: int = 1024 * 1024
    bulk_bytes_max: int = 512 * 1024 * 1024
    inline_bytes_max: int = 64 * 1024
    is_authenticated: bool = True

    @classmethod
    def unauthenticated(cls) -> "Limits":
        """Redis' limits for a connection that has to send AUTH first."""
        return cls(is_authenticated=False)


class _SharedReader:
    """One hiredis.Reader for all parsers, since no state of it outlives a chunk: it stays in cache."""

    __slots__ = ("feed", "gets", "has_data")

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Drop a reader that was left in the middle of something."""
        reader = hiredis.Reader()
        self.feed = reader.feed
        self.gets = reader.gets
        self.has_data = reader.has_data


_SHARED = _SharedReader()


class Parser:
    """The commands in one connection's bytes. Broken once `error` is set: then feed it no more.

    `one_at_a_time` makes `feed` return one command at most and keep the rest, for a time when the
    command can change the limits of what follows (AUTH). Then `feed(b"")` gives the next, and once
    more after it was turned off. `is_at_rest`: between two commands, nothing held, nothing broken.
    """

    __slots__ = (
        "_arguments",
        "_buffer",
        "_bulk_bytes",
        "_command_bytes",
        "_fast_bytes_max",
        "_large",
        "_limits",
        "_missing_count",
        "error",
        "is_at_rest",
        "one_at_a_time",
    )

    def __init__(self, limits: Limits | None = None, *, one_at_a_time: bool = False) -> None:
        self.limits = limits or Limits()
        self.one_at_a_time = one_at_a_time
        self.error: ProtocolError | None = None
        self.is_at_rest = True
        self._buffer = bytearray()
        self._arguments: list[bytes] = []
        self._missing_count = 0
        self._bulk_bytes: int | None = None
        self._large: LargeBulk | None = None
        self._command_bytes = 0

    @property
    def limits(self) -> Limits:
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = limits
        # A chunk so small can't hold a whole command that breaks a limit. One that is not whole
        # takes the slow way, which checks.
        self._fast_bytes_max = min(
            _FAST_CHUNK_BYTES_MAX,
            limits.bulk_bytes_max,
            limits.arguments_max * _ARGUMENT_WIRE_BYTES_MIN,
        )
        if not limits.is_authenticated:
            self._fast_bytes_max = 0

    @property
    def buffered_bytes(self) -> int:
        """Bytes received that no returned command accounts for."""
        held = self._command_bytes + len(self._buffer)
        return held if self._large is None else held + self._large.filled_bytes

    def feed(self, data: bytes) -> list[list[bytes]]:
        """Take what the socket gave, return the commands that are whole now, in order.

        Empty commands (``*0``, ``*-1``, blank lines) are dropped. After an error nothing is taken.
        """
        # Hot: this is the cost of a small request. What is looked up and called was counted.
        if (
            not self.is_at_rest
            or self.one_at_a_time
            or not 4 < len(data) <= self._fast_bytes_max
            or data[0] != _STAR
        ):
            return self._feed_pieces(data)
        if data.rfind(b"*") or (data[2] != _CR and data[3] != _CR):
            return self._feed_run(data)
        may_hurt = _TILDE in data or _BAR in data or _GREATER in data or _PERCENT in data
        if may_hurt and _danger_in(data) >= 0:
            return self._feed_run(data)
        # One star, fewer than 100 arguments: a lone command, if it is one.
        shared = _SHARED
        shared.feed(data)
        command = None
        try:
            command = shared.gets()
            if command and not shared.has_data():
                if _PLUS in data or _EQUALS in data or _BRACKET in data:
                    if _encoded([command]) == data:
                        return [command]
                else:
                    b"".join(command)  # TypeError where an element is not bytes.
                    return [command]
        except (hiredis.ProtocolError, TypeError):
            pass
        _SHARED.renew()
        return self._prove(data, [command] if command else [])

    def _feed_run(self, data: bytes) -> list[list[bytes]]:
        """Feed a chunk at a boundary that starts with a multibulk: likely a pipeline."""
        start = _danger_in(data)
        if start >= 0:
            # hiredis may not see this. Wherever the part before ends, the rest goes on from there.
            commands = self.feed(data[:start])
            return commands + self._feed_slowly(data[start:], may_hurry=False)
        gets = _SHARED.gets
        has_data = _SHARED.has_data
        commands = []
        _SHARED.feed(data)
        is_clean = False
        try:
            while has_data():
                command = gets()
                if command is False:
                    break  # Cut by the end of the chunk.
                commands.append(command)
            else:
                # The last command ended where the chunk does, which saves a last, futile `gets`.
                is_clean = len(data) <= _READER_BYTES_KEPT_MAX
                if _is_plain(data, commands) or (all(commands) and _encoded(commands) == data):
                    return commands
        except (hiredis.ProtocolError, TypeError):
            pass  # hiredis refuses the next command, or `_is_plain` met what is not bytes.
        finally:
            if not is_clean:
                _SHARED.renew()
        return self._prove(data, commands)

    @property
    def is_in_bulk(self) -> bool:
        """`bulk_buffer()` is where the next bytes belong."""
        return self._large is not None

    def bulk_buffer(self) -> memoryview | None:
        """Where the socket should put what comes next, while a large argument is arriving.

        None at all other times: then what comes goes to `feed`. The view is valid until the next
        call of any method here.
        """
        return None if self._large is None else self._large.room()

    @property
    def before_bulk(self) -> list[bytes]:
        """The arguments before the large one that is arriving, if that is its command's last; else none."""
        return self._arguments if self._large is not None and self._missing_count == 1 else []

    def bulk_filled(self, count: int, *, as_it_is: bool = False) -> list[list[bytes]]:
        """That many bytes were put at the start of `bulk_buffer()`. Returns what `feed` would.

        But `as_it_is`: a command that ends with the large argument holds the `LargeBulk` itself.
        """
        large = self._large
        assert large is not None
        large.advance(count)
        large.stays = as_it_is and self._missing_count == 1
        return self._feed_slowly(b"", may_hurry=False) if large.is_whole else []

    def _prove(self, data: bytes, commands: list[list[bytes]]) -> list[list[bytes]]:
        """`commands` are what hiredis made of `data`, as far as it came: keep what is right.

        If they are, the rest goes the slow way, and otherwise everything does.
        """
        try:
            end = _end_of(data, commands)
        except TypeError:
            end = 0
        commands = [command for command in commands if command] if end else []
        if end == len(data):
            return commands
        return commands + self._feed_slowly(data[end:], may_hurry=False)

    def _feed_pieces(self, data: bytes) -> list[list[bytes]]:
        """Feed what can't start the fast way: too large for it, or not at rest, or inline."""
        if self.one_at_a_time or len(data) <= _FAST_CHUNK_BYTES_MAX:
            return self._feed_slowly(data, may_hurry=not self.is_at_rest)
        commands = []
        for start in range(0, len(data), _FAST_CHUNK_BYTES_MAX):
            commands += self.feed(data[start : start + _FAST_CHUNK_BYTES_MAX])
        return commands

    def _feed_slowly(self, data: bytes, *, may_hurry: bool) -> list[list[bytes]]:
        """Take `data` the exact way. `may_hurry`: try the fast one after the command under way.

        Only then, since a chunk that mixes both kinds would cost its length for each change.
        """
        commands: list[list[bytes]] = []
        if self.error is not None:
            return commands
        if self._large is not None:
            data = data[self._large.write(data) :]
        buffer = self._buffer
        buffer += data
        while (command := self._next_command()) is not None:
            if command:
                commands.append(command)
                if self.one_at_a_time:
                    break
            if may_hurry and buffer.startswith(b"*"):
                rest = bytes(buffer)
                buffer.clear()
                self.is_at_rest = True
                return commands + self.feed(rest)
            may_hurry = False
        self.is_at_rest = not (buffer or self._missing_count or self.error)
        return commands

    def _next_command(self) -> list[bytes] | None:
        """The next command in the buffer: [] for an empty one, None if it isn't whole or broken."""
        if not self._missing_count:
            if not self._buffer:
                return None
            if self._buffer[0] != ord("*"):
                return self._next_inline()
            count = self._next_count()
            if count is None:
                return None
            if count <= 0:
                return []
            self._missing_count = count
        while self._missing_count:
            argument = self._next_argument()
            if argument is None:
                return None
            self._arguments.append(argument)
            self._missing_count -= 1
        arguments = self._arguments
        self._arguments = []
        self._command_bytes = 0
        return arguments

    def _next_inline(self) -> list[bytes] | None:
        end = self._line_end(b"\n", "too big inline request")
        if end is None:
            return None
        line = bytes(self._buffer[:end]).removesuffix(b"\r")
        self._drop(end + 1)
        self._command_bytes = 0
        words = split_words(line)
        if words is None:
            self._break("unbalanced quotes in request")
        return words

    def _next_count(self) -> int | None:
        """How many arguments the multibulk announces that starts the buffer; maybe none or less."""
        end = self._line_end(b"\r", "too big mbulk count string")
        if end is None or end + 2 > len(self._buffer):
            return None
        count = _number(self._buffer[1:end])
        limits = self._limits
        if count is None or count > limits.arguments_max:
            self._break("invalid multibulk length")
            return None
        if count > UNAUTHENTICATED_ARGUMENTS_MAX and not limits.is_authenticated:
            self._break("unauthenticated multibulk length")
            return None
        self._drop(end + 2)
        if count <= 0:
            self._command_bytes = 0
        return count

    def _next_argument(self) -> bytes | None:
        if self._bulk_bytes is None:
            self._bulk_bytes = self._next_bulk_bytes()
            if self._bulk_bytes is None:
                return None
        length = self._bulk_bytes
        wire_bytes = length + 2
        buffer = self._buffer
        if self._large is not None:
            if not self._large.is_whole:
                return None
            argument: bytes = self._large.argument()
            self._command_bytes += wire_bytes
            self._large = None
        elif len(buffer) >= wire_bytes:
            argument = bytes(buffer[:length])
            self._drop(wire_bytes)
        else:
            if length >= LARGE_BULK_BYTES_MIN:
                self._large = LargeBulk(length)
                self._large.write(buffer)
                buffer.clear()
            return None
        self._bulk_bytes = None
        return argument

    def _next_bulk_bytes(self) -> int | None:
        end = self._line_end(b"\r", "too big bulk count string")
        if end is None or end + 2 > len(self._buffer):
            return None
        if self._buffer[0] != ord("$"):
            # A line break in an error's text would end it, so Redis writes blanks.
            got = self._buffer[:1].decode("latin-1").translate({10: " ", 13: " "})
            self._break(f"expected '$', got '{got}'")
            return None
        length = _number(self._buffer[1:end])
        limits = self._limits
        if length is None or length < 0 or length > limits.bulk_bytes_max:
            self._break("invalid bulk length")
            return None
        if length > UNAUTHENTICATED_BULK_BYTES_MAX and not limits.is_authenticated:
            self._break("unauthenticated bulk length")
            return None
        self._drop(end + 2)
        return length

    def _line_end(self, mark: bytes, fault: str) -> int | None:
        """Where `mark` ends the line that starts the buffer, or None. Too long is broken."""
        buffer = self._buffer
        end = buffer.find(mark)
        limit = self._limits.inline_bytes_max
        is_there = 0 <= end <= limit and buffer.find(0, 0, end) < 0
        if is_there:
            return end
        if len(buffer) > limit:
            self._break(fault)
        return None

    def _drop(self, count: int) -> None:
        """The machine has moved on by so many bytes, inside one command."""
        del self._buffer[:count]  # Moves nothing: a bytearray may start late in its memory.
        self._command_bytes += count

    def _break(self, text: str) -> None:
        """Nothing after this point can be understood. Keep nothing, too."""
        self.error = ProtocolError(text)
        self._buffer.clear()
        self._arguments = []
        self._missing_count = 0
        self._command_bytes = 0


class LargeBulk:
    """A large argument on its way, with the two bytes after it: room is made as bytes come.

    `BytesIO` gives up its memory as `bytes` without a copy, as long as nothing else looks at it.
    That is why each view is released before anything else is done.

    It is a command's argument itself where all that becomes of it is a record (`Runner.only_puts`).
    """

    __slots__ = ("_file", "_length", "_room", "_start", "filled_bytes", "stays")

    def __init__(self, length: int) -> None:
        self._file = BytesIO()
        self._length = length
        self._room: memoryview | None = None
        self._start = 0  # Of the value in the file.
        self.filled_bytes = 0
        self.stays = False

    @property
    def is_whole(self) -> bool:
        return self.filled_bytes == self._length + 2

    def write(self, data: bytes | bytearray) -> int:
        """Take what belongs here of `data`, return how much that was."""
        self._release()
        missing_bytes = self._length + 2 - self.filled_bytes
        self._file.seek(self.filled_bytes)
        count = self._file.write(data if len(data) <= missing_bytes else data[:missing_bytes])
        self.filled_bytes += count
        return count

    def room(self) -> memoryview:
        """Where the next bytes belong: at most a step, at most the rest."""
        self._release()
        filled = self.filled_bytes
        step_bytes = LARGE_BULK_STEP_BYTES
        end = min((filled // step_bytes + 1) * step_bytes, self._length + 2)
        if self._file.seek(0, SEEK_END) < end:
            self._file.seek(end - 1)
            self._file.write(b"\0")
        with self._file.getbuffer() as view:
            self._room = view[filled:end]
        return self._room

    def advance(self, count: int) -> None:
        assert self._room is not None
        assert 0 <= count <= self._length + 2 - self.filled_bytes
        self._release()
        self.filled_bytes += count

    def argument(self) -> Any:
        """The value as `bytes`, or this if it `stays`."""
        assert self.is_whole
        self._release()
        if self.stays:
            return self
        self._file.truncate(self._length)
        return self._file.getvalue()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> bytes:
        """A few bytes of the value: for the slow log."""
        start, end, _ = part.indices(self._length)
        self._file.seek(self._start + start)
        return self._file.read(end - start)

    def __radd__(self, head: bytes) -> bytes:
        """`head` and the value in one piece, made once: the value is moved where it lies.

        As fast as memory is: pages that are new cost several times as much as moving what they hold.
        """
        start, end = len(head), len(head) + self._length
        self._file.seek(end - 1)
        self._file.write(b"\0")
        self._file.truncate(end)
        with self._file.getbuffer() as view:
            view[start:end] = view[: self._length]
            view[:start] = head
        self._start = start
        return self._file.getvalue()

    def _release(self) -> None:
        if self._room is not None:
            self._room.release()
            self._room = None


def split_words(line: bytes) -> list[bytes] | None:
    """The words of an inline command, or None if its quotes don't match up.

    Double quotes know ``\\n \\r \\t \\b \\a \\xHH``, and any other byte after a backslash stands
    for itself. Single quotes know ``\\'``. After a closing quote must come a blank or the end.
    """
    words = []
    position = _end_of_blanks(line, 0)
    while position < len(line):
        match = _word(line, position)
        if match is None:
            return None
        bare, double, single = match.groups()
        if double is not None:
            bare += _escape(_unescaped, double)
        elif single is not None:
            bare += single.replace(b"\\'", b"'")
        words.append(bare)
        position = _end_of_blanks(line, match.end())
    return words


def _end_of_blanks(line: bytes, position: int) -> int:
    match = _blanks(line, position)
    assert match is not None
    return match.end()


def _unescaped(match: re.Match[bytes]) -> bytes:
    digits, char = match.groups()
    return bytes.fromhex(digits.decode()) if digits else _ESCAPES.get(char, char)


def _number(text: bytes | bytearray) -> int | None:
    """A 64-bit number as Redis writes it: no plus, no leading zeros, no blanks."""
    if not _is_number(text):
        return None
    number = int(text)
    return number if -_INT64_MAX - 1 <= number <= _INT64_MAX else None


def may_be_lone(data: bytes) -> bool:
    """Whether `data`, fed at a boundary, may be one whole multibulk command and nothing else."""
    # Where one command ends and the next one starts, a star follows a line break.
    return data[0] == _STAR and (not data.rfind(b"*") or b"\n*" not in data)


def parse_lone(chunks: list[bytes]) -> list[list[bytes]] | None:
    """The one command in each chunk, or None if it takes a parser to tell.

    Each chunk is what the socket of another session gave, whose parser is at rest, and `may_be_lone`.
    Together they cost half of what they cost one by one.

    Proof: there are as many commands as chunks. Each command starts with a star. If there are only as many
    stars, each star starts a command; and each chunk starts with one. If there are more, each command must end
    in a line break, as it does when it is written again: so none starts inside a chunk, since no star in there
    follows a line break, and there are as many starts of chunks as of commands.
    """
    data = b"".join(chunks)
    if len(data) > _FAST_CHUNK_BYTES_MAX or _danger_in(data) >= 0:
        return None
    gets = _SHARED.gets
    _SHARED.feed(data)
    with suppress(hiredis.ProtocolError, TypeError):  # TypeError as in `feed`.
        commands = [gets() for _ in chunks]
        if (
            all(commands)
            and not _SHARED.has_data()
            and (
                (data.count(b"*") == len(chunks) and _is_plain(data, commands))
                or _encoded(commands) == data
            )
        ):
            if len(data) > _READER_BYTES_KEPT_MAX:
                _SHARED.renew()
            return commands
    _SHARED.renew()
    return None


def _danger_in(data: bytes) -> int:
    """Where something starts that may make hiredis reserve much, or -1 if nothing does.

    Any place counts where it may stand, in a value too: hiredis takes whatever follows a bulk and two
    more bytes for the next header. Only what ends in a line break is an announcement for it.
    """
    if _TILDE in data or _BAR in data or _GREATER in data or _PERCENT in data:
        data = data.translate(_AS_STARS)
    match = _announces_many(data)
    if match is None:
        return -1
    found = _all_of_many(data)
    if len(found) <= _MANY_COUNT_MAX and max(map(len, found)) <= _MANY_BYTES_MAX:
        return -1
    return match.start()


def _is_plain(data: bytes, commands: list[list[bytes]]) -> bool:
    """Without a doubt, `data` starts with `commands`, all of them full arrays of bulk strings.

    False means only that it takes a closer look. Raises TypeError where an element is not bytes.
    """
    # In C throughout. `in` with a number is memchr; with bytes it would be five times slower.
    if _PLUS in data or _EQUALS in data or _BRACKET in data:
        return False
    if len(commands) > 1 and (
        _TILDE in data or _BAR in data or _GREATER in data or _PERCENT in data
    ):
        return False
    b"".join(chain.from_iterable(commands))
    return all(commands)  # An empty bulk string instead of an array has got this far.


def _end_of(data: bytes, commands: list[list[bytes]]) -> int:
    """Where `commands` end in `data`, or 0 if it does not start with them.

    The proof is to write them again. Raises TypeError if they can't be commands at all.
    """
    if _is_plain(data, commands):
        with suppress(ValueError):  # An argument longer than a byte can say.
            return _wire_bytes(commands)
    encoded = _encoded(commands)
    return len(encoded) if data.startswith(encoded) else 0


def _wire_bytes(commands: list[list[bytes]]) -> int:
    """Length of `_encoded(commands)` at a third of the cost. ValueError if an argument is long."""
    counts = bytes(map(len, commands))
    lengths = bytes(map(len, chain.from_iterable(commands)))
    return (
        4 * len(counts)  # "*1\r\n"
        + len(counts.translate(None, _BELOW_10))  # The second digit of some,
        + len(counts.translate(None, _BELOW_100))  # and the third.
        + 6 * len(lengths)  # "$1\r\n" and "\r\n"
        + len(lengths.translate(None, _BELOW_10))
        + len(lengths.translate(None, _BELOW_100))
        + sum(lengths)
    )


class _Texts(dict[int, bytes]):
    """A format's results, made once each for the usual numbers."""

    def __init__(self, template: bytes) -> None:
        self._template = template

    def __missing__(self, number: int) -> bytes:
        text = self._template % number
        if number < 4096:
            self[number] = text
        return text


_count_texts = _Texts(b"\r\n*%d")
_length_texts = _Texts(b"\r\n$%d\r\n")


def _encoded(commands: list[list[bytes]]) -> bytes:
    """The bytes of `commands`. Raises TypeError if they can't be commands."""
    # Each way with a format, `zip` or `+=` took up to three times as long.
    parts: list[bytes] = []
    append = parts.append
    for command in commands:
        append(_count_texts[len(command)])
        for argument in command:
            append(_length_texts[len(argument)])
            append(argument)
    append(b"\r\n")
    return b"".join(parts)[2:]
