"""The version of respkv for `--version`, INFO and HELLO; a test holds pyproject.toml equal."""

VERSION = "0.1.0"

REDIS_VERSION = "7.0.15"
"""The version of Redis whose commands, replies and error texts are answered."""
