#!/bin/bash
# librbd: on a full pool the first image that is removed "does not exist", and stays.
#
# Expected: on a full pool images can be removed: their removal is what makes room. Or, if librbd has to
# note something first and finds no room for that, ENOSPC.
# Seen with python3-rados, python3-rbd, librbd1, ceph-mon and ceph-osd 16.2.15+ds-0+deb12u2 (Debian 12),
# which this downloads with what they need and runs from a temporary folder, by their own loader:
# librbd moves an image that is to be removed to the trash first. Where nothing was removed before, it
# makes the object `rbd_trash` for that; a full pool refuses the new object, librbd goes on, does not
# find its note, and says that there is no such image. A program that takes that for "it is gone
# already" believes that it has made room. Where rbd_trash is there, though empty, the removal succeeds.
# (The client sends with LIBRADOS_OPERATION_FULL_TRY: without that it would wait until there is room.)
#
# Output that was seen:
#     new object: errno 28
#     removed: ImageNotFound
#     images: ['image']
#     rbd_trash made while there was room, removed: done
#     images: []
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
    {ceph-mon,ceph-osd,python3-rados,python3-rbd}="$version" >"$work/planned" ||
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

# A cluster of one monitor and one OSD, which keeps its objects in memory, on a loopback address.
port=$("${python[@]}" -c 'import socket; s = socket.create_server(("127.0.0.1", 0))
print(s.getsockname()[1])')
fsid=$(</proc/sys/kernel/random/uuid)
osd=$(</proc/sys/kernel/random/uuid)
mkdir "$work/osd"
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
mon_data_avail_crit = 0
mon_cluster_log_to_file = false
mon_allow_pool_size_one = true
osd_data = $work/osd
osd_objectstore = memstore
memstore_device_bytes = 67108864
osd_heartbeat_interval = 1
osd_mon_report_interval = 1
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
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
rados_osd_op_timeout = 30
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


if len(sys.argv) == 3:
    order("osd new", uuid=sys.argv[2], id=0)
else:
    order("osd pool create", pool="pool", pool_type="replicated")
    deadline = time.monotonic() + 60
    while b'"up":1,' not in order("osd dump"):
        if time.monotonic() > deadline:
            sys.exit("the OSD does not come up")
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
"${start[@]}" "$osd" || cannot 'the monitor does not work'
"${run[@]}" "$bin/ceph-osd" -i 0 "${conf[@]}" --mkfs --osd-uuid "$osd" || cannot 'no OSD could be made'
"${run[@]}" "$bin/ceph-osd" -i 0 "${conf[@]}" -f >"$work/osd.out" &
"${start[@]}" || cannot 'the OSD does not work'

cat >"$work/look.py" <<'END'
import json
import sys
import time

import rados
import rbd

cluster = rados.Rados(conffile=sys.argv[1])
cluster.connect()
pool = cluster.open_ioctx("pool")
pool.set_osdmap_full_try()
library = rbd.RBD()
library.pool_init(pool, True)
library.create(pool, "image", 1 << 20)
pool.write_full("what fills it", bytes(1 << 20))


def order(prefix, **arguments):
    text = json.dumps({"prefix": prefix, "format": "json", **arguments})
    status, answer, error = cluster.mon_command(text, b"")
    if status:
        sys.exit(f"{prefix}: {status} {error}")
    return json.loads(answer) if answer else None


def let(ratios, is_full):
    """Set the ratios from which the OSD is nearly full, and full; wait until it is, or not."""
    for name, ratio in ratios:
        order(f"osd set-{name}-ratio", ratio=ratio)
    deadline = time.monotonic() + 60
    while ("full" in order("osd dump")["osds"][0]["state"]) != is_full:
        if time.monotonic() > deadline:
            sys.exit("the OSD does not report how full it is")
        time.sleep(0.2)
    cluster.wait_for_latest_osdmap()


def fill():
    let((("nearfull", 0.001), ("backfillfull", 0.002), ("full", 0.003)), True)


def remove():
    """Say how the removal of the image ends."""
    try:
        library.remove(pool, "image")
    except rbd.Error as error:
        return type(error).__name__
    return "done"


fill()
try:
    pool.write_full("new", b"x")
    refused = 0
except rados.Error as error:
    refused = error.errno
print("new object: errno", refused)
first = remove()
print("removed:", first)
stays = library.list(pool)
print("images:", stays)
let((("full", 0.95), ("backfillfull", 0.9), ("nearfull", 0.85)), False)
with rados.WriteOpCtx() as op:
    op.new(rados.LIBRADOS_CREATE_IDEMPOTENT)
    pool.operate_write_op(op, "rbd_trash")
fill()
second = remove()
print("rbd_trash made while there was room, removed:", second)
left = library.list(pool)
print("images:", left)
pool.close()
cluster.shutdown()
same = (refused, first, stays, second, left) == (28, "ImageNotFound", ["image"], "done", [])
sys.exit(0 if same else 1)
END
"${python[@]}" "$work/look.py" "$work/ceph.conf" || { echo 'the behaviour has changed'; exit 1; }
echo 'as described: on a full pool librbd does not find the first image that it is to remove'
