/* An NBD client that costs next to nothing: random reads and overwrites on several exports, from one
 * thread. The figures of docs/lane-threads.md and bench/shortfalls.py, "Four volumes at once".
 *
 *     cc -O2 -o /tmp/volumes bench/micro/volumes.c
 *     taskset -c 0 bockd serve        # with four volumes a, b, c, d of 128 MiB that were filled
 *     taskset -c 1 /tmp/volumes read 4096 32 1 128 $BOCKD_DATA/nbd.sock a b c d
 *
 * read, write or mixed (30 of 100 are writes), bytes of a request, requests under way on each export,
 * seconds, MiB of an export, socket, exports. It prints requests/s, and microseconds of its own
 * processor time for one; and where one request is under way how long 50, 99 and 99.9 of 100 took.
 */

#define _GNU_SOURCE
#include <endian.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PACKED __attribute__((packed))

enum { MOST = 512, BUFFER_BYTES = 256 << 10, REPLY_BYTES = 16, TIMES = 1 << 20 };

typedef struct PACKED {
    uint32_t magic;
    uint16_t flags, command;
    uint64_t cookie, offset;
    uint32_t length;
} Request;

typedef struct {
    int fd;
    long owed, under_way, done; /* requests: to be sent, sent, answered */
    long skip;                  /* bytes of data that are still to come */
    size_t held;                /* bytes of the next reply's header */
    unsigned char header[REPLY_BYTES]; /* with a cookie that says what was asked */
    double asked;
} Export;

static unsigned writes; /* of 100 */
static long request_bytes, depth, timed;
static float times[TIMES]; /* us */
static uint64_t places, chance = 88172645463325252u;
static unsigned char *data;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void exchange(int fd, const void *said, size_t length, size_t heard)
{
    unsigned char answer[256];
    if (write(fd, said, length) != (ssize_t)length)
        fail("greeting");
    if (heard && recv(fd, answer, heard, MSG_WAITALL) != (ssize_t)heard)
        fail("greeting");
}

static int enter(const char *path, const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct PACKED {
        uint32_t flags;
        uint64_t magic;
        uint32_t option, length;
    } option = {htobe32(3), htobe64(0x49484156454F5054u), htobe32(1), htobe32(strlen(name))};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (connect(fd, (struct sockaddr *)&address, sizeof address))
        fail(path);
    exchange(fd, "", 0, 18);
    exchange(fd, &option, sizeof option, 0);
    exchange(fd, name, strlen(name), 10); /* size and flags, without zeroes */
    return fd;
}

/* Send what is owed, with one call if the socket takes it. */
static void ask(Export *export)
{
    static Request requests[MOST];
    static struct iovec parts[2 * MOST];
    int count = 0, part = 0;
    export->asked = now();
    for (long number = 0; number < export->owed; number++) {
        chance ^= chance << 13, chance ^= chance >> 7, chance ^= chance << 17;
        int write = (chance >> 32) % 100 < writes;
        requests[number] = (Request){htobe32(0x25609513u), 0, htobe16(write), (uint64_t)write,
            htobe64(chance % places * (uint64_t)request_bytes), htobe32(request_bytes)};
        parts[count++] = (struct iovec){&requests[number], sizeof(Request)};
        if (write)
            parts[count++] = (struct iovec){data, request_bytes};
    }
    while (part < count) {
        ssize_t sent = writev(export->fd, parts + part, count - part);
        if (sent < 0)
            fail("sending");
        for (; part < count && (size_t)sent >= parts[part].iov_len; part++)
            sent -= (ssize_t)parts[part].iov_len;
        if (part < count) {
            parts[part].iov_base = (char *)parts[part].iov_base + sent;
            parts[part].iov_len -= (size_t)sent;
        }
    }
    export->under_way += export->owed;
    export->owed = 0;
}

static void answered(Export *export)
{
    if (depth == 1 && timed < TIMES)
        times[timed++] = (float)((now() - export->asked) * 1e6);
    export->done++;
    export->owed++;
    export->under_way--;
}

/* Take what has come. */
static void hear(Export *export)
{
    static unsigned char buffer[BUFFER_BYTES];
    ssize_t got = recv(export->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got == 0)
        exit(1);
    for (unsigned char *at = buffer; got > 0;) {
        size_t length = export->skip ? (size_t)export->skip : REPLY_BYTES - export->held;
        if (length > (size_t)got)
            length = (size_t)got;
        if (export->skip) {
            export->skip -= (long)length;
            if (!export->skip)
                answered(export);
        } else {
            memcpy(export->header + export->held, at, length);
            export->held += length;
            if (export->held == REPLY_BYTES) {
                export->held = 0;
                if (memcmp(export->header, "\x67\x44\x66\x98\0\0\0", REPLY_BYTES / 2))
                    exit(1);
                if (export->header[REPLY_BYTES / 2]) /* little-endian, as it was sent */
                    answered(export);
                else
                    export->skip = request_bytes;
            }
        }
        at += length;
        got -= (ssize_t)length;
    }
}

static int order(const void *one, const void *other)
{
    float difference = *(const float *)one - *(const float *)other;
    return (difference > 0) - (difference < 0);
}

int main(int count, char **arguments)
{
    if (count < 8)
        return 2;
    writes = arguments[1][0] == 'w' ? 100 : arguments[1][0] == 'm' ? 30 : 0;
    request_bytes = atol(arguments[2]);
    depth = atol(arguments[3]);
    places = (uint64_t)atol(arguments[5]) << 20;
    places /= (uint64_t)request_bytes;
    data = malloc((size_t)request_bytes);
    memset(data, 0xa5, (size_t)request_bytes);
    int exports = count - 7, under_way = 1, queue = epoll_create1(0);
    Export *export = calloc((size_t)exports, sizeof *export);
    for (int number = 0; number < exports; number++) {
        export[number].fd = enter(arguments[6], arguments[7 + number]);
        export[number].owed = depth < MOST ? depth : MOST;
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)number};
        epoll_ctl(queue, EPOLL_CTL_ADD, export[number].fd, &event);
    }
    double began = now(), until = began + atof(arguments[4]);
    for (int number = 0; number < exports; number++)
        ask(&export[number]);
    while (under_way) {
        struct epoll_event events[16];
        int ready = epoll_wait(queue, events, 16, -1);
        for (int number = 0; number < ready; number++) {
            Export *one = &export[events[number].data.u32];
            hear(one);
            if (now() < until)
                ask(one);
        }
        under_way = 0;
        for (int number = 0; number < exports; number++)
            under_way |= export[number].under_way > 0;
    }
    double seconds = now() - began;
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                 (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
    long done = 0;
    for (int number = 0; number < exports; number++)
        done += export[number].done;
    printf("%.0f requests/s, %.2f us\n", (double)done / seconds, cpu / (double)done * 1e6);
    if (timed) {
        qsort(times, (size_t)timed, sizeof *times, order);
        printf("%.1f %.1f %.1f us\n", times[timed / 2], times[timed * 99 / 100],
            times[timed * 999 / 1000]);
    }
}
