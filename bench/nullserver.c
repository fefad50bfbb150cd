/* An NBD server without storage: the benchmark's `null`, which shows how fast the client is.
 *
 *     nullserver SOCKET SIZE_BYTES
 *
 * Reads are answered with zeros, and what is written is thrown away, so that next to nothing is
 * done but to receive, parse and reply; all requests that came together are answered in one call.
 * Between requests it looks for more without sleeping, and so nobody is waited for. What is faster
 * than this is faster than the client can show.
 *
 * Simple replies, the fixed newstyle handshake, NBD_OPT_GO and NBD_OPT_EXPORT_NAME under any name;
 * every other option is refused. A process for each connection.
 */

#define _GNU_SOURCE

#include <endian.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#define PACKED __attribute__((packed))

enum { OPT_EXPORT_NAME = 1, OPT_ABORT = 2, OPT_GO = 7 };
enum { REP_ACK = 1, REP_INFO = 3, INFO_EXPORT = 0 };
enum { CMD_READ = 0, CMD_WRITE = 1, CMD_DISC = 2 };

#define REP_ERR_UNSUP 0x80000001u
#define FIXED_NEWSTYLE_NO_ZEROES 3
/* HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES, CAN_MULTI_CONN */
#define TRANSMISSION_FLAGS (1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8)
#define REQUEST_MAGIC 0x25609513u
#define REPLY_MAGIC 0x67446698u

#define BUFFER_BYTES (256u << 10)
#define MOST_READ_BYTES (32u << 20)
#define MOST_OPTION_BYTES 4096u
/* A reply has one part, or two: so many go into one call. */
#define MOST_PARTS (IOV_MAX - 2)

typedef struct PACKED {
    uint64_t magic, option_magic;
    uint16_t flags;
} Greeting;

typedef struct PACKED {
    uint64_t magic;
    uint32_t option, length;
} Option;

typedef struct PACKED {
    uint64_t magic;
    uint32_t option, type, length;
} OptionReply;

typedef struct PACKED {
    uint64_t size;
    uint16_t flags;
} Export;

typedef struct PACKED {
    uint32_t magic;
    uint16_t flags, command;
    uint64_t cookie, offset;
    uint32_t length;
} Request;

typedef struct PACKED {
    uint32_t magic, error;
    uint64_t cookie;
} Reply;

static unsigned char received[BUFFER_BYTES];
static const unsigned char zeros[MOST_READ_BYTES];

/* Ends this connection's process: the peer is gone, or broke the protocol. */
static void hang_up(void)
{
    _exit(0);
}

static void send_all(int sock, const void *data, size_t length)
{
    while (length) {
        ssize_t count = send(sock, data, length, MSG_NOSIGNAL);
        if (count <= 0)
            hang_up();
        data = (const char *)data + count;
        length -= (size_t)count;
    }
}

static void receive_all(int sock, void *into, size_t length)
{
    if (length && recv(sock, into, length, MSG_WAITALL) != (ssize_t)length)
        hang_up();
}

/* `option` is as it came, in network order. */
static void reply_to_option(
    int sock, uint32_t option, uint32_t type, const void *data, uint32_t length)
{
    OptionReply reply = {htobe64(0x3e889045565a9), option, htobe32(type), htobe32(length)};
    send_all(sock, &reply, sizeof reply);
    send_all(sock, data, length);
}

/* Until the client has chosen the export. */
static void shake_hands(int sock, uint64_t size_bytes)
{
    Greeting greeting = {
        htobe64(0x4e42444d41474943), htobe64(0x49484156454f5054),
        htobe16(FIXED_NEWSTYLE_NO_ZEROES)};
    Export export = {htobe64(size_bytes), htobe16(TRANSMISSION_FLAGS)};
    uint32_t client_flags;
    send_all(sock, &greeting, sizeof greeting);
    receive_all(sock, &client_flags, sizeof client_flags);
    for (;;) {
        Option option;
        unsigned char data[MOST_OPTION_BYTES];
        receive_all(sock, &option, sizeof option);
        if (be32toh(option.length) > sizeof data)
            hang_up();
        receive_all(sock, data, be32toh(option.length));
        switch (be32toh(option.option)) {
        case OPT_EXPORT_NAME: {
            static const unsigned char padding[124];
            send_all(sock, &export, sizeof export);
            if (!(be32toh(client_flags) & 2))
                send_all(sock, padding, sizeof padding);
            return;
        }
        case OPT_GO: {
            struct PACKED {
                uint16_t type;
                Export export;
            } info = {htobe16(INFO_EXPORT), export};
            reply_to_option(sock, option.option, REP_INFO, &info, sizeof info);
            reply_to_option(sock, option.option, REP_ACK, NULL, 0);
            return;
        }
        case OPT_ABORT:
            reply_to_option(sock, option.option, REP_ACK, NULL, 0);
            hang_up();
            break;
        default:
            reply_to_option(sock, option.option, REP_ERR_UNSUP, NULL, 0);
        }
    }
}

static void send_parts(int sock, struct iovec *parts, size_t count)
{
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
    while (message.msg_iovlen) {
        ssize_t sent = sendmsg(sock, &message, MSG_NOSIGNAL);
        if (sent <= 0)
            hang_up();
        while (message.msg_iovlen && (size_t)sent >= message.msg_iov->iov_len) {
            sent -= (ssize_t)message.msg_iov->iov_len;
            message.msg_iov++;
            message.msg_iovlen--;
        }
        if (message.msg_iovlen) {
            message.msg_iov->iov_base = (char *)message.msg_iov->iov_base + sent;
            message.msg_iov->iov_len -= (size_t)sent;
        }
    }
}

/* A write whose data is still to come, and how much of it is. */
static uint64_t unfinished_cookie;
static size_t owed_bytes;

/* Take what of the data that is owed lies at `position`; whether that was the end of it. */
static int take_owed(size_t *position, size_t end)
{
    size_t there = end - *position < owed_bytes ? end - *position : owed_bytes;
    *position += there;
    owed_bytes -= there;
    return owed_bytes == 0;
}

/* Answer the requests that are there; returns where the first one begins that is not. */
static size_t answer(int sock, size_t end)
{
    struct iovec parts[IOV_MAX];
    Reply replies[IOV_MAX];
    size_t position = 0, count = 0, number = 0;
    while (count < MOST_PARTS) {
        uint32_t read_bytes = 0;
        if (!owed_bytes) {
            Request request;
            if (end - position < sizeof request)
                break;
            memcpy(&request, received + position, sizeof request);
            position += sizeof request;
            uint16_t command = be16toh(request.command);
            if (be32toh(request.magic) != REQUEST_MAGIC || command == CMD_DISC)
                hang_up();
            unfinished_cookie = request.cookie;
            if (command == CMD_WRITE)
                owed_bytes = be32toh(request.length);
            else if (command == CMD_READ)
                read_bytes = be32toh(request.length);
            if (read_bytes > sizeof zeros)
                hang_up();
        }
        if (!take_owed(&position, end))
            break;
        Reply *reply = &replies[number++];
        *reply = (Reply){htobe32(REPLY_MAGIC), 0, unfinished_cookie};
        parts[count++] = (struct iovec){reply, sizeof *reply};
        if (read_bytes)
            parts[count++] = (struct iovec){(void *)zeros, read_bytes};
    }
    if (count)
        send_parts(sock, parts, count);
    return position;
}

static void serve(int sock)
{
    size_t end = 0;
    for (;;) {
        ssize_t count = recv(sock, received + end, sizeof received - end, MSG_DONTWAIT);
        if (count < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (count <= 0)
            hang_up();
        end += (size_t)count;
        for (size_t done; (done = answer(sock, end)) > 0;) {
            end -= done;
            memmove(received, received + done, end);
        }
    }
}

int main(int count, char **arguments)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (count != 3 || strlen(arguments[1]) >= sizeof address.sun_path) {
        fprintf(stderr, "usage: nullserver SOCKET SIZE_BYTES\n");
        return 2;
    }
    strcpy(address.sun_path, arguments[1]);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(listener, SOMAXCONN) < 0) {
        perror(arguments[1]);
        return 1;
    }
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        int sock = accept(listener, NULL, NULL);
        if (sock >= 0 && fork() == 0) {
            shake_hands(sock, strtoull(arguments[2], NULL, 10));
            serve(sock);
        }
        if (sock >= 0)
            close(sock);
    }
}
