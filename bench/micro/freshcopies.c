/* What a copy into a new sparse file costs the kernel, by the pieces in which it is written, and
 * what an overwrite of 4 KiB costs afterwards. The figures of bench/shortfalls.py, "Large writes".
 *
 *     cc -O2 -o /tmp/freshcopies bench/micro/freshcopies.c
 *     taskset -c 1 /tmp/freshcopies /var/tmp/copied
 *
 * The file is made anew for each line and removed at the end; the disk should have nothing else to
 * do. Times are of one thread.
 */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef RWF_DONTCACHE
#define RWF_DONTCACHE 0x00000080
#endif

enum { KIB = 1 << 10, MIB = 1 << 20, BLOCK = 4 * KIB, REQUEST = 256 * KIB };
enum { COPIED_MIB = 256, OVERWRITES = 20000, ROUNDS = 3 };
static const off_t COPIED = (off_t)COPIED_MIB * MIB;

typedef struct {
    const char *name;
    size_t piece;
    int allocated; /* the request's range, before it is written */
    int flags;     /* of pwritev2 */
    int pushed;    /* write-back is begun behind each 16 MiB */
} Way;

static const Way ways[] = {
    {"16 KiB", 16 * KIB, 0, 0, 0},
    {"32 KiB", 32 * KIB, 0, 0, 0},
    {"64 KiB", 64 * KIB, 0, 0, 0},
    {"256 KiB", 256 * KIB, 0, 0, 0},
    {"16 KiB, allocated before", 16 * KIB, 1, 0, 0},
    {"32 KiB, allocated before", 32 * KIB, 1, 0, 0},
    {"64 KiB, allocated before", 64 * KIB, 1, 0, 0},
    {"16 KiB, sync_file_range behind", 16 * KIB, 0, 0, 1},
    {"256 KiB, RWF_DONTCACHE", 256 * KIB, 0, RWF_DONTCACHE, 0},
};

static const char *path;
static unsigned char data[REQUEST];

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

static void copy(int fd, const Way *way)
{
    const off_t far = 16 * MIB;
    for (off_t at = 0; at < COPIED; at += REQUEST) {
        if (way->allocated)
            must(!fallocate(fd, FALLOC_FL_KEEP_SIZE, at, REQUEST), "fallocate");
        for (size_t done = 0; done < REQUEST; done += way->piece) {
            struct iovec part = {data + done, way->piece};
            ssize_t count = pwritev2(fd, &part, 1, at + (off_t)done, way->flags);
            must(count == (ssize_t)way->piece, "pwritev2");
        }
        if (way->pushed && at && at % far == 0)
            must(!sync_file_range(fd, at - far, far, SYNC_FILE_RANGE_WRITE), "sync_file_range");
    }
}

/* Microseconds each, in the best round: at random, after all of it was synced. */
static double overwrite(int fd)
{
    double best = 0;
    for (int round = 0; round < ROUNDS; round++) {
        srand((unsigned)round);
        double began = now_us();
        for (int number = 0; number < OVERWRITES; number++) {
            off_t block = ((off_t)rand() * 32768 + rand()) % (COPIED / BLOCK);
            must(pwrite(fd, data, BLOCK, block * BLOCK) == BLOCK, "pwrite");
        }
        double took = (now_us() - began) / OVERWRITES;
        best = round && best < took ? best : took;
        must(!fdatasync(fd), "fdatasync");
    }
    return best;
}

static void measure(const Way *way)
{
    unlink(path);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    must(fd >= 0 && !ftruncate(fd, COPIED) && !fsync(fd), path);
    posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM); /* as layer.py does */
    double began = now_us();
    copy(fd, way);
    double copied = (now_us() - began) / 1000 / COPIED_MIB;
    began = now_us();
    must(!fdatasync(fd), "fdatasync");
    double synced = (now_us() - began) / 1000;
    printf("%-32s %.3f ms/MiB, sync %3.0f ms; overwrite %.2f us\n", way->name, copied, synced,
           overwrite(fd));
    close(fd);
}

int main(int count, char **arguments)
{
    if (count != 2) {
        fprintf(stderr, "usage: %s FILE\n", arguments[0]);
        return 2;
    }
    path = arguments[1];
    memset(data, 7, sizeof data);
    for (size_t number = 0; number < sizeof ways / sizeof *ways; number++)
        measure(&ways[number]);
    unlink(path);
    return 0;
}
