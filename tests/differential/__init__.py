"""The differential tester: Redis and respkv get the same commands, and their replies must be the same bytes.

Not a test of durability or of clusters: one client, in lock-step, against one server of each kind.

    wire      RESP as bytes: requests out, replies in, push messages apart
    argument  kinds of arguments (`key`, `ttl-s`, `non-integer`), drawn from a seeded generator
    command   what a command is here: templates, options; calls and scenes made from them
    strings, keyspace, transaction, connection, server, malformed
              the tables: every command with its templates
    natural   the one table of differences by nature, with a reason for each line
    shape     the rules that this table names
    side      one server as the tester sees it: three connections to it
    runner    lock-step, comparison, dumps of all databases, reports
    shrink    a smaller run that still differs
    coverage  how often each command and option was sent, and whether that is enough
    faulty    a proxy that lies, to see that lies are found

Run it with `python -m tests.differential --seed N --rounds N`. It empties the servers that it is given.
"""
