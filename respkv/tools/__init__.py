"""The operator's tools, each a subcommand of `respkv`: backup, restore, verify, dump, import.

Their command lines and all that touches the world but for sockets is in `command`; the rest is handed
disks, clients, a clock and somewhere to write.
"""
