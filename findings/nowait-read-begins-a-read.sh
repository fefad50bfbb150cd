#!/bin/bash
# A read with RWF_NOWAIT of what is not in the page cache fails with EAGAIN, and reads it all the same.
#
# Seen with Linux 6.18, ext4, Python 3.11. preadv2(2) says of RWF_NOWAIT that it will "not wait for data
# which is not immediately available": a question without a cost, one would think, and without an
# effect. But the kernel sends the read to the device before it says no. So a program that asks, and
# then leaves the reading to a thread, asks for it twice; a probe of what is cached fills the cache; and
# data is in the page cache that nobody has verified. mincore(2) asks without an effect.
#
# Output that was seen:
#     usual advice: EAGAIN; pages of 64 before, and later: 0, 4
#     POSIX_FADV_RANDOM: EAGAIN; pages of 64 before, and later: 0, 1
#     mincore: pages of 64 before, and later: 0, 0
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

PAGES = 64
SIZE = PAGES * mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
os.pwrite(fd, os.urandom(SIZE), 0)
os.fsync(fd)


def resident():
    with mmap.mmap(fd, SIZE) as mapped:
        pages = (ctypes.c_ubyte * PAGES)()
        start = ctypes.c_char.from_buffer(mapped)
        address = ctypes.c_void_p(ctypes.addressof(start))
        failed = libc.mincore(address, ctypes.c_size_t(SIZE), pages)
        del start
    assert not failed
    return sum(page & 1 for page in pages)


def refused():
    try:
        os.preadv(fd, [bytearray(mmap.PAGESIZE)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    return False


def seen(advice, ask):
    os.posix_fadvise(fd, 0, 0, advice)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    before = resident()
    answer = ask()
    time.sleep(0.5)
    return answer, before, resident()


usual, random = (seen(a, refused) for a in (os.POSIX_FADV_NORMAL, os.POSIX_FADV_RANDOM))
asked = seen(os.POSIX_FADV_NORMAL, resident)
for name, (answer, before, after) in (("usual advice", usual), ("POSIX_FADV_RANDOM", random)):
    said = "EAGAIN" if answer else "data"
    print(f"{name}: {said}; pages of {PAGES} before, and later: {before}, {after}")
print(f"mincore: pages of {PAGES} before, and later: {asked[1]}, {asked[2]}")
same = usual[0] and random[0] and usual[1] == random[1] == asked[1] == asked[2] == 0
sys.exit(0 if same and usual[2] and random[2] else 1)
PYTHON
