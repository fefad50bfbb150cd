#!/bin/bash
# librbd: what is stored in a Ceph pool overrides what a program has set for itself.
#
# Expected: an option that a client sets on its own connection (rados_conf_set, after it has read its
# configuration file) is in force for the images that it opens there.
# Seen with python3-rados, python3-rbd, librbd1, ceph-mon and ceph-osd 16.2.15+ds-0+deb12u2 (Debian 12),
# which this downloads with what they need and runs from a temporary folder, by their own loader: when
# an image is opened, librbd lays the options that are stored in the pool (`rbd config pool set`) over
# those of the client, and those of the image over both. Also for an image in another namespace than
# the default one, in which the pool's are stored. So a program that must not have rbd_cache, since it
# answers for what it has written, has it if somebody has stored that for another program's sake.
#
# Output that was seen:
#     set by the client: false
#     in an image, before: ('false', 'CONFIG')
#     stored in the pool: ('true', 'POOL')
#     stored in the image: ('false', 'IMAGE')
#     set by the client, at the end: false
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
import sys

import rados
import rbd

SOURCES = {
    rbd.RBD_CONFIG_SOURCE_CONFIG: "CONFIG",
    rbd.RBD_CONFIG_SOURCE_POOL: "POOL",
    rbd.RBD_CONFIG_SOURCE_IMAGE: "IMAGE",
}

cluster = rados.Rados(conffile=sys.argv[1])
cluster.connect()
cluster.conf_set("rbd_cache", "false")
pool = cluster.open_ioctx("pool")
inside = cluster.open_ioctx("pool")
library = rbd.RBD()
library.pool_init(pool, True)
library.namespace_create(pool, "inside")
inside.set_namespace("inside")
library.create(inside, "image", 1 << 20)


def found():
    """What is in force for the image, and where it comes from."""
    with rbd.Image(inside, "image") as image:
        one = next(one for one in image.config_list() if one["name"] == "rbd_cache")
    return one["value"], SOURCES[one["source"]]


print("set by the client:", cluster.conf_get("rbd_cache"))
before = found()
print("in an image, before:", before)
library.config_set(pool, "rbd_cache", "true")
with_pool = found()
print("stored in the pool:", with_pool)
with rbd.Image(inside, "image") as image:
    image.config_set("rbd_cache", "false")
with_image = found()
print("stored in the image:", with_image)
own = cluster.conf_get("rbd_cache")
print("set by the client, at the end:", own)
pool.close()
inside.close()
cluster.shutdown()
seen = (before, with_pool, with_image)
sys.exit(
    0
    if own == "false"
    and seen == (("false", "CONFIG"), ("true", "POOL"), ("false", "IMAGE"))
    else 1
)
END
"${python[@]}" "$work/look.py" "$work/ceph.conf" || { echo 'the behaviour has changed'; exit 1; }
echo "as described: what is stored in the pool overrides the client's own setting"
