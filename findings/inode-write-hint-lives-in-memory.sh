#!/usr/bin/env bash
# Expected: the write-life hint of a file (fcntl F_SET_RW_HINT), being an attribute of the inode, is
# an attribute of the file: a remount keeps it, and closing the file or ending the process may not.
# Seen (Linux 6.18, ext4 and XFS, e2fsprogs and xfsprogs of Debian 12): it outlives every descriptor
# and the process that set it, and is gone after a remount, even a clean one. The kernel keeps it in
# its inode in memory alone. So RWH_WRITE_LIFE_NONE (1, "no hint", which differs from 0, "not set")
# is a mark that says whether an inode, and with it its unsynced pages, has been in memory since.
# Needs root (loop devices), mkfs.ext4, mkfs.xfs, python3.
set -euo pipefail
work=$(mktemp -d)
trap 'umount -q "$work/m" || true; rm -rf "$work"' EXIT
mkdir "$work/m"

hint() {  # hint FILE [VALUE]: set it, if a value is given; print it
    python3 - "$@" <<'PYTHON'
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
if len(sys.argv) > 2:
    fcntl.fcntl(fd, 1036, struct.pack("=Q", int(sys.argv[2])))
print(struct.unpack("=Q", fcntl.fcntl(fd, 1035, bytes(8)))[0])
PYTHON
}

uname -r
for kind in ext4 xfs; do
    truncate --size=400M "$work/image"
    "mkfs.$kind" -q "$work/image"
    mount -o loop "$work/image" "$work/m"
    new=$(hint "$work/m/file")
    set=$(hint "$work/m/file" 1)
    later=$(hint "$work/m/file")  # another process, another descriptor
    cp --archive "$work/m/file" "$work/m/copy"
    copy=$(hint "$work/m/copy")
    umount "$work/m"
    mount -o loop "$work/image" "$work/m"
    remounted=$(hint "$work/m/file")
    umount "$work/m"
    rm "$work/image"
    echo "$kind: new $new, set $set, later $later, copied $copy, remounted $remounted"
    [ "$new $set $later $copy $remounted" = "0 1 1 0 0" ]
done
