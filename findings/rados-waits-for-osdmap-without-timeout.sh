#!/bin/bash
# librados: wait_for_latest_osdmap waits for a monitor without a limit, whatever rados_mon_op_timeout is.
#
# Expected: the option's own description is "timeout for operations handled by monitors such as statfs
# (0 is unlimited)", and the newest map's number is asked of a monitor. So with 1 the wait fails with
# ETIMEDOUT after a second, as a command to the monitor, the statistics of the cluster and the making
# of a pool do.
# Seen with python3-rados, librados2 and ceph-mon 16.2.15+ds-0+deb12u2 (Debian 12), which this downloads
# with what they need and runs from a temporary folder, by their own loader: it waits as long as the
# monitor is stopped, and succeeds then. So does pool_exists for a pool that the client does not know,
# which asks for the newest map before it says no. (A change was proposed to Ceph in August 2026.)
#
# The only monitor is stopped with SIGSTOP, and goes on 6 s later. Output that was seen, less the digits
# that differ:
#     stopped: mon_command: ETIMEDOUT after 1 s
#     stopped: get_cluster_stats: ETIMEDOUT after 1 s
#     stopped: create_pool: ETIMEDOUT after 1 s
#     stopped: wait_for_latest_osdmap: done after 3 s, when the monitor went on
#     stopped again: pool_exists: done after 6 s, when the monitor went on
#
# Exits with 1 if this has changed, with 2 if it cannot be tried here.
set -euo pipefail
version=16.2.15+ds-0+deb12u2
cannot() {
    echo "$*" >&2
    exit 2
}
command -v apt-get >/dev/null || cannot 'needs Debian or Ubuntu'
[[ $(dpkg --print-architecture) == amd64 ]] || cannot 'needs amd64'
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[[ -f $keys ]] || cannot 'needs the package debian-archive-keyring'
# The mirror that this machine uses for Debian.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m1 '/debian/*$') ||
    cannot 'no mirror of Debian is configured'

work=$(mktemp -d)
trap '{ jobs -p | xargs -r kill -KILL; wait; } 2>/dev/null; rm -rf "$work"' EXIT
mkdir -p "$work"/{root,packages,apt/lists/partial,apt/cache/archives/partial,apt/preferences.d}
touch "$work/apt/status"
echo "deb [signed-by=$keys] $mirror bookworm main" >"$work/apt/sources.list"
apt=(apt-get -qq -o "Dir::State=$work/apt" -o "Dir::State::status=$work/apt/status"
    -o "Dir::Cache=$work/apt/cache" -o "Dir::Etc::sourcelist=$work/apt/sources.list"
    -o Dir::Etc::sourceparts=/dev/null -o "Dir::Etc::preferencesparts=$work/apt/preferences.d"
    -o APT::Sandbox::User=root -o Debug::NoLocking=1 -o Acquire::Languages=none)
"${apt[@]}" update || cannot 'the mirror cannot be read'
"${apt[@]}" install --simulate --no-install-recommends \
    {ceph-mon,python3-rados}="$version" >"$work/planned" ||
    cannot "Ceph $version is not on the mirror any more: try the one that is"
# Of what they depend on, the libraries and Python suffice.
mapfile -t names < <(
    awk '/^Inst (lib|ceph-base|ceph-mon|python3)/ { print $2 "=" substr($3, 2) }' "$work/planned"
)
(cd "$work/packages" && "${apt[@]}" download "${names[@]}")
for package in "$work"/packages/*.deb; do
    dpkg-deb -x "$package" "$work/root"
done
rm -r "$work/packages"

unset CEPH_ARGS CEPH_CONF
export PYTHONHOME=$work/root/usr
bin=$work/root/usr/bin
lib=$work/root/usr/lib/x86_64-linux-gnu
# Nothing that it starts outlives what has started it.
run=(setpriv --pdeathsig KILL "$work/root/lib64/ld-linux-x86-64.so.2"
    --library-path "$lib:$work/root/lib/x86_64-linux-gnu:$lib/ceph")
python=(timeout --foreground -s KILL 90 "${run[@]}" "$bin/python3.11")

# A monitor on a loopback address, and nothing else of a cluster.
port=$("${python[@]}" -c 'import socket; s = socket.create_server(("127.0.0.1", 0))
print(s.getsockname()[1])')
fsid=$(</proc/sys/kernel/random/uuid)
cat >"$work/ceph.conf" <<END
[global]
fsid = $fsid
mon_host = v2:127.0.0.1:$port
public_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
mon_data = $work/mon
mon_data_avail_crit = 0
mon_cluster_log_to_file = false
erasure_code_dir = $lib/ceph/erasure-code
plugin_dir = $lib/ceph
run_dir = $work
crash_dir = $work
admin_socket =
pid_file =
log_file = $work/\$name.log
log_to_stderr = false
err_to_stderr = false

[client]
client_mount_timeout = 30
rados_mon_op_timeout = 1
END
conf=(-c "$work/ceph.conf")
"${run[@]}" "$bin/ceph-mon" --version
"${run[@]}" "$bin/monmaptool" --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$port]" \
    "$work/monmap" >"$work/monmaptool.out" || cannot 'no map of the monitor could be made'
"${run[@]}" "$bin/ceph-mon" -i a "${conf[@]}" --mkfs --monmap "$work/monmap" ||
    cannot 'no monitor could be made'
"${run[@]}" "$bin/ceph-mon" -i a "${conf[@]}" -f &
monitor=$!

cat >"$work/look.py" <<'END'
import errno
import os
import signal
import sys
import threading
import time

import rados

monitor = int(sys.argv[2])
cluster = rados.Rados(conffile=sys.argv[1])
try:
    cluster.connect()
    cluster.wait_for_latest_osdmap()
except rados.Error as error:
    print("the monitor does not work:", error, file=sys.stderr)
    sys.exit(2)


def command():
    status, _, _ = cluster.mon_command('{"prefix": "fsid"}', b"")
    if status:
        raise rados.Error("mon_command", -status)


went_on = threading.Event()


def go_on():
    went_on.set()
    os.kill(monitor, signal.SIGCONT)


def stop():
    went_on.clear()
    os.kill(monitor, signal.SIGSTOP)
    threading.Timer(6, go_on).start()


def look(what, name, call):
    """Say how it ends; whether with a time-out while the monitor is stopped, or when it went on."""
    begun = time.monotonic()
    try:
        call()
        how = "done"
    except rados.Error as error:
        how = errno.errorcode.get(abs(error.errno), str(error))
    after = went_on.is_set()
    when = ", when the monitor went on" if after else ""
    print(f"{what}: {name}: {how} after {time.monotonic() - begun:.2f} s{when}", flush=True)
    return how, after


stop()
limited = [
    look("stopped", "mon_command", command),
    look("stopped", "get_cluster_stats", cluster.get_cluster_stats),
    look("stopped", "create_pool", lambda: cluster.create_pool("pool")),
]
unlimited = [look("stopped", "wait_for_latest_osdmap", cluster.wait_for_latest_osdmap)]
went_on.wait()
cluster.wait_for_latest_osdmap()
stop()
unlimited.append(look("stopped again", "pool_exists", lambda: cluster.pool_exists("none")))
went_on.wait()
cluster.shutdown()
same = set(limited) == {("ETIMEDOUT", False)} and set(unlimited) == {("done", True)}
sys.exit(0 if same else 1)
END
status=0
"${python[@]}" "$work/look.py" "$work/ceph.conf" "$monitor" || status=$?
case $status in
0) echo 'as described: the wait for the newest map has no limit' ;;
2) exit 2 ;;
*) echo 'the behaviour has changed' && exit 1 ;;
esac
