"""The version of respkv for `--version`, INFO and HELLO; a test holds pyproject.toml equal."""

VERSION = "0.1.0"
