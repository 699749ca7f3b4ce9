"""The commands about connections: greeting, names, CLIENT and its subcommands, tracking with its push messages.

Connection 2 is the one that is killed, quits and tracks; the runner opens a new one where a call says that it `drops`.
"""

# ruff: noqa: E501  A template is one line.

from __future__ import annotations

from dataclasses import replace

from .command import Command, Draw, Scene, SceneMaker


def _unblocking(how: str) -> SceneMaker:
    """Connection 1 waits for a replica that does not exist; connection 0 sets it free; then its reply is read."""

    def make(draw: Draw) -> Scene:
        wait, unblock = draw.scene(f"1> WAIT 1 4000 ; CLIENT UNBLOCK &id1 {how}".strip())
        read = replace(wait, only_reads=True)
        return replace(wait, is_deferred=True), unblock, read

    return make


def _tracking(body: str) -> str:
    """Tracking needs RESP3 to receive its pushes; the connection is put back afterwards. PING fetches the pushes."""
    return f"2> HELLO 3 ; {body} ; 2> CLIENT TRACKING OFF ; 2> HELLO &resp"


COMMANDS = (
    Command("PING", good=("PING", "PING word"), bad=("PING word word",)),
    Command("ECHO", good=("ECHO word", "ECHO long", "ECHO value"), bad=("ECHO", "ECHO word word")),
    Command(
        "SELECT",
        good=(
            "SELECT @database ; GET key ; DBSIZE ; SELECT 0",
            "SELECT 9 ; SET @key value ; SELECT 0 ; GET @key",
            "SELECT 0",
        ),
        bad=("SELECT bad-database",),
    ),
    Command("QUIT", good=("2> QUIT", "2> MULTI ; 2> QUIT", "2> QUIT word"), varies_arity=False),
    Command(
        "RESET",
        good=(
            "RESET ; HELLO &resp",
            "2> SELECT 3 ; 2> CLIENT SETNAME name ; 2> RESET ; 2> HELLO &resp ; 2> CLIENT GETNAME ; 2> CLIENT INFO",
            "CLIENT NO-EVICT ON ; RESET ; HELLO &resp ; CLIENT INFO ; CLIENT NO-EVICT OFF",
            "2> MULTI ; 2> SET key value ; 2> RESET ; 2> HELLO &resp ; 2> EXEC",
            "2> WATCH @key ; SET @key value ; 2> RESET ; 2> HELLO &resp ; 2> MULTI ; 2> GET @key ; 2> EXEC",
        ),
        bad=("RESET word",),
        varies_arity=False,
    ),
    Command(
        "AUTH",
        good=("AUTH =default word",),
        bad=("AUTH word", "AUTH =nosuch word", "AUTH", "AUTH word word word"),
    ),
    Command(
        "HELLO",
        options=("AUTH", "SETNAME"),
        good=(
            "HELLO",
            "HELLO &resp",
            "HELLO 2 ; MGET keys ; GET missing-key ; HELLO &resp",
            "HELLO 3 ; MGET keys ; GET missing-key ; HELLO &resp",
            "HELLO 3 SETNAME name ; CLIENT GETNAME ; HELLO &resp",
            "HELLO &resp AUTH =default word",
            "HELLO &resp AUTH =default word SETNAME name ; CLIENT GETNAME ; CLIENT SETNAME =",
        ),
        bad=(
            "HELLO 1",
            "HELLO 4",
            "HELLO non-integer",
            "HELLO &resp junk",
            "HELLO &resp AUTH word",
            "HELLO &resp AUTH =nosuch word",
            "HELLO &resp SETNAME bad-name",
            "HELLO &resp SETNAME",
        ),
        varies_arity=False,
    ),
    Command("CLIENT ID", good=("CLIENT ID",), bad=("CLIENT ID word",)),
    Command(
        "CLIENT INFO",
        good=(
            "CLIENT INFO",
            "SELECT @database ; CLIENT INFO ; SELECT 0",
            "CLIENT SETNAME name ; CLIENT INFO ; CLIENT SETNAME =",
            "MULTI ; CLIENT INFO ; PING ; EXEC",
            "WATCH key ; CLIENT INFO ; UNWATCH",
            "CLIENT NO-EVICT ON ; CLIENT INFO ; CLIENT NO-EVICT OFF",
        ),
        bad=("CLIENT INFO word",),
    ),
    Command(
        "CLIENT LIST",
        options=("TYPE", "ID"),
        good=(
            "CLIENT LIST",
            "CLIENT LIST TYPE =normal",
            "CLIENT LIST TYPE =pubsub",
            "CLIENT LIST ID &id0 &id1",
            "CLIENT LIST ID &id2 999999",
        ),
        bad=(
            "CLIENT LIST TYPE junk",
            "CLIENT LIST ID non-integer",
            "CLIENT LIST junk",
            "CLIENT LIST ID",
            "CLIENT LIST ID 0",
        ),
    ),
    Command(
        "CLIENT KILL",
        options=("ID", "ADDR", "LADDR", "TYPE", "USER", "SKIPME"),
        good=(
            "2> CLIENT KILL ID &id2",
            "CLIENT KILL ID &id2 !2",
            "CLIENT KILL ADDR &addr2 !2",
            "CLIENT KILL &addr2 !2",
            "CLIENT KILL ID &id2 ADDR &addr2 !2",
            "CLIENT KILL ADDR &addr2 LADDR &laddr2 USER =default !2",
            "CLIENT KILL TYPE =normal !1 !2",
            "CLIENT KILL TYPE =normal SKIPME =yes !1 !2",
            "CLIENT KILL LADDR &laddr2 SKIPME =yes !1 !2",
            "CLIENT KILL USER =default SKIPME =yes LADDR &laddr0 !1 !2",
            "2> CLIENT KILL ID &id2 SKIPME =no !2",
            "2> CLIENT KILL &addr2 !2",
            "CLIENT KILL TYPE =pubsub",
            "CLIENT KILL ID 999999",
            "CLIENT KILL USER =default TYPE =master SKIPME =no",
        ),
        bad=(
            "CLIENT KILL ID non-integer",
            "CLIENT KILL ID 0",
            "CLIENT KILL TYPE junk",
            "CLIENT KILL 127.0.0.1:1",
            "CLIENT KILL SKIPME =maybe",
            "CLIENT KILL USER =nosuch",
            "CLIENT KILL ID",
            "CLIENT KILL junk 1",
            "CLIENT KILL ID 1 ADDR",
        ),
        varies_arity=False,
    ),
    Command(
        "CLIENT SETNAME",
        good=("CLIENT SETNAME name", "CLIENT SETNAME =", "CLIENT SETNAME @name ; CLIENT GETNAME"),
        bad=("CLIENT SETNAME bad-name",),
    ),
    Command(
        "CLIENT GETNAME",
        good=("CLIENT SETNAME @name ; CLIENT GETNAME",),
        bad=("CLIENT SETNAME = ; CLIENT GETNAME", "CLIENT GETNAME word"),
    ),
    Command(
        "CLIENT NO-EVICT",
        options=("ON", "OFF"),
        good=("CLIENT NO-EVICT ON", "CLIENT NO-EVICT OFF"),
        bad=("CLIENT NO-EVICT junk", "CLIENT NO-EVICT"),
    ),
    Command(
        "CLIENT REPLY",
        options=("ON", "OFF", "SKIP"),
        good=(
            "CLIENT REPLY ON",
            "CLIENT REPLY OFF ~ ; SET @key value ~ ; GET @key ~ ; CLIENT REPLY ON ; GET @key",
            "CLIENT REPLY SKIP ~ ; SET @key value ~ ; GET @key",
            "CLIENT REPLY OFF ~ ; GET ~ ; CLIENT REPLY SKIP ~ ; CLIENT REPLY ON ; PING",
        ),
        bad=("CLIENT REPLY junk", "CLIENT REPLY"),
        varies_arity=False,
    ),
    Command(
        "CLIENT PAUSE",
        options=("WRITE", "ALL"),
        good=(
            "CLIENT PAUSE 1",
            "CLIENT PAUSE 2 ALL ; PING",
            "CLIENT PAUSE 2 WRITE ; GET key ; SET key value",
            "CLIENT PAUSE 2000 WRITE ; GET key ; CLIENT UNPAUSE ; SET key value",
            "CLIENT PAUSE 0",
        ),
        bad=("CLIENT PAUSE non-integer", "CLIENT PAUSE -1", "CLIENT PAUSE 1 junk", "CLIENT PAUSE"),
    ),
    Command(
        "CLIENT UNPAUSE",
        good=("CLIENT UNPAUSE", "CLIENT PAUSE 2000 WRITE ; CLIENT UNPAUSE ; SET key value"),
        bad=("CLIENT UNPAUSE word",),
    ),
    Command(
        "CLIENT UNBLOCK",
        options=("TIMEOUT", "ERROR"),
        good=(
            "CLIENT UNBLOCK &id1",
            "CLIENT UNBLOCK &id1 TIMEOUT",
            "CLIENT UNBLOCK &id2 ERROR",
            "CLIENT UNBLOCK 999999",
        ),
        bad=("CLIENT UNBLOCK non-integer", "CLIENT UNBLOCK &id1 junk", "CLIENT UNBLOCK"),
        scenes=(_unblocking(""), _unblocking("TIMEOUT"), _unblocking("ERROR")),
    ),
    Command(
        "CLIENT TRACKING",
        options=("ON", "OFF", "REDIRECT", "PREFIX", "BCAST", "OPTIN", "OPTOUT", "NOLOOP"),
        good=(
            "CLIENT TRACKING OFF",
            _tracking(
                "2> CLIENT TRACKING ON ; 2> GET @key ; SET @key value ; 2> PING ; SET @key value ; 2> PING"
            ),
            _tracking("2> CLIENT TRACKING ON ; 2> GET @key ; 2> SET @key value ; 2> PING"),
            _tracking("2> CLIENT TRACKING ON ; 2> MGET keys ; FLUSHDB ; 2> PING ; SET key value"),
            _tracking(
                "2> CLIENT TRACKING ON ; SET @key value ; 2> GETEX @key EX ttl-s ; EXPIRE @key ttl-s ; 2> PING ; 2> GET @key ; DEL @key ; 2> PING"
            ),
            _tracking(
                "2> CLIENT TRACKING ON NOLOOP ; 2> GET @key ; 2> SET @key value ; 2> PING ; 2> GET @key ; DEL @key ; 2> PING"
            ),
            _tracking(
                "2> CLIENT TRACKING ON BCAST ; SET key value ; 2> PING ; 2> CLIENT TRACKINGINFO"
            ),
            _tracking(
                "2> CLIENT TRACKING ON BCAST PREFIX =int: PREFIX =text ; MSET pairs ; 2> PING ; 2> CLIENT TRACKINGINFO"
            ),
            _tracking(
                "2> CLIENT TRACKING ON BCAST NOLOOP PREFIX =bits ; SET bitmap-key value ; 2> SET bitmap-key value ; 2> PING"
            ),
            _tracking(
                "2> CLIENT TRACKING ON OPTIN ; 2> GET @key ; 2> CLIENT CACHING YES ; 2> GET @key2 ; MSET @key 1 @key2 2 ; 2> PING"
            ),
            _tracking(
                "2> CLIENT TRACKING ON OPTOUT ; 2> GET @key ; 2> CLIENT CACHING NO ; 2> GET @key2 ; MSET @key 1 @key2 2 ; 2> PING"
            ),
            "1> HELLO 3 ; 2> CLIENT TRACKING ON REDIRECT &id1 ; 2> CLIENT TRACKINGINFO ; 2> GET @key ; SET @key value ; 1> PING"
            " ; 2> CLIENT TRACKING OFF ; 1> HELLO &resp",
        ),
        bad=(
            "CLIENT TRACKING junk",
            _tracking("2> CLIENT TRACKING ON junk"),
            _tracking("2> CLIENT TRACKING ON PREFIX =x"),
            _tracking("2> CLIENT TRACKING ON REDIRECT 999999"),
            _tracking("2> CLIENT TRACKING ON REDIRECT non-integer"),
            _tracking("2> CLIENT TRACKING ON OPTIN OPTOUT"),
            _tracking("2> CLIENT TRACKING ON BCAST OPTIN"),
            _tracking("2> CLIENT TRACKING ON BCAST PREFIX =ab PREFIX =abc"),
            _tracking("2> CLIENT TRACKING ON OPTIN ; 2> CLIENT TRACKING ON OPTOUT"),
            _tracking("2> CLIENT TRACKING ON ; 2> CLIENT TRACKING ON BCAST"),
            "2> HELLO 2 ; 2> CLIENT TRACKING ON ; 2> CLIENT TRACKING OFF ; 2> HELLO &resp",
        ),
        varies_arity=False,
    ),
    Command(
        "CLIENT TRACKINGINFO",
        good=(
            "CLIENT TRACKINGINFO",
            _tracking("2> CLIENT TRACKING ON ; 2> CLIENT TRACKINGINFO"),
            _tracking(
                "2> CLIENT TRACKING ON OPTIN NOLOOP ; 2> CLIENT CACHING YES ; 2> CLIENT TRACKINGINFO"
            ),
            _tracking(
                "2> CLIENT TRACKING ON OPTOUT ; 2> CLIENT CACHING NO ; 2> CLIENT TRACKINGINFO"
            ),
            _tracking("2> CLIENT TRACKING ON BCAST PREFIX =b PREFIX =a ; 2> CLIENT TRACKINGINFO"),
        ),
        bad=("CLIENT TRACKINGINFO word",),
    ),
    Command(
        "CLIENT CACHING",
        options=("YES", "NO"),
        good=(
            _tracking("2> CLIENT TRACKING ON OPTIN ; 2> CLIENT CACHING YES"),
            _tracking("2> CLIENT TRACKING ON OPTOUT ; 2> CLIENT CACHING NO"),
        ),
        bad=(
            "CLIENT CACHING YES",
            "CLIENT CACHING NO",
            "CLIENT CACHING junk",
            _tracking("2> CLIENT TRACKING ON OPTIN ; 2> CLIENT CACHING NO"),
        ),
    ),
    Command(
        "CLIENT GETREDIR",
        good=(
            "CLIENT GETREDIR",
            _tracking("2> CLIENT TRACKING ON ; 2> CLIENT GETREDIR"),
            "2> CLIENT TRACKING ON REDIRECT &id1 ; 2> CLIENT GETREDIR ; 2> CLIENT TRACKING OFF",
        ),
        bad=("CLIENT GETREDIR word",),
    ),
    Command("CLIENT HELP", good=("CLIENT HELP",), bad=("CLIENT HELP word",)),
)
