#!/bin/bash
# POSIX_FADV_WILLNEED for a large range succeeds, and reads only its beginning.
#
# Seen with Linux 6.18, ext4, Python 3.11. posix_fadvise(2) says that the advice "initiates a
# nonblocking read of the specified region into the page cache", and that the amount "may be decreased
# by the kernel depending on virtual memory load". It is decreased without any load: one call reads no
# more than the larger of the device's readahead (`read_ahead_kb`) and its largest request
# (`max_sectors_kb`), and returns 0. Asked for in pieces no larger than that, all of the region is read.
#
# Output that was seen (read_ahead_kb 8192):
#     one call for 64 MiB: 8 MiB are in the page cache
#     64 calls for 1 MiB each: 64 MiB are in the page cache
#
# Exits with 1 if this has changed. Needs a file system on a block device below the temporary folder.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 - "$work/file" <<'PYTHON'
import ctypes
import mmap
import os
import sys
import time

SIZE, MIB = 64 << 20, 1 << 20
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
for offset in range(0, SIZE, MIB):
    os.pwrite(fd, os.urandom(MIB), offset)
os.fsync(fd)


def resident():
    with mmap.mmap(fd, SIZE) as mapped:
        pages = (ctypes.c_ubyte * (SIZE // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(mapped)
        address = ctypes.c_void_p(ctypes.addressof(start))
        failed = libc.mincore(address, ctypes.c_size_t(SIZE), pages)
        del start
    assert not failed
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


def asked_in(piece):
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert resident() == 0
    for offset in range(0, SIZE, piece):
        os.posix_fadvise(fd, offset, piece, os.POSIX_FADV_WILLNEED)
    before, now = -1, 0
    while now > before:  # it goes on in the background
        time.sleep(0.5)
        before, now = now, resident()
    return now


whole, pieces = asked_in(SIZE), asked_in(MIB)
print(f"one call for 64 MiB: {whole // MIB} MiB are in the page cache")
print(f"64 calls for 1 MiB each: {pieces // MIB} MiB are in the page cache")
sys.exit(0 if 0 < whole < SIZE == pieces else 1)
PYTHON
