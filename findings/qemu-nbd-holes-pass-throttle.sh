#!/bin/bash
# QEMU's NBD server: reads of holes pass a throttle below the export.
#
# Expected: a `throttle` node with iops-total=10 below an NBD export holds every read to 10 a second, as it
# holds writes. Seen (QEMU 7.2.22): to a client that takes structured replies the server answers a read
# of a hole from the block status, and the throttle never sees it. The same reads are held up once the image
# has data there. So a limit that is measured on a new, sparse image seems to have no effect.
#
# Uses the distribution's qemu-storage-daemon, qemu-img and qemu-io.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
qemu-storage-daemon --version | head -n1

seconds_of_30_reads() {  # IMAGE
    qemu-storage-daemon \
        --object throttle-group,id=limits,x-iops-total=10 \
        --blockdev "driver=file,node-name=file,filename=$1" \
        --blockdev driver=throttle,node-name=disk,throttle-group=limits,file=file \
        --nbd-server "addr.type=unix,addr.path=$1.sock" \
        --export type=nbd,id=disk,node-name=disk,name=disk > "$1.log" 2>&1 &
    local server=$!
    until [[ -S $1.sock ]]; do sleep 0.1; done
    local reads=()
    for number in $(seq 0 29); do reads+=(-c "read $((4096 * number)) 4096"); done
    local begun=$EPOCHREALTIME
    qemu-io -r -f raw "${reads[@]}" "nbd+unix:///disk?socket=$1.sock" > "$1.said"
    awk "BEGIN { printf \"%.1f\", $EPOCHREALTIME - $begun }"
    kill "$server"
}

qemu-img create -q -f raw "$work/holes" 1M
qemu-img create -q -f raw "$work/data" 1M
head -c 1M /dev/urandom | dd of="$work/data" conv=notrunc status=none
holes=$(seconds_of_30_reads "$work/holes")
data=$(seconds_of_30_reads "$work/data")
echo "30 reads at 10 a second: of holes $holes s, of data $data s"
awk "BEGIN { exit !($holes < 1 && $data > 2) }" || { echo "the behaviour has changed"; exit 1; }
echo "as described: reads of holes are not throttled"
