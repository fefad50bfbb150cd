#!/bin/bash
# QEMU: blockdev-reopen of an NBD node succeeds and looks at nothing.
#
# An export has grown, and a client that connects now is told the new size. Expected: blockdev-reopen
# of the node (with the options it has) makes QEMU ask the server again, as it does for a file, or
# fails. Seen (Debian's QEMU 7.2.22 and 10.0.13, nbdkit 1.32.5): it succeeds, the connection stays
# the one it was, and so does the size; block_resize to the new size is "Cannot grow NBD nodes". Only
# another node, which connects anew, has the new size.
#
# Uses the distribution's qemu-storage-daemon, nbdkit and libnbd (packages qemu-utils or
# qemu-system-common, nbdkit, libnbd-bin). No root needed.
set -euo pipefail

work=$(mktemp -d)
trap 'jobs -p | xargs -r kill; rm -rf "$work"' EXIT
qemu-storage-daemon --version | head -n1
nbdkit --version

truncate -s 64M "$work/image"
nbdkit --foreground --unix "$work/sock" file "$work/image" &
until [[ -S $work/sock ]]; do sleep 0.1; done

mkfifo "$work/commands"
qemu-storage-daemon --chardev stdio,id=c --monitor c <"$work/commands" >"$work/replies" &
exec 3>"$work/commands"

tell() { # a command, and what must be in its reply, which is the next line
    local before
    before=$(wc -l <"$work/replies")
    echo "$1" >&3
    until (($(wc -l <"$work/replies") > before)); do sleep 0.1; done
    sed -n "$((before + 1)),\$p" "$work/replies" | tee "$work/reply"
    grep -q -- "$2" "$work/reply" || { echo "the behaviour has changed: expected $2"; exit 1; }
}
node() { echo "\"driver\":\"nbd\",\"node-name\":\"$1\",\"server\":{\"type\":\"unix\",\"path\":\"$work/sock\"}"; }
nodes='{"execute":"query-named-block-nodes","arguments":{"flat":true}}'

until [[ -s $work/replies ]]; do sleep 0.1; done
tell '{"execute":"qmp_capabilities"}' return
tell "{\"execute\":\"blockdev-add\",\"arguments\":{$(node one)}}" return
tell "$nodes" '"virtual-size": 67108864'

truncate -s 128M "$work/image"
echo "what a new client is told: $(nbdinfo --size "nbd+unix:///?socket=$work/sock")"
tell "{\"execute\":\"blockdev-reopen\",\"arguments\":{\"options\":[{$(node one)}]}}" '"return": {}'
tell "$nodes" '"virtual-size": 67108864'
tell '{"execute":"block_resize","arguments":{"node-name":"one","size":134217728}}' 'Cannot grow NBD nodes'
tell "{\"execute\":\"blockdev-add\",\"arguments\":{$(node two)}}" return
tell "$nodes" '"virtual-size": 134217728'
echo "as described: reopening kept the old size, a new node has the new one"
