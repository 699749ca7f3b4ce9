#!/bin/sh
# The tests compare with redis-server and use redis-cli and redis-benchmark: install them where they are missing.
# The distribution's service is not started: the tests start servers of their own.
set -eu
missing=""
command -v redis-server >/dev/null || missing="redis-server"
command -v redis-cli >/dev/null && command -v redis-benchmark >/dev/null || missing="$missing redis-tools"
[ -z "$missing" ] && exit 0

if [ "$(id -u)" = 0 ]; then as_root=""; elif sudo -n true 2>/dev/null; then as_root="sudo"; else
    echo "The tests need redis-server and redis-tools; install them: sudo apt-get install redis-server redis-tools"
    exit 1
fi
command -v apt-get >/dev/null || { echo "The tests need redis-server and redis-tools; install them with your package manager."; exit 1; }

# A policy that forbids starting services during the installation, unless there is one already.
policy=/usr/sbin/policy-rc.d
made_policy=""
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
    made_policy=yes
fi
status=0
$as_root apt-get update -qq && $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-server redis-tools >/dev/null || status=$?
[ -z "$made_policy" ] || $as_root rm -f "$policy"
exit "$status"
