#!/bin/bash
# A range of a file that is allocated and was never written: SEEK_DATA's answer depends on the page
# cache, so that a mere read makes data of a hole.
#
# Seen on ext4 with Linux 6.18 and Python 3.11. FALLOC_FL_ZERO_RANGE (and a plain fallocate) leaves
# extents that are marked as unwritten. SEEK_DATA takes them for a hole, although they take space. Once
# somebody has read the range, its zeros are in the page cache and SEEK_DATA calls it data; when the
# cache has dropped them it is a hole again. `st_blocks` and FIEMAP (flag UNWRITTEN) say the same all
# the time. So whoever looks for what takes space must ask FIEMAP as well, and whoever decides by
# SEEK_DATA whether something was written may get another answer a second later.
#
# Output that was seen:
#     allocated: 1024 KiB, data: none, unwritten: 1
#     after a read: 1024 KiB, data: 0..1048576, unwritten: 1
#     after the cache was dropped: 1024 KiB, data: none, unwritten: 1
#
# Exits with 1 if this has changed. Needs ext4 below the temporary folder; says so with 2 otherwise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ "$(stat -f -c %T "$work")" != ext2/ext3 ]; then
    echo "not ext4 below $work: set TMPDIR to a folder that is" >&2
    exit 2
fi
python3 - "$work/file" <<'PYTHON'
import ctypes
import fcntl
import os
import struct
import sys

SIZE = 1 << 20
ZERO_RANGE = 0x10
FIEMAP, UNWRITTEN = 0xC020660B, 0x800
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def look(fd):
    try:
        start = os.lseek(fd, 0, os.SEEK_DATA)
        data = f"{start}..{os.lseek(fd, start, os.SEEK_HOLE)}"
    except OSError:
        data = "none"
    found = bytearray(struct.pack("=QQIIII", 0, SIZE, 0, 0, 16, 0) + bytes(16 * 56))
    fcntl.ioctl(fd, FIEMAP, found)
    count = struct.unpack_from("=I", found, 20)[0]
    flags = [struct.unpack_from("=I", found, 32 + 56 * n + 40)[0] for n in range(count)]
    unwritten = all(flag & UNWRITTEN for flag in flags) and count > 0
    return f"{os.fstat(fd).st_blocks // 2} KiB, data: {data}, unwritten: {int(unwritten)}"


fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
os.ftruncate(fd, SIZE)
if libc.fallocate(fd, ZERO_RANGE, 0, SIZE):
    raise OSError(ctypes.get_errno(), "fallocate")
os.fsync(fd)
seen = [look(fd)]
os.pread(fd, SIZE, 0)
seen.append(look(fd))
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
seen.append(look(fd))
for when, what in zip(("allocated", "after a read", "after the cache was dropped"), seen):
    print(f"{when}: {what}")
hole, data = "1024 KiB, data: none, unwritten: 1", "1024 KiB, data: 0..1048576, unwritten: 1"
sys.exit(0 if seen == [hole, data, hole] else 1)
PYTHON
