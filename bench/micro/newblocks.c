/* What new blocks of 4 KiB cost the kernel: at their own offsets in a sparse file, or one behind
 * the other; and what reading in block order costs then. The figures of docs/packed-heads.md.
 *
 *     cc -O2 -o /tmp/newblocks bench/micro/newblocks.c
 *     taskset -c 1 /tmp/newblocks /var/tmp/blocks
 *
 * The file is made anew for each line and removed at the end; the disk should have nothing else to
 * do. Times are of one thread and mean one block, one MiB or one sync.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, MIB = 1 << 20, IN_MIB = MIB / BLOCK };
enum { PLACES = 128 * 1024, WRITTEN = PLACES / 4, SORTED = 4096, FLUSHED = 400 };

static const char *path;
static unsigned char *data; /* one MiB */
static uint32_t block[PLACES]; /* at random; the n-th that is written, or its place */

static double now_us(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e6 + (double)time.tv_nsec / 1e3;
}

static void must(int done, const char *what)
{
    if (!done) {
        perror(what);
        exit(1);
    }
}

static void shuffle(void)
{
    srand(1);
    for (int at = 0; at < PLACES; at++)
        block[at] = (uint32_t)at;
    for (int at = PLACES - 1; at > 0; at--) {
        int other = rand() % (at + 1);
        uint32_t was = block[at];
        block[at] = block[other];
        block[other] = was;
    }
}

static int create(off_t size)
{
    unlink(path);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    must(fd >= 0 && !ftruncate(fd, size), path);
    posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM); /* as layer.py does */
    return fd;
}

static double sync_ms(int fd)
{
    double began = now_us();
    must(!fdatasync(fd), "fdatasync");
    return (now_us() - began) / 1000;
}

static int ascending(const void *one, const void *other)
{
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    return (a > b) - (a < b);
}

enum way { SCATTERED, IN_BATCHES_SORTED, ALLOCATED_AROUND, BEHIND };

static void write_new(int fd, enum way way, int together)
{
    for (int at = 0; at < WRITTEN; at += together) {
        off_t own = (off_t)block[at] * BLOCK;
        if (way == BEHIND)
            own = (off_t)at * BLOCK;
        if (way == ALLOCATED_AROUND)
            must(!fallocate(fd, FALLOC_FL_KEEP_SIZE, own & ~(off_t)0xffff, 0x10000), "fallocate");
        struct iovec parts[32];
        for (int part = 0; part < together; part++)
            parts[part] = (struct iovec){data + part * BLOCK, BLOCK};
        must(pwritev(fd, parts, together, own) == (ssize_t)together * BLOCK, "pwritev");
    }
}

static void measure_writes(const char *name, enum way way, int together)
{
    shuffle();
    if (way == IN_BATCHES_SORTED)
        for (int at = 0; at < WRITTEN; at += SORTED)
            qsort(block + at, SORTED, sizeof *block, ascending);
    int fd = create(way == BEHIND ? 0 : (off_t)PLACES * BLOCK);
    double began = now_us();
    write_new(fd, way, together);
    double first = (now_us() - began) / WRITTEN, first_sync = sync_ms(fd);
    began = now_us();
    for (int at = 0; at < WRITTEN; at++) {
        int number = (int)((int64_t)at * 7919 % WRITTEN);
        off_t offset = (off_t)(way == BEHIND ? (uint32_t)number : block[number]) * BLOCK;
        must(pwrite(fd, data, BLOCK, offset) == BLOCK, "pwrite");
    }
    double again = (now_us() - began) / WRITTEN, again_sync = sync_ms(fd);
    struct stat found;
    must(!fstat(fd, &found), "fstat");
    printf(
        "%-34s first %5.2f us, sync %4.0f ms; overwrite %5.2f us, sync %4.0f ms; %4lld MiB\n", name,
        first, first_sync, again, again_sync, (long long)found.st_blocks / (MIB / 512));
    close(fd);
}

/* One new block, and a sync, again and again. */
static void measure_flushes(const char *name, enum way way, int overwrite)
{
    shuffle();
    int fd = create(way == BEHIND ? 0 : (off_t)PLACES * BLOCK);
    if (overwrite)
        write_new(fd, way, 1);
    sync_ms(fd);
    double began = now_us();
    for (int at = 0; at < FLUSHED; at++) {
        off_t offset = (off_t)(way == BEHIND ? (uint32_t)at : block[at]) * BLOCK;
        must(pwrite(fd, data, BLOCK, offset) == BLOCK && !fdatasync(fd), "pwrite and fdatasync");
    }
    printf("%-34s %5.0f us\n", name, (now_us() - began) / FLUSHED);
    close(fd);
}

/* -- reading in block order: block n lies in order at n, at random at block[n] --------------- */

static void drop(int fd)
{
    must(!fdatasync(fd) && !posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), "fadvise");
}

static double read_mib(int fd, int in_order, int ask_first, int count)
{
    double began = now_us();
    for (int mib = 0; mib < count; mib++) {
        const uint32_t *places = block + mib * IN_MIB;
        for (int at = 0; ask_first && at < IN_MIB; at++)
            posix_fadvise(fd, (off_t)places[at] * BLOCK, BLOCK, POSIX_FADV_WILLNEED);
        if (in_order)
            must(pread(fd, data, MIB, (off_t)mib * MIB) == MIB, "pread");
        for (int at = 0; !in_order && at < IN_MIB; at++)
            must(pread(fd, data + at * BLOCK, BLOCK, (off_t)places[at] * BLOCK) == BLOCK, "pread");
    }
    return (now_us() - began) / count;
}

static double send_mib(const unsigned char *mapped, int in_order, int count)
{
    int pair[2], buffer = 4 * MIB;
    must(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair), "socketpair");
    setsockopt(pair[0], SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer);
    double spent = 0;
    for (int mib = 0; mib < count; mib++) {
        struct iovec parts[IN_MIB];
        for (int at = 0; at < IN_MIB; at++)
            parts[at] = (struct iovec){
                (void *)(mapped + (size_t)block[mib * IN_MIB + at] * BLOCK), BLOCK};
        if (in_order)
            parts[0] = (struct iovec){(void *)(mapped + (size_t)mib * MIB), MIB};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = in_order ? 1 : IN_MIB};
        double began = now_us();
        ssize_t sent = sendmsg(pair[0], &message, MSG_DONTWAIT);
        must(sent > 0, "sendmsg");
        spent += (now_us() - began) * MIB / (double)sent;
        while (recv(pair[1], data, MIB, MSG_DONTWAIT) > 0)
            ;
    }
    close(pair[0]);
    close(pair[1]);
    return spent / count;
}

static void measure_reads(void)
{
    shuffle();
    int fd = create(0), all = PLACES / IN_MIB;
    for (int mib = 0; mib < all; mib++)
        must(pwrite(fd, data, MIB, (off_t)mib * MIB) == MIB, "pwrite");
    size_t length = (size_t)PLACES * BLOCK;
    unsigned char *mapped = mmap(NULL, length, PROT_READ, MAP_SHARED, fd, 0);
    must(mapped != MAP_FAILED, "mmap");
    for (int in_order = 1; in_order >= 0; in_order--)
        printf(
            "cached, %-14s pread %4.0f us a MiB; sendmsg from a mapping %4.0f us a MiB\n",
            in_order ? "in order" : "at random", read_mib(fd, in_order, 0, all),
            send_mib(mapped, in_order, 64));
    munmap(mapped, length);
    drop(fd);
    double in_order = read_mib(fd, 1, 0, 32);
    drop(fd);
    double one_by_one = read_mib(fd, 0, 0, 8);
    drop(fd);
    double asked_first = read_mib(fd, 0, 1, 32);
    printf(
        "from disk, a MiB: in order %.0f us, at random one by one %.0f us, all asked for first "
        "%.0f us\n",
        in_order, one_by_one, asked_first);
    close(fd);
}

int main(int count, char **arguments)
{
    if (count != 2) {
        fprintf(stderr, "usage: %s FILE, on the file system to be measured\n", arguments[0]);
        return 2;
    }
    path = arguments[1];
    data = aligned_alloc(BLOCK, MIB);
    memset(data, 7, MIB);
    measure_writes("own offsets", SCATTERED, 1);
    measure_writes("own offsets, sorted batches", IN_BATCHES_SORTED, 1);
    measure_writes("own offsets, 64 KiB allocated", ALLOCATED_AROUND, 1);
    measure_writes("behind each other, 32 together", BEHIND, 32);
    measure_writes("behind each other, 4 together", BEHIND, 4);
    measure_writes("behind each other, one by one", BEHIND, 1);
    measure_flushes("write and sync, own offsets", SCATTERED, 0);
    measure_flushes("write and sync, behind each other", BEHIND, 0);
    measure_flushes("write and sync, overwriting", SCATTERED, 1);
    measure_reads();
    unlink(path);
    return 0;
}
