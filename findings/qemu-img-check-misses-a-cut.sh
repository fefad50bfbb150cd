#!/bin/bash
# qemu-img check finds no errors in images that lost a third of their data at the end.
#
# Expected: a check of an image that ends before the data it refers to reports that, as it does for
# most cuts of a qcow2 ("counting reference for region exceeding the end of the file").
# Seen, with qemu-img 7.2.22 of Debian 12:
#   vdi    40 MiB of data, file cut at 24 MiB: "No errors were found on the image", exit status 0.
#          The check compares the block map with the header's counters and never with the file.
#   qcow2  cut within its second-level table, of which only the upper half has entries: the same.
#          The check counts clusters up to the end of the file as it is, so references that went
#          with the cut, and the reference counts of what lay behind, are not looked at.
# In both cases qemu-img convert ends with 0 as well, and what is missing reads as zeros.
# What helps: qemu-img map's offsets for the first, the reference counts' last entry for the second.
#
# Uses the distribution's qemu-utils. Exits non-zero when a check finds something.
set -euo pipefail
command -v qemu-img qemu-io > /dev/null || { echo "needs qemu-utils"; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
qemu-img --version | head -n 1

lost() { # IMAGE FORMAT: the check's and the conversion's status, and what the end of the data is now
    local checked=0 converted=0
    qemu-img check -f "$2" "$1" > out 2>&1 || checked=$?
    tail -n 3 out
    qemu-img convert -f "$2" -O raw "$1" "$1.raw" || converted=$?
    echo "$2: check $checked, convert $converted"
    [[ $checked == 0 && $converted == 0 ]]
}

qemu-img create -q -f vdi disk.vdi 64M
qemu-io -f vdi -c 'write -q -P 7 0 40M' disk.vdi
truncate -s 24M disk.vdi
lost disk.vdi vdi
qemu-io -f raw -c 'read -q -P 0 30M 10M' disk.vdi.raw && echo "vdi: data at 30 MiB became zeros"

qemu-img create -q -f qcow2 disk.qcow2 512M
qemu-io -f qcow2 -c 'write -q -P 7 400M 1M' disk.qcow2
be64() { od -An -tu8 --endian=big -j "$1" -N 8 disk.qcow2 | tr -d ' '; }
first=$(be64 40)                                  # l1_table_offset
second=$(( $(be64 "$first") & 0x00fffffffffffe00 )) # the only second-level table
truncate -s $((second + 8192)) disk.qcow2          # 1,024 of its 8,192 entries are left, all empty
lost disk.qcow2 qcow2
qemu-io -f raw -c 'read -q -P 0 400M 1M' disk.qcow2.raw && echo "qcow2: data at 400 MiB became zeros"
