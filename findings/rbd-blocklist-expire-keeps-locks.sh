#!/bin/bash
# librbd: with rbd_blocklist_expire_seconds no client can take a lock from one that is gone.
#
# Expected: the option's description is "number of seconds to blocklist - set to 0 for OSD default", so
# with 600 the owner of an image's lock is kept away for ten minutes after the lock was taken from it,
# instead of for the hour that is the default.
# Seen with python3-rados, python3-rbd, librbd1, ceph-mon and ceph-osd 16.2.15+ds-0+deb12u2 (Debian 12),
# which this downloads with what they need and runs from a temporary folder, by their own loader: with
# any number of seconds but 0 the lock is not taken at all, and the error is EINVAL. librados' call to
# blocklist a client for 600 seconds succeeds, so the monitor can do what is asked for; it refuses an
# order that has the time as text instead of a number, with the same error. So programs that take locks
# with librbd leave the time to the cluster (mon_osd_blocklist_default_expire).
#
# Output that was seen:
#     lock_break with 600 seconds: EINVAL, the lock is held
#     blocklist_add for 600 seconds: EINVAL
#     the monitor, asked with 600.0: done
#     the monitor, asked with the text '600.0': EINVAL
#     lock_break with 0 seconds: done, the lock is free
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
import errno
import json
import os
import sys

import rados
import rbd


def connected(**options):
    cluster = rados.Rados(conffile=sys.argv[1])
    cluster.connect()
    for name, value in options.items():
        cluster.conf_set(name, value)
    return cluster, cluster.open_ioctx("pool")


def outcome(call):
    try:
        call()
    except (rados.Error, rbd.OSError) as error:
        return errno.errorcode.get(abs(error.errno), str(error))
    return "done"


owner, owning = connected()
rbd.RBD().pool_init(owning, True)
rbd.RBD().create(
    owning, "image", 1 << 20, old_format=False,
    features=rbd.RBD_FEATURE_LAYERING | rbd.RBD_FEATURE_EXCLUSIVE_LOCK,
)
held = rbd.Image(owning, "image")
held.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)


def take(seconds):
    """Take the lock from its owner; return how that ended, and whether somebody has it."""
    cluster, pool = connected(rbd_blocklist_expire_seconds=seconds)
    with rbd.Image(pool, "image") as image:
        (found,) = image.lock_get_owners()
        how = outcome(lambda: image.lock_break(rbd.RBD_LOCK_MODE_EXCLUSIVE, found["owner"]))
        still = bool(list(image.lock_get_owners()))
    pool.close()
    cluster.shutdown()
    state = "held" if still else "free"
    print(f"lock_break with {seconds} seconds: {how}, the lock is {state}", flush=True)
    return how, still


def order(address, seconds):
    text = json.dumps(
        {"prefix": "osd blocklist", "blocklistop": "add", "addr": address, "expire": seconds}
    )
    status, _, error = asking.mon_command(text, b"")
    if status:
        raise rados.Error(error, errno=-status)


with_time = take("600")
asking, unused = connected()
# An address that nobody has.
by_library = outcome(lambda: asking.blocklist_add("127.0.0.1:0/4711", 600))
print("blocklist_add for 600 seconds:", by_library)
by_number = outcome(lambda: order("127.0.0.1:0/4711", 600.0))
print("the monitor, asked with 600.0:", by_number)
by_text = outcome(lambda: order("127.0.0.1:0/4711", "600.0"))
print("the monitor, asked with the text '600.0':", by_text)
without = take("0")
sys.stdout.flush()
seen = (with_time, by_library, by_number, by_text, without)
same = seen == (("EINVAL", True), "done", "done", "EINVAL", ("done", False))
# The owner is shut out, so its image cannot be closed in good order any more.
os._exit(0 if same else 1)
END
"${python[@]}" "$work/look.py" "$work/ceph.conf" || { echo 'the behaviour has changed'; exit 1; }
echo 'as described: no lock is taken if a time is set for how long its owner is shut out'
