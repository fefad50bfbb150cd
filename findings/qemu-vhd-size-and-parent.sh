#!/bin/bash
# QEMU reads a VHD without its last bytes, and a differencing VHD as if its parent were empty.
#
# Expected: the disk's size is the footer's "Current Size", and a VHD of type 4 (differencing) is
# refused, as QEMU refuses a VHDX that has a parent.
# Seen, with qemu-img 7.2.22 of Debian 12:
#   size    Unless it knows the creator, QEMU takes the size from the footer's cylinders, heads and
#           sectors, which the specification's algorithm rounds down: here 34,304 bytes at the end of
#           the disk are missing. The option force_size_calc=current_size gives them back.
#   parent  The driver looks whether a header is at the file's start, and takes every such file for a
#           dynamic disk. What only the parent holds reads as zeros, and convert ends with 0.
#
# Uses the distribution's qemu-utils and python3. Exits non-zero when QEMU does otherwise.
set -euo pipefail
command -v qemu-img python3 > /dev/null || { echo "needs qemu-utils and python3"; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
qemu-img --version | head -n 1

footer() { # FILE OFFSET BYTES: change both copies of the footer, with their checksums
    python3 - "$@" <<'P'
import struct, sys
name, offset, value = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
data = bytearray(open(name, "rb").read())
for at in (0, len(data) - 512):
    data[at + offset : at + offset + len(value)] = value
    data[at + 64 : at + 68] = bytes(4)
    data[at + 64 : at + 68] = struct.pack(">I", ~sum(data[at : at + 512]) & 0xFFFFFFFF)
open(name, "wb").write(data)
P
}
size() { qemu-img info --output=json "$1" | python3 -c 'import json, sys; print(json.load(sys.stdin)["virtual-size"])'; }

bytes=$((40 * 1024 * 1024 + 1024))
qemu-img create -q -f vpc -o force_size=on disk.vhd $bytes
footer disk.vhd 28 "$(printf vbox | od -An -tx1 | tr -d ' \n')"
footer disk.vhd 56 03c30511 # 963 cylinders, 5 heads, 17 sectors, as the specification computes them
by_geometry=$(size disk.vhd)
by_footer=$(size "json:{\"driver\":\"vpc\",\"force_size_calc\":\"current_size\",\"file\":{\"driver\":\"file\",\"filename\":\"$work/disk.vhd\"}}")
echo "size: the footer says $bytes; qemu-img says $by_geometry, with current_size $by_footer"
[[ $by_footer == "$bytes" && $by_geometry != "$bytes" ]]

qemu-img create -q -f vpc child.vhd 8M
footer child.vhd 60 00000004
qemu-img info child.vhd | grep -E 'file format|backing' # no backing file is named
qemu-img convert -f vpc -O raw child.vhd child.raw
echo "parent: a differencing disk was converted, without its parent"
