#!/bin/bash
# python3-rados: a key of an object's omap whose value is empty is read as None.
#
# Expected: what was written as b"" is read as b"", as it is for an object's empty content and for an
# empty extended attribute (whose iterator is of the same make).
# Seen with python3-rados, librados2, ceph-mon and ceph-osd 16.2.15+ds-0+deb12u2 (Debian 12), which this
# downloads with what they need and runs from a temporary folder, by their own loader: the iterators of
# get_omap_vals and get_omap_vals_by_keys give None for such a value. So a loop that expects bytes
# fails on it, and what was read cannot be written back as it is: set_omap refuses None.
# A store of the kind bluestore, instead of memstore as here, makes no difference.
#
# Output that was seen:
#     content: b''
#     extended attributes: [('empty', b'')]
#     get_omap_vals: [('empty', None), ('some', b'x')]
#     get_omap_vals_by_keys: [('empty', None), ('some', b'x')]
#     written back: TypeError('values must be a string')
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

cluster = rados.Rados(conffile=sys.argv[1])
cluster.connect()
ioctx = cluster.open_ioctx("pool")
ioctx.write_full("object", b"")
ioctx.set_xattr("object", "empty", b"")
with rados.WriteOpCtx() as op:
    ioctx.set_omap(op, ("empty", "some"), (b"", b"x"))
    ioctx.operate_write_op(op, "object")
with rados.ReadOpCtx() as op:
    listed, _ = ioctx.get_omap_vals(op, "", "", 10)
    named, _ = ioctx.get_omap_vals_by_keys(op, ("empty", "some"))
    ioctx.operate_read_op(op, "object")
    listed, named = list(listed), list(named)
try:
    with rados.WriteOpCtx() as op:
        ioctx.set_omap(op, *zip(*listed))
        ioctx.operate_write_op(op, "object")
    back = "done"
except TypeError as error:
    back = repr(error)
content, attributes = ioctx.read("object"), list(ioctx.get_xattrs("object"))
ioctx.close()
cluster.shutdown()
print("content:", content)
print("extended attributes:", attributes)
print("get_omap_vals:", listed)
print("get_omap_vals_by_keys:", named)
print("written back:", back)
as_bytes = content == b"" and attributes == [("empty", b"")]
as_none = listed == named == [("empty", None), ("some", b"x")] and back.startswith("TypeError")
sys.exit(0 if as_bytes and as_none else 1)
END
"${python[@]}" "$work/look.py" "$work/ceph.conf" || { echo 'the behaviour has changed'; exit 1; }
echo 'as described: an empty value of an omap is read as None'
