"""Temporary."""
from respkv.command import Flag, command
from respkv.reply import Simple
PONG = Simple(b"PONG")
@command("PING", arity=-1, flags=Flag.FAST, since="1.0.0", group="connection", complexity="O(1)", usage="[message]")
def ping(ctx, *args):
    "Ping"
    return args[0] if args else PONG
