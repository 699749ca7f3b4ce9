#!/bin/sh
# make-venv.sh FOLDER [PYTHON]: a virtual environment, with what it needs installed where that is missing.
set -eu
folder=$1
python=${2:-}
[ -x "$folder/bin/python" ] && exit 0

if [ -z "$python" ]; then
    # No Python of 3.11 or newer with the venv module: on Debian and Ubuntu that is a package of its own.
    python=/usr/bin/python3
    if ! $python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "respkv needs Python 3.11 or newer: install it, or name it with make PYTHON=..."
        exit 1
    fi
    if [ "$(id -u)" = 0 ]; then as_root=""; elif sudo -n true 2>/dev/null; then as_root="sudo"; else as_root=none; fi
    if [ "$as_root" = none ] || ! command -v apt-get >/dev/null; then
        echo "respkv needs Python's venv module; install it: sudo apt-get install python3-venv"
        exit 1
    fi
    $as_root apt-get update -qq
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
fi
exec "$python" -m venv "$folder"
