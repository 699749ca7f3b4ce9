"""Temporary: replaced by the strings family."""
from respkv.command import Flag, Keys, command
from respkv.reply import OK
@command("GET", arity=2, flags=Flag.READONLY | Flag.FAST, keys=Keys(1, 1, 1, "RO", "ACCESS"), since="1.0.0", group="string", complexity="O(1)", usage="key")
def get(ctx, key):
    "Get"
    return ctx.string(key)
@command("SET", arity=-3, flags=Flag.WRITE, keys=Keys(1, 1, 1, "OW", "UPDATE"), since="1.0.0", group="string", complexity="O(1)", usage="key value")
def set_(ctx, key, value, *options):
    "Set"
    ctx.put_string(key, value)
    return OK
