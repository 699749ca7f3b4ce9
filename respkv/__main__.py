"""`python -m respkv` is the command `respkv`."""

from respkv.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
