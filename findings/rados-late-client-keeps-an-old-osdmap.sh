#!/bin/bash
# librados: a client that connects just after an OSD has died learns of it after 10 to 15 seconds.
#
# Expected: who connects gets the newest map of the OSDs, and asks for a newer one when an OSD's address
# refuses it, as a client does whose connection to that OSD breaks. The monitor takes an OSD that was killed
# for dead within a second, since the others report it.
# Seen with python3-rados, librados2, ceph-mon and ceph-osd 16.2.15+ds-0+deb12u2 (Debian 12), which this
# downloads with what they need and runs from a temporary folder, by their own loader. A client that connects
# before the monitor knows of the death gets a map in which the OSD is up. The OSD's address refuses its first
# operation; librados tries the address again and again, and asks for no map before the operation is
# objecter_timeout old, 10 s by default; it looks every 5 s (objecter_tick_interval). A client that was
# connected before has the newer map at once. With both options at 1 s it takes a second for the late one, too.
#
# Output that was seen:
#     connected before: 0 s after the monitor knew
#     connected after the death: 14 s after the monitor knew
#     the same, with both options at 1 s: 0 s after the monitor knew
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
    {ceph-mon,ceph-osd,python3-rados}="$version" >"$work/planned" ||
    cannot "Ceph $version is not on the mirror any more: try the one that is"
# Of what they depend on, the libraries and Python suffice.
mapfile -t names < <(
    awk '/^Inst (lib|ceph-base|ceph-mon|ceph-osd|python3)/ { print $2 "=" substr($3, 2) }' "$work/planned"
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

# A cluster of one monitor and two OSDs, which keep their objects in memory, on a loopback address.
port=$("${python[@]}" -c 'import socket; s = socket.create_server(("127.0.0.1", 0))
print(s.getsockname()[1])')
fsid=$(</proc/sys/kernel/random/uuid)
mkdir "$work/osd0" "$work/osd1"
cat >"$work/ceph.conf" <<END
[global]
fsid = $fsid
mon_host = v2:127.0.0.1:$port
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
mon_data = $work/mon
# Only an order takes an OSD for dead: then all clients here send their operations before that.
mon_osd_min_down_reporters = 5
mon_data_avail_crit = 0
mon_cluster_log_to_file = false
osd_data = $work/osd\$id
osd_objectstore = memstore
memstore_device_bytes = 67108864
osd_pool_default_size = 2
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
# Another OSD serves soon what one served that is down: its lease ends.
osd_pool_default_read_lease_ratio = 0.1
osd_class_dir = $lib/rados-classes
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
rados_mon_op_timeout = 30
END
conf=(-c "$work/ceph.conf")

cat >"$work/start.py" <<'END'
import json
import sys
import time

import rados

cluster = rados.Rados(conffile=sys.argv[1])
cluster.connect()


def order(prefix, **arguments):
    text = json.dumps({"prefix": prefix, "format": "json", **arguments})
    status, answer, error = cluster.mon_command(text, b"")
    if status:
        sys.exit(f"{prefix}: {status} {error}")
    return answer


if len(sys.argv) == 4:
    order("osd new", uuid=sys.argv[2], id=int(sys.argv[3]))
else:
    order("osd pool create", pool="pool", pool_type="replicated")
    deadline = time.monotonic() + 60
    while order("osd dump").count(b'"up":1,') < 2:
        if time.monotonic() > deadline:
            sys.exit("the OSDs do not come up")
        time.sleep(0.2)
cluster.shutdown()
END
start=("${python[@]}" "$work/start.py" "$work/ceph.conf")
"${run[@]}" "$bin/ceph-mon" --version
"${run[@]}" "$bin/monmaptool" --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$port]" \
    "$work/monmap" >"$work/monmaptool.out" || cannot 'no map of the monitor could be made'
"${run[@]}" "$bin/ceph-mon" -i a "${conf[@]}" --mkfs --monmap "$work/monmap" ||
    cannot 'no monitor could be made'
"${run[@]}" "$bin/ceph-mon" -i a "${conf[@]}" -f &
osds=()
for id in 0 1; do
    osd=$(</proc/sys/kernel/random/uuid)
    "${start[@]}" "$osd" "$id" || cannot 'the monitor does not work'
    "${run[@]}" "$bin/ceph-osd" -i "$id" "${conf[@]}" --mkfs --osd-uuid "$osd" ||
        cannot 'no OSD could be made'
    "${run[@]}" "$bin/ceph-osd" -i "$id" "${conf[@]}" -f >"$work/osd$id.out" &
    osds+=($!)
done
"${start[@]}" || cannot 'the OSDs do not work'

cat >"$work/look.py" <<'END'
import json
import os
import signal
import sys
import threading
import time

import rados

osds = [int(process) for process in sys.argv[2:]]


def connected(**options):
    cluster = rados.Rados(conffile=sys.argv[1], conf=options)
    cluster.connect()
    return cluster.open_ioctx("pool")


def order(prefix, **arguments):
    text = json.dumps({"prefix": prefix, "format": "json", **arguments})
    status, answer, error = asking.mon_command(text, b"")
    if status:
        sys.exit(f"{prefix}: {status} {error}")
    return answer


def look(name, pool):
    pool.read("object")
    ended[name] = time.monotonic()


ended = {}
asking = rados.Rados(conffile=sys.argv[1])
asking.connect()
asking.open_ioctx("pool").write_full("object", b"what is read")
before = connected()
before.read("object")
primary = json.loads(order("osd map", pool="pool", object="object"))["acting_primary"]
os.kill(osds[primary], signal.SIGKILL)
clients = {
    "connected before": before,
    "connected after the death": connected(),
    "the same, with both options at 1 s": connected(
        objecter_timeout="1", objecter_tick_interval="1"
    ),
}
trying = [threading.Thread(target=look, args=one, daemon=True) for one in clients.items()]
for one in trying:
    one.start()
time.sleep(1)  # all have sent their operation
assert not ended, ended
order("osd down", ids=[str(primary)])
down = time.monotonic()
for one in trying:
    one.join(60)
for name in clients:
    seconds = ended.get(name, down + 60) - down
    print(f"{name}: {seconds:.0f} s after the monitor knew", flush=True)
    ended[name] = seconds
same = ended["connected before"] < 4
same = same and ended["the same, with both options at 1 s"] < 5
same = same and 7 < ended["connected after the death"] < 30
sys.stdout.flush()
os._exit(0 if same else 1)
END
status=0
exec 3>&2 2>/dev/null # bash says there that the OSD was killed
"${python[@]}" "$work/look.py" "$work/ceph.conf" "${osds[@]}" 2>&3 || status=$?
exec 2>&3
case $status in
0) echo 'as described: who connected after the death asks for the map only after objecter_timeout' ;;
*) echo 'the behaviour has changed' && exit 1 ;;
esac
