#!/bin/bash
# QEMU 10's NBD client does not flag the payload of its writes.
#
# Seen with qemu-utils 1:10.0.13+ds-0+deb13u1 (Debian 13), which this downloads with what it depends
# on and runs from a temporary directory, by its own loader.
# With extended headers (NBD_OPT_EXTENDED_HEADERS) a request whose header is followed by data carries
# NBD_CMD_FLAG_PAYLOAD_LEN (bit 5): it is how a server knows how many bytes to skip of a command that
# it does not know, and proto.md has a client set it on NBD_CMD_WRITE as well.
# QEMU negotiates extended headers by default wherever a server has them, and sends its writes without
# the flag: below, flags 0x0000 and, with FUA, 0x0001. QEMU's own server takes the payload all the
# same. One that goes by the letter takes the data for the next header and loses its place.
#
# The server here is a few lines of Python: it negotiates, prints each request's header, and answers
# every request with success. Output that was seen:
#     command 1, flags 0x0000, 512 bytes follow
#     command 3, flags 0x0000
#     command 1, flags 0x0001, 512 bytes follow
#
# Exits with 1 if this has changed, with 2 if it cannot be tried here.
set -euo pipefail
version=1:10.0.13+ds-0+deb13u1
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
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/apt/{lists/partial,cache/archives/partial,preferences.d}
touch "$work/apt/status"
echo "deb [signed-by=$keys] $mirror trixie main" >"$work/apt/sources.list"
apt=(apt-get -qq -o "Dir::State=$work/apt" -o "Dir::State::status=$work/apt/status"
    -o "Dir::Cache=$work/apt/cache" -o "Dir::Etc::sourcelist=$work/apt/sources.list"
    -o Dir::Etc::sourceparts=/dev/null -o "Dir::Etc::preferencesparts=$work/apt/preferences.d"
    -o APT::Sandbox::User=root -o Debug::NoLocking=1)
"${apt[@]}" update
"${apt[@]}" install --download-only --yes --no-install-recommends "qemu-utils=$version" ||
    cannot "qemu-utils $version is not on the mirror any more: try the one that is"
mkdir "$work/root"
for package in "$work"/apt/cache/archives/*.deb; do
    case $package in
    */qemu-utils_* | */lib*) dpkg-deb -x "$package" "$work/root" ;;
    esac
done
loader=$(find "$work/root" -name 'ld-linux-x86-64.so.2' | head -n1)
qemu_io=("$loader" --library-path "$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu"
    "$work/root/usr/bin/qemu-io")
"${qemu_io[@]}" --version | head -n1

cat >"$work/server.py" <<'END'
import socket
import struct
import sys

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("listening", flush=True)
client = listener.accept()[0].makefile("rwb")


def send(data):
    client.write(data)
    client.flush()


def receive(layout):
    return struct.unpack(layout, client.read(struct.calcsize(layout)))


send(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
receive(">I")
option = 0
while option != 7:  # NBD_OPT_GO
    _, option, length = receive(">QII")
    client.read(length)

    def reply(kind, data=b""):
        send(struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data)

    if option == 7:
        reply(3, struct.pack(">HQH", 0, 1 << 20, 0b1101))  # flags, flush, FUA; 1 MiB
    # Extended headers are acknowledged, metadata contexts are not: none is needed.
    reply(1 if option in (7, 11) else (1 << 31) + 1)
while True:
    magic, flags, command, cookie, offset, length = receive(">IHHQQQ")
    if magic != 0x21E41C71:
        sys.exit("this is no extended header: the client has not negotiated them")
    if command == 2:
        break
    follows = f", {length} bytes follow" if command == 1 else ""
    print(f"command {command}, flags {flags:#06x}{follows}", flush=True)
    if command == 1:
        client.read(length)
    send(struct.pack(">IHHQQQ", 0x6E8A278C, 1, 0, cookie, offset, 0))
END
python3 "$work/server.py" "$work/sock" >"$work/seen" &
server=$!
until grep -q listening "$work/seen"; do sleep 0.1; done
"${qemu_io[@]}" -t none -f raw -c 'write 0 512' -c flush -c 'write -f 4096 512' "nbd+unix:///?socket=$work/sock"
wait "$server"
grep command "$work/seen"

grep -q 'command 1, flags 0x0000, 512 bytes follow' "$work/seen" &&
    grep -q 'command 1, flags 0x0001, 512 bytes follow' "$work/seen" ||
    { echo 'changed: the writes are flagged'; exit 1; }
echo 'as described: the payload of a write is not flagged'
