#!/usr/bin/env bash
# On which addresses a local Ray listens that was told to use 127.0.0.1.
# Guess: after `ray.init(_node_ip_address="127.0.0.1")` its servers listen on loopback alone.
# Seen (ray 2.60.0, Python 3.11, Linux, a machine with an outer IPv4 address): Ray resolves 127.0.0.1 to the machine's outer address
#        and takes that for the node's; the GCS and the raylet listen on all interfaces, as without the argument. Only with the private
#        switch for platforms without clusters (`ray._private.ray_constants.ENABLE_RAY_CLUSTER = False`, set before `ray.init`) do
#        all servers listen on loopback. Whoever relies on the argument to keep others out looks at the sockets.
# Fails if that changes. Skips itself on a machine that has no outer address.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ray==2.60.0 psutil==7.1.3 setuptools==80.9.0
cd "$folder"
cat >listening.py <<'PYTHON'
import sys

import psutil
import ray
from ray._private import ray_constants

if sys.argv[1] == "switch":
    ray_constants.ENABLE_RAY_CLUSTER = False
options = {"_node_ip_address": "127.0.0.1"} if sys.argv[1] == "argument" else {}
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR", **options)
addresses = {  # an IPv4 address may be written as an IPv6 one
    connection.laddr.ip.removeprefix("::ffff:")
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]
    for connection in process.net_connections(kind="tcp")
    if connection.status == psutil.CONN_LISTEN
}
print(ray.get_runtime_context().gcs_address.rpartition(":")[0], "outer" if addresses - {"127.0.0.1", "::1"} else "loopback")
PYTHON
has_outer="$("$folder/venv/bin/python" -c 'import psutil, socket
print(any(a.family == socket.AF_INET and not a.address.startswith("127.") for each in psutil.net_if_addrs().values() for a in each))')"
if [ "$has_outer" != True ]; then
  echo "no outer address here: nothing to see"
  exit 0
fi
export RAY_USAGE_STATS_ENABLED=0
for how in argument switch; do
  "$folder/venv/bin/python" listening.py "$how" >"$how" 2>"$how.err" || { cat "$how.err" >&2; exit 1; }
  read -r address where <"$how"
  shown=outer
  [ "$address" = 127.0.0.1 ] && shown=127.0.0.1
  echo "$how: the GCS says that its address is $shown; listening: $where"
  printf '%s %s\n' "$shown" "$where" >"$how"
done
[ "$(cat argument)" = "outer outer" ]
[ "$(cat switch)" = "127.0.0.1 loopback" ]
echo "as described"
