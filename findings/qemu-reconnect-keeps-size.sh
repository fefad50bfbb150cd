#!/bin/bash
# A QEMU NBD client that reconnects keeps the export's old size, without a word.
#
# Seen with qemu-utils 7.2.22 and nbdkit 1.32.5 of Debian 12 (and with QEMU 10.0.13 of Debian 13).
# An NBD client learns an export's size in the handshake, and a node with reconnect-delay makes the
# handshake again when its server was away. If the export has grown meanwhile, one would expect the
# new size, or a reconnection that is refused, as QEMU refuses one to an export that has shrunk.
# Instead the node goes on with the size of its first handshake: "length" still tells 1 MiB, and a
# write behind it fails with EIO in QEMU itself. The server is never asked (its log has no such
# write). Opening the node again is what helps.
#
# Exits with 1 if this has changed, with 2 if the tools are missing.
set -euo pipefail
for tool in qemu-io nbdkit; do
    command -v "$tool" >/dev/null || { echo "needs $tool (packages qemu-utils and nbdkit)" >&2; exit 2; }
done
qemu-io --version | head -n1
nbdkit --version

work=$(mktemp -d)
server=
client=
finish() {
    [[ -z $server ]] || kill "$server" 2>/dev/null || true
    [[ -z $client ]] || kill "$client" 2>/dev/null || true
    wait
    rm -rf "$work"
}
trap finish EXIT

serve() { # until it is stopped; the log filter names each request
    rm -f "$work/nbd.sock"
    nbdkit --foreground -U "$work/nbd.sock" --pidfile "$work/pid" --filter=log \
        file "$work/disk" logfile="$work/log" logappend=true 3>&- &
    server=$!
    until [[ -s $work/pid ]]; do sleep 0.1; done
}
stop() { # at once: asked politely, nbdkit waits for its client
    kill -KILL "$server"
    wait "$server" 2>/dev/null || true
    server=
    rm -f "$work/pid"
}

truncate -s 1M "$work/disk"
serve
mkfifo "$work/commands"
qemu-io --image-opts "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path=$work/nbd.sock,file.reconnect-delay=60" \
    <"$work/commands" >"$work/said" 2>&1 &
client=$!
exec 3>"$work/commands"
ask() { # send a command; return when it has been answered
    local pattern=$2 count
    count=$(grep -c "$pattern" "$work/said" || true)
    echo "$1" >&3
    until (($(grep -c "$pattern" "$work/said" || true) > count)); do
        kill -0 "$client" || { cat "$work/said"; exit 1; }
        sleep 0.1
    done
}
ask 'write 0 512' 'ops;'
stop
truncate -s 2M "$work/disk"
serve
ask 'write 512 512' 'ops;'
connections=$(grep -c ' Connect ' "$work/log")
ask 'length' 'MiB$'
ask 'write 1048576 512' 'failed'
exec 3>&-
wait "$client" || true # 1, for the write that failed
client=

cat "$work/said"
echo "connections: $connections"
[[ $connections == 2 ]] || exit 1
grep -q '1 MiB$' "$work/said" || { echo 'changed: the new size is known'; exit 1; }
grep -q 'write failed: Input/output error' "$work/said" || exit 1
! grep -q 'offset=0x100000 ' "$work/log" || { echo 'changed: the write reached the server'; exit 1; }
echo 'as described: reconnected, and the old size is kept'
