"""Why a target is missed and what was tried, in words: for the page, which knows only by how much.

Written by hand after a full run. The page prints an entry only while one of its rows misses its
target; a missed target without an entry stands there as not yet explained. State what was measured,
with its figures, or what can be read in the code; `python -m bench --from docs/performance.json
--write docs/performance.md` makes the page anew with changed texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True)
class Shortfall:
    """One reason for one or more missed targets; the first that matches a comparison is its."""

    title: str
    rows: tuple[str, ...]
    """Patterns of whole names of rows; "*" matches anything."""
    why: str
    tried: str
    against: str = "*"
    """A pattern of the name that is compared with."""

    def about(self, row: str, baseline: str) -> bool:
        """Return whether this is the reason for a comparison."""
        matches = any(fnmatchcase(row, pattern) for pattern in self.rows)
        return matches and fnmatchcase(baseline, self.against)


_COPIES = """\
| pieces | new data, ms a MiB | 4 KiB overwrite, us |
|---|---:|---:|
| 16 KiB (as it is) | 0.33 | 1.6 |
| 32 KiB | 0.26 | 2.2 |
| 64 KiB | 0.22 | 3.3 |
| 256 KiB | 0.18 | 6.7 |
| 16 KiB, the request's range allocated before (`fallocate`) | 0.26 | 1.6 |
| 32 KiB, the same | 0.19 | 2.1 |
| 64 KiB, the same | 0.16 | 3.0 |
| 16 KiB, `sync_file_range` behind each 16 MiB | 0.41 | 1.6 |
| 256 KiB, `RWF_DONTCACHE` | 0.50 | 1.2 |"""

SHORTFALLS = (
    Shortfall(
        title="A flush after every write, or every 32",
        rows=("4k-randwrite-qd*-flush-*",),
        why=(
            "A flush syncs the layer (`fdatasync`) in a thread, so that other requests go on, and "
            "the loop must hear of its end: two changes of thread, on the one core that the server "
            "has here, where qemu-nbd hands the call to the kernel. In the run above the loop also "
            "polled the socket meanwhile, and came late to the end of the flush. Since then it "
            "does not poll while something is under way: in three rounds against the state before, "
            "1,112 instead of 978 flushes/s at depth 1 (qcow2 1,880), and 24,131 instead of 18,668 "
            "writes/s with a flush after 32 (qcow2 22,089). Later the syncs went to compiled "
            "threads, which need no interpreter: on an AMD machine, in four rounds, 3,627 "
            "flushes/s at depth 1 (qcow2 3,964) and 48,574 writes/s with a flush after 32 (qcow2 "
            "28,844). Since a connection that is alone waits for its sync without the loop, it is "
            "4,967 flushes/s in nine rounds there (3,714 before; qcow2 4,391): 1.14 of qcow2. With "
            "a flush after 32, in five rounds, 48,836 writes/s (46,866 before; qcow2 29,004)."
        ),
        tried=(
            "Kept: flushes that come together share one sync. Kept: a connection waits for its "
            "sync without the loop, and anything that comes for the loop ends the wait. Even so "
            "the way back cost a client beside it some 60 us (one that read once in 3 ms: 139 us "
            "instead of 79, in twelve rounds); so it is done only where no other connection has "
            "worked for a second. Not kept: to wait for the sync and the socket in the loop, in "
            "one task: 1.06 of qcow2, where the wait without the loop had 1.24 in the same seven "
            "rounds. Kept: of a client that flushes after every write, each write in place is "
            "begun to be written back when its reply is sent (`flushhabit.py` in "
            "`bockd/nbd/server/`), so that the disk works while the client hears of it and asks "
            "for the flush: in eight rounds 5,201 flushes/s instead of 4,312 (qcow2 3,672), 1.41 "
            "of qcow2 where it was 1.18. Not tried: syncing on the loop itself, which would hold "
            "up every other volume for as long as the disk takes."
        ),
    ),
    Shortfall(
        title="Small random reads",
        rows=("4k-randread-qd*",),
        why=(
            "What is left for a read is one `preadv` from the page cache and its share of one "
            "`recv` and one `sendmsg`, all made by compiled code; the kernel has most of the "
            "time. The null server, which touches no file, is spared the `preadv`; LMDB values "
            "are read from a mapping, by the same fast lane. At depths 4 and 8 few requests are "
            "there when the server looks, so that two system calls are shared by one to three of "
            "them. Processor time counts the polling: a server that waits for a client that "
            "sends again at once looks at the socket all the time, and its core is busy "
            "throughout, so that its time for a request is the time that passes. nbdkit sleeps "
            "then, and is woken later."
        ),
        tried=(
            "Kept: the compiled fast lane (depth 32, without and with it: 190,000 and 261,000); "
            "receiving and sending in it, too, while nobody else needs the loop (depth 4: 1.8 "
            "times as fast as before, depth 8: 1.5 times, depth 1: 1.15 times). Not kept: waiting "
            "for more requests before a batch is served (5 to 20 us; no gain beyond the noise); "
            "sending blocks of 4 KiB from a mapping (equal at depth 32, 0.93 at depth 128: to see "
            "whether a page is there costs what the copy does); smaller batches of replies."
        ),
    ),
    Shortfall(
        title="Small random writes",
        rows=("4k-randwrite-qd*",),
        why=(
            "One `pwrite` for each request copies it into the page cache, which is what every "
            "server of a file pays: 2.9 us of it where the file was filled by writes of 64 KiB or "
            "less. Where large writes have built large folios, the others pay far more and bockd "
            "does not. At depth 1 the null server is ahead by that `pwrite`. From depth 8 on the "
            "client is the limit, or nearly so, and the processor time counts the polling, as "
            "above: 211,895 writes/s at 4.6 us each are 0.97 of a core (depth 32, filled by 4 KiB)."
        ),
        tried=(
            "Kept: the compiled fast lane (125,000 and 146,000 at depth 32); new blocks written in "
            "pieces of at most 16 KiB, which makes overwrites cheap (2.9 us of CPU, with pieces of "
            "64 KiB 4.4, of 1 MiB 10). Not tried: joining neighbours in one `pwritev`, of which "
            "random writes have none."
        ),
    ),
    Shortfall(
        title="Large writes",
        rows=("64k-randwrite-qd16", "1m-write-qd8", "nbdcopy-in", "nbdcopy-in-fresh"),
        why=(
            "The price of cheap overwrites: the page cache holds a layer in folios of at most "
            "16 KiB, and each takes its own turn in ext4's write path (new data costs 0.31 ms a "
            "MiB, in pieces of 64 KiB 0.23). Where a file system overwrites large folios as fast "
            "as small ones, which ext4 of Linux 6.16 and later does not and XFS does, a pool "
            "notices it and writes pieces of 256 KiB. Writes of 1 MiB were received in Python, "
            "piece by piece, into memory of their own; since then the fast lane writes them as "
            "they come: in three rounds 4,393 instead of 2,889 writes/s at depth 4 (nbdkit file "
            "3,036)."
        ),
        tried=(
            "Kept: overwrites in pieces of 64 KiB; polling for the rest of a payload before "
            "parking, no task for the answer, and a turn of the loop only when it is due (1 MiB "
            "writes: 1.27 times as fast as before). Not kept: one buffer for all payloads of a "
            "connection (5% more speed, 1 MiB more for each connection); other ways to write what "
            "is copied where nothing is yet, of which each has its price. Of the kernel alone, "
            "256 MiB written by 256 KiB, then overwritten at random (`bench/micro/freshcopies.c`, "
            f"Linux 6.18, ext4, on an AMD machine):\n\n{_COPIES}\n\n"
            "With 64 KiB for writes that are longer than that, the whole daemon took `nbdcopy` "
            "into a fresh volume at 0.83 of nbdkit file instead of 0.75 (five rounds), and random "
            "overwrites of what was copied at 0.92, 0.76 and 0.79 of what they were (depth 1, 4 "
            "and 32; six pairs). With 32 KiB it was 0.79. To allocate each request's range before "
            "it is written changes no later write, but brought 0.74 instead of 0.69 (three "
            "rounds), and a client that hangs up within a request would leave blocks allocated "
            "that no map leads to. The last two push data to the disk while it comes, and the "
            "last one leaves nothing of it in the page cache."
        ),
    ),
    Shortfall(
        title="First writes all over a large volume",
        rows=("wide-first-writes",),
        why=(
            "Every write changes a leaf of its own, and after 16,384 leaves a checkpoint syncs the "
            "layer, in the middle of the run: 44% of the daemon's processor time, in which the "
            "file system allocates what nbdkit leaves to a later write-back."
        ),
        tried=(
            "Kept: one load of the map goes on behind its group while the leaf cache has room, so "
            "that a new volume is known after a few loads, and leaves are encoded in a quarter of "
            "the time: 53,000 to 55,000 writes/s in quiet runs (0.52 and 0.62 of nbdkit file, two "
            "rounds each) instead of 30,900 (0.29), but 37,900 (0.44) in a disturbed one. Not "
            "tried: more leaves before a checkpoint, which are pinned in memory until then."
        ),
    ),
    Shortfall(
        title="Writes just after a snapshot, against before it",
        rows=("after-snapshot-4k-randwrite-qd32-*",),
        why=(
            "After a snapshot every block goes to a new place, and the change of the map goes to "
            "the journal. New places follow one another (docs/packed-heads.md), which is what made "
            "up for it in the other rows. In a full run this row came first after twenty minutes "
            "of other servers' writes: 67,702 to 164,663 writes/s, after 180,000 to 234,000 "
            "before the snapshot. Alone, half an hour later, it had 0.99 (0.90..1.12) in five "
            "rounds of the same commit. What held it up in the full run was not found."
        ),
        tried=(
            "Kept: packed heads (0.54 before them); a shorter way for the redirect of a single "
            "whole block, which reads and copies nothing; one journal append for a batch; "
            "scattered blocks sharing a record; redirects of whole blocks in the compiled fast "
            "lane."
        ),
    ),
    Shortfall(
        title="Writes just after a snapshot, against an overlay",
        rows=("after-snapshot-against-overlay", "after-snapshot-space-against-overlay"),
        why=(
            "qemu-nbd 7.2 on this machine is faster on a fresh overlay than where the target was "
            "taken (3,000 to 4,700 writes/s there, 15,362 here), and bockd's first writes are "
            "bound by the kernel's allocation, as above. In space, one block in sixteen is "
            "written: 64 KiB clusters make that 10 times as much as blocks of 4 KiB, less the "
            "journal's and the index's share."
        ),
        tried="What is said above of the writes themselves.",
    ),
    Shortfall(
        title="Reads through 100 snapshots",
        rows=("reads-through-100-snapshots",),
        why=(
            "The map of one leaf says where each block is, however many snapshots there are, but "
            "the blocks are spread over 101 files: a batch meets more of them than the fast lane "
            "keeps at hand (8), and each has page cache of its own. The spread of the rounds is "
            "larger than what is missing."
        ),
        tried="Kept: slots instead of chains, so that a read never looks through layers.",
    ),
    Shortfall(
        title="Four volumes at once",
        rows=("4-volumes-*",),
        why=(
            "All volumes are served by one process, on one core here. In the run above four "
            "connections shared its loop in turns, so that batches were smaller and the fast lane "
            "did not receive by itself. Since then they take their turns together, in compiled "
            "code, and in threads where there is more than one core (docs/lane-threads.md)."
        ),
        tried=(
            "Kept: turns together. On an AMD machine, in four interleaved rounds with a client "
            "that costs next to nothing (bench/micro/volumes.c), 548,853 instead of 431,138 "
            "reads/s and 469,668 instead of 360,294 writes/s on one core; 929,475 instead of "
            "449,505 and 794,904 instead of 355,687 on two, which the client shared. With fio, "
            "which costs more for a request than the server, on one core, reads were 1.06 and "
            "writes 1.05 of before in eight pairs. Not tried: worker processes, one or more "
            "volumes each; every promise would have to be proved anew."
        ),
    ),
    Shortfall(
        title="Large requests through TLS",
        rows=("tls-*",),
        why=(
            "Most of the time is the cipher's (AES-256-GCM, which both ends prefer) and the "
            "kernel's copies. On an AMD machine, in four interleaved rounds with nothing else "
            "running, reads had 1.05 and writes 1.07 of nbdkit's speed, with 0.66 and 0.68 ms of "
            "the server's processor time for a MiB (nbdkit 0.69 and 0.58): the client was what "
            "limited both."
        ),
        tried=(
            "Not kept: OpenSSL on the socket itself, 0.62 ms a MiB for sending and 0.50 for "
            "receiving, where memory between the two takes 0.48 and 0.41; records handed over in "
            "larger pieces (equal); buffers that are used again (1.02, within the noise); pieces "
            "of 256 and 128 KiB (0.94 and 0.85 of the speed). Not available here: TLS in the "
            "kernel, which needs a module."
        ),
    ),
    Shortfall(
        title="Small requests through the file view",
        rows=("fuse-4k-*",),
        against="qemu-storage-daemon fuse",
        why=(
            "Every request is a message of its own from the kernel, handed on by pyfuse3 as two "
            "coroutines. With trio's own waiting it also takes two turns of the event loop and "
            "three system calls before it is read: at depth 32 23 us of the daemon's processor "
            "time for a read, QEMU's 12 us. Since then its tasks go on while there are requests "
            "(`bockd/fuse/prompt.py`): on an AMD machine, in four interleaved rounds, 104,509 "
            "instead of 43,910 reads/s (QEMU 82,113: 1.26 instead of 0.53 of it) and 94,287 "
            "instead of 38,001 writes/s (3.09 instead of 1.27), with 9.4 and 10.6 us for one. At "
            "depth 1 nothing has changed (18,924 and 19,299 reads/s, QEMU 18,454). The price: a "
            "read over NBD beside a file that is read at depth 32 takes 151 instead of 56 us, as "
            "the rest of the daemon runs after 0.1 ms."
        ),
        tried=(
            "Kept: reads and writes that need no waiting are answered in pyfuse3's handler itself, "
            "without tasks, threads or further coroutines. Not kept: the kernel's protocol spoken "
            "without pyfuse3, which came to 93,725 reads/s and 80,535 writes/s in a round of its "
            "own, in which QEMU had half as many reads as above (1.96 and 6.99 of it): more code "
            "to keep, and not shown to be faster than this."
        ),
    ),
    Shortfall(
        title="Large writes through the file view",
        rows=("fuse-1m-write-qd8",),
        against="qemu-storage-daemon fuse",
        why=(
            "What is said above of large writes over NBD: the layer's page cache is in folios of "
            "at most 16 KiB, where QEMU's file has large ones. Before that the kernel copies each "
            "request into libfuse's memory (over a third of the daemon's 0.43 ms for a MiB), and "
            "pyfuse3 from there into an object of Python's (7%). On an AMD machine, in three "
            "interleaved rounds, 2,104 writes/s (QEMU 3,943: 0.53)."
        ),
        tried=(
            "Not kept: the kernel's protocol spoken without pyfuse3, with data that begins at a "
            "page and is written from where the kernel put it: 2,630 writes/s in a round of its "
            "own (QEMU 4,080, 0.64). Not possible with pyfuse3 3.5: memory of ours for what is "
            "received, and libfuse's options `max_write` and `max_background`, which it refuses; "
            "requests are of 1 MiB as it is, the kernel's largest. `splice` is not used here, as a "
            "profile shows."
        ),
    ),
    Shortfall(
        title="Reads in order of what was written at random after a snapshot",
        rows=("in-order-1m-read-written-at-random*",),
        why=(
            "The price of packed heads: blocks lie in the order in which they came, so that a "
            "read of 1 MiB is put together of 256 pieces, and from the disk of as many places."
        ),
        tried=(
            "Kept: settling (docs/packed-heads.md), which puts them in order in the background: "
            "the row `in-order-1m-read-settled-cold` is read after it, and `-written-in-order` "
            "needs none. Not kept: raw heads, with which first writes had 0.54 of the speed "
            "before a snapshot."
        ),
    ),
    Shortfall(
        title="First reads all over a large volume",
        rows=("wide-first-reads",),
        why=(
            "Every read needs a leaf of its own, which is loaded from the index, where nbdkit's "
            "map is the file system's own. In an earlier run on such a machine it had 0.59."
        ),
        tried="Kept: leaves in compiled memory, loaded by groups (0.18 before).",
    ),
    Shortfall(
        title="Exports to a file",
        rows=("volume-export",),
        why=(
            "The rounds lie far apart: 480, 1,001, 1,875, 938 and 1,764 MiB/s, where qemu-img had "
            "1,014 to 1,252. Both write a new file, and how much of it goes to the disk in the "
            "meantime is the kernel's choice. No cause in the export itself was found."
        ),
        tried="Kept: requests for data alone, several at once (1.5 to 8 times slower before).",
    ),
    Shortfall(
        title="A neighbour of zeros that take their room",
        rows=("zeroes-no-hole-neighbour-p99",),
        why=(
            "The zeros are one `fallocate` after another, in a thread, on the only core that the "
            "server has; a read that comes meanwhile waits for its turn. It is 0.11 ms for 99 of "
            "100 (127 ms when zeros were written); what it is held against has become faster, "
            "too, 0.04 ms."
        ),
        tried=(
            "Kept: zero ranges of the file system, in pieces, so that a volume's other requests "
            "come between them."
        ),
    ),
    Shortfall(
        title="Beside requests to the API",
        rows=("api-load-*",),
        why=(
            "The API runs in the same process, on the same core: 100 requests a second took 0.12 "
            "of the reads and 0.17 of the writes. (`api-show` alone is answered some 1,400 times "
            "a second.)"
        ),
        tried=(
            "Not tried: a process of its own for the API, which would need the index and the "
            "exports at second hand."
        ),
    ),
    Shortfall(
        title="A pool in Ceph: processor time, and single requests",
        rows=("rbd-*",),
        why=(
            "Both servers have librbd do the work, in its own threads. Beside it bockd's loop is "
            "Python: at depth 32, on one core with little else at work, 45 us of processor time "
            "for a read of 4 KiB, of which 20 are librbd's threads', 16 the interpreter's, and the "
            "rest system calls and librbd's beginning of the request (qemu-nbd 33 us, 21 of them "
            "librbd's threads'). At depth 1 the loop is woken twice for each request, by the "
            "client and by the result: 80 us where qemu-nbd's main thread takes 40. Where "
            "structured replies are asked for, qemu-nbd looks at the image's holes for each read, "
            "and takes 140 to 150 us."
        ),
        tried=(
            "Kept: the loop takes results itself, all that have come at once, instead of a thread "
            "of the image's; no task for each request; one call that sends a burst of replies; "
            "reads into the reply itself: together 62 us instead of 90 for a read at depth 32 "
            "(structured replies) and 58 instead of 94 (simple ones), in two interleaved rounds on "
            "a busy machine. Kept: librbd does not wait for neighbours of a write to join them. "
            "Kept later than the figures above: a small compiled module between the interpreter "
            "and librbd (2.0 us of calls by ctypes became 0.2 us), and fewer steps for a read; "
            "with librbd's functions replaced by ones that do nothing all of the server's Python "
            "for a read took 6.7 us instead of 10.9 (32 at once, fastest of 3000). Of the "
            "daemon as a whole, with simple replies, 0.87 (0.83 to 1.04) of the processor "
            "time, in five interleaved pairs on a machine with other work. All rows, five rounds "
            "on a machine with nothing else to do, the cluster on the same two cores: reads at "
            "depth 32 2.26 of qemu-nbd's rate (structured replies) and 0.92 (simple ones, 0.84 "
            "to 1.03), writes 1.21; at depth 1 reads 0.71 and writes 0.89 (0.68 to 1.05); of "
            "1 MiB reads 1.71 and writes 0.89 (0.70 to 1.28). Of the samples of the "
            "daemon in a run of these simple reads 46% were in the interpreter. "
            "Not kept: requests that go on in the thread that makes them "
            "(`rbd_non_blocking_aio`): the loop took 39 us for a read instead of 29, and it is one "
            "loop for all volumes. Not kept: no debug output of librbd's and librados' in memory "
            "(`debug_* = 0/0`), no counters of throttles (1.09, within the noise). Not kept: "
            "payloads that librbd does not copy (338 us of the "
            "loop for a MiB instead of 457): a write of a gateway that was shut out then never "
            "ended."
        ),
    ),
    Shortfall(
        title="Hits of the cache before a pool in Ceph",
        rows=("cache-hits-*",),
        why=(
            "Hits are read by the same compiled lane as blocks of a local pool, and as fast, "
            "and fio is what limits both: in three rounds on a machine with other work 28,834 "
            "hits/s, 1.01 of a local pool and 0.95 of the null server, which were 11.8 times "
            "the reads of the same cluster without the cache. With the client that costs next "
            "to nothing they were 79,980, 1.00 of a local pool and 24.7 times the uncached. "
            "Before that `python -m tests.drivers.rbd.cachespeed` had found 95,900 by fio, "
            "against 13,700 without the cache: 7.0."
        ),
        tried=(
            "Nothing: a hit has no work of its own left that a local read does not have. The row "
            "shows the null server, too, which says what the client can do at most."
        ),
    ),
)
