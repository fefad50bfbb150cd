#!/bin/bash
# An ext4 that went read-only because of an error still says "rw": in statvfs and in /proc/mounts.
#
# Seen with Linux 6.18.44 and e2fsprogs 1.47.0 (Debian 12), mounted with errors=remount-ro, Debian's
# default. After an error (here the one that the kernel's own trigger in /sys/fs/ext4 makes) every
# write, creation, unlink and fsync fails with EROFS. Older kernels set the mount's read-only flag
# then; this one keeps "rw" in /proc/mounts, adds "emergency_ro" to its options, and f_flag of statvfs
# has no ST_RDONLY. A program that asks statvfs whether it may write is told yes: only a write tells.
# flock and reading go on, and so do stores into a shared mapping that was made before, which reach no
# disk.
#
# Output that was seen:
#     write: Read-only file system; read: data; ST_RDONLY: False
#     options: rw,relatime,errors=remount-ro,emergency_ro
#
# Needs root, and a loop device. Exits with 1 if this has changed.
set -euo pipefail
echo "Linux $(uname -r), $(mkfs.ext4 -V 2>&1 | head -1)"
work=$(mktemp -d)
mkdir "$work/mount"
trap 'umount "$work/mount" 2> /dev/null || true; rm -rf "$work"' EXIT
truncate -s 64M "$work/image"
mkfs.ext4 -q "$work/image"
mount -o loop,errors=remount-ro "$work/image" "$work/mount"
python3 - "$work/mount" <<'END'
import mmap
import os
import sys

root = sys.argv[1]
descriptor = os.open(f"{root}/file", os.O_RDWR | os.O_CREAT)
os.write(descriptor, b"data".ljust(4096, b"."))
os.fsync(descriptor)
mapping = mmap.mmap(descriptor, 4096)
(mounted,) = (line.split() for line in open("/proc/mounts") if line.split()[1] == root)
with open(f"/sys/fs/ext4/{os.path.basename(mounted[0])}/trigger_fs_error", "w") as trigger:
    trigger.write("a test")
try:
    os.pwrite(descriptor, b"more", 0)
    written = "succeeded"
except OSError as error:
    written = error.strerror
flagged = bool(os.statvfs(root).f_flag & os.ST_RDONLY)
(mounted,) = (line.split() for line in open("/proc/mounts") if line.split()[1] == root)
read = os.pread(descriptor, 4, 0).decode()
mapping[0:4] = b"kept"
print(f"write: {written}; read: {read}; ST_RDONLY: {flagged}")
print(f"options: {mounted[3]}")
same = written == "Read-only file system" and read == "data" and not flagged
sys.exit(not (same and mounted[3].startswith("rw,") and "emergency_ro" in mounted[3]))
END
