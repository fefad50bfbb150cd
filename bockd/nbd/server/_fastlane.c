/* The inner loop of the hot path, compiled; see fastlane.py, which says what it is for.
 *
 * It does nothing that batch.py and the local driver do not do in Python, it only does less: it takes
 * plain reads and writes whose blocks lie in one file, and writes of whole blocks that are new to
 * the head (_fastlane_redirect.h), and hands every other request back. What fails here is handed
 * back, too, so that Python does it again and meets the error itself.
 *
 * The data of larger reads is sent from a mapping of the file, if all of it is in the page cache:
 * so it is copied once and not twice. Nothing here touches what is mapped, where a page that cannot
 * be read would kill the process; sendmsg fails instead. What the socket does not take at once is
 * read into the reply buffer, so that nothing is left to be sent from a file that changes.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "_fastlane_wire.h"

#include "_fastlane_map.h"

#include "_fastlane_missed.h"

/* Of one round. No more requests of it are served, so that acknowledgements have room. */
#define MAX_REQUESTS 512

#include "_fastlane_redirect.h"

/* Shorter reads are copied: to see whether a page is there costs as much. */
#define MIN_MAPPED_BYTES (8 * 1024)
/* Longer ones are not sent from here. */
#define MAX_MAPPED_BYTES (1024 * 1024)
/* Mapped reads of one round: with what lies between them, fewer parts than sendmsg takes. */
#define MAX_MAPPED 128
#define PAGE_BYTES 4096

/* Data that is in the file and not in the reply buffer, where its place is left empty. */
typedef struct {
    Py_ssize_t at, length; /* in the reply buffer */
    unsigned char *data;
    int fd;
    off_t offset;
} Gap;

/* -- serving ----------------------------------------------------------------------------------- */

enum served { NOT_SERVED, SERVED, MISSED };

/* Read into `into`. NOT_SERVED, too, when an exception is set; MISSED fills `missed`. */
static enum served serve_read(
    View *view, const Request *request, unsigned char *into, Missed *missed)
{
    if (request->offset > view->readable || request->length > view->readable - request->offset)
        return NOT_SERVED;
    long slot = find_slot(view, request->offset, request->length);
    if (slot < 0)
        return NOT_SERVED;
    const File *file = find_file(view, slot);
    if (file == NULL)
        return NOT_SERVED;
    if (file->fd == HOLE) {
        memset(into, 0, request->length);
        return SERVED;
    }
    struct iovec part = {into, request->length};
    ssize_t count;
    if (file->flags) { /* does not wait: others need not have the lock meanwhile */
        count = preadv2(file->fd, &part, 1, (off_t)request->offset, file->flags);
    } else {
        int fd = file->fd;
        Py_BEGIN_ALLOW_THREADS
        count = preadv(fd, &part, 1, (off_t)request->offset);
        Py_END_ALLOW_THREADS
    }
    if (count == (ssize_t)request->length)
        return SERVED;
    if (!file->flags || (count < 0 ? errno != EAGAIN : count == 0))
        return NOT_SERVED;
    *missed = (Missed){
        file->slot, file->fd, request->offset, (uint32_t)request->length, 0, request->cookie};
    return MISSED;
}

/* Where a read's data can be sent from; false when it must be copied, or an exception is set. The
 * window stays in use until the next one is found: `held` keeps it for longer. */
static int map_read(View *view, const Request *request, Gap *gap, PyObject *held)
{
    if (request->offset > view->readable || request->length > view->readable - request->offset)
        return 0;
    long slot = find_slot(view, request->offset, request->length);
    if (slot < 0)
        return 0;
    const File *file = find_file(view, slot);
    if (file == NULL || file->fd == HOLE || !file->flags)
        return 0;
    const PyObject *before = view->mapped.window;
    if (!find_window(view, file, request->offset))
        return 0;
    if (view->mapped.window != before && PyList_Append(held, view->mapped.window) < 0)
        return 0;
    uint64_t start = request->offset - view->mapped.start;
    if (start > view->mapped.length || request->length > view->mapped.length - start)
        return 0; /* the file is shorter than it should be */
    unsigned char resident[MAX_MAPPED_BYTES / PAGE_BYTES + 1];
    uint64_t first = start & ~(uint64_t)(PAGE_BYTES - 1);
    size_t reach = (size_t)(start + request->length - first);
    if (mincore(view->mapped.address + first, reach, resident) < 0)
        return 0;
    for (size_t page = 0; page < (reach + PAGE_BYTES - 1) / PAGE_BYTES; page++)
        if (!(resident[page] & 1))
            return 0;
    gap->length = (Py_ssize_t)request->length;
    gap->data = view->mapped.address + start;
    gap->fd = file->fd;
    gap->offset = (off_t)request->offset;
    return 1;
}

/* Write in place, or whole blocks into the head; false when that is for Python to do, or an
 * exception is set. */
static int serve_write(
    View *view, Redirects *redirects, const Request *request, const unsigned char *data)
{
    if (view->head_slot < 0 || request->offset > view->writable ||
        request->length > view->writable - request->offset)
        return 0;
    if (find_slot(view, request->offset, request->length) != view->head_slot)
        return !PyErr_Occurred() && redirect(view, redirects, request, data);
    if (view->minds_zeros && covers_zeros(data, request->offset, request->length))
        return 0;
    const File *file = find_file(view, view->head_slot);
    if (file == NULL || file->fd < 0 || note_unsynced(view) < 0)
        return 0;
    int fd = file->fd;
    ssize_t count;
    Py_BEGIN_ALLOW_THREADS
    count = pwrite(fd, data, request->length, (off_t)request->offset);
    Py_END_ALLOW_THREADS
    return count == (ssize_t)request->length;
}

/* -- rounds ------------------------------------------------------------------------------------ */

static int append_request(PyObject *list, const Request *request)
{
    PyObject *tuple = Py_BuildValue(
        "(HHKKKn)", request->flags, request->command, (unsigned long long)request->cookie,
        (unsigned long long)request->offset, (unsigned long long)request->length, request->body);
    if (tuple == NULL)
        return -1;
    int failed = PyList_Append(list, tuple);
    Py_DECREF(tuple);
    return failed;
}

/* What the arguments of a call say. */
typedef struct {
    Py_buffer received, reply;
    enum style style;
    unsigned long long max_read, max_payload;
    int max_missed, sock;
    long long poll_ns, turn_ns;
    PyObject *rest; /* requests that were not served */
    PyObject *held; /* windows in use */
} Call;

/* Of one round: from receiving to sending. */
typedef struct {
    Py_ssize_t filled, acknowledged; /* bytes: replies to reads, and to writes */
    Py_ssize_t sent;                 /* of both together */
    Py_ssize_t served;
    enum { AT_THE_END, FOR_WANT_OF_ROOM, AT_THE_PARSERS } stopped;
    Py_ssize_t missed_bytes; /* of their replies */
    int gap_count, missed_count;
    Gap gaps[MAX_MAPPED];
    Missed missed[MAX_REQUESTS];
    unsigned char acknowledgements[MAX_REQUESTS * MAX_REPLY_BYTES];
} Round;

typedef struct {
    Py_ssize_t position, end;
    int64_t started; /* the last round */
    uint64_t reads, read_bytes, writes, written_bytes, received_bytes;
    int polled; /* in vain */
    int unflagged; /* whether there was a write whose flags do not mention its payload */
} Outcome;

static int changes(uint16_t command)
{
    return command != CMD_READ && command != CMD_FLUSH && command != CMD_CACHE &&
           command != CMD_BLOCK_STATUS;
}

/* Serve what has been received, from outcome->position on; -1 with an exception set. */
static int serve_received(
    View *view, const Call *call, Redirects *redirects, Round *round, Outcome *outcome)
{
    enum style style = call->style;
    int extended = style == EXTENDED;
    uint16_t write_flags = extended ? FLAG_PAYLOAD_LEN : 0;
    Py_ssize_t header = data_header_bytes(style);
    const unsigned char *received = call->received.buf;
    unsigned char *into = call->reply.buf, *acknowledge = round->acknowledgements;
    for (int count = 0;; count++) {
        Request request;
        Missed missed;
        Py_ssize_t next = take(
            received, outcome->position, outcome->end, extended, call->max_payload, &request);
        if (next <= 0) {
            round->stopped = next == INCOMPLETE ? AT_THE_END : AT_THE_PARSERS;
            break;
        }
        if (count == MAX_REQUESTS || round->missed_bytes >= MAX_MISSED_BYTES) {
            round->stopped = FOR_WANT_OF_ROOM;
            break;
        }
        outcome->unflagged |= request.unflagged;
        enum served served = NOT_SERVED;
        int may_map = call->sock >= 0 && request.length >= MIN_MAPPED_BYTES &&
                      request.length <= MAX_MAPPED_BYTES && round->gap_count < MAX_MAPPED;
        if (request.command == CMD_READ && !request.flags && request.length &&
            (request.length <= call->max_read || may_map) && !touches_mark(&view->marks, &request)) {
            Py_ssize_t data = round->filled + header;
            if (data + (Py_ssize_t)request.length > call->reply.len) {
                round->stopped = FOR_WANT_OF_ROOM;
                break;
            }
            Gap *gap = &round->gaps[round->gap_count];
            if (may_map && map_read(view, &request, gap, call->held)) {
                gap->at = data;
                round->gap_count++;
                served = SERVED;
            } else if (!PyErr_Occurred() && request.length <= call->max_read) {
                served = serve_read(view, &request, into + data, &missed);
            }
            if (served == MISSED && round->missed_count < call->max_missed) {
                missed.at = (uint32_t)(round->missed_bytes + header);
                round->missed[round->missed_count++] = missed;
                round->missed_bytes += header + (Py_ssize_t)request.length;
                outcome->position = next;
                continue;
            }
            if (served == SERVED) {
                put_data_header(into + round->filled, style, &request);
                round->filled = data + (Py_ssize_t)request.length;
                outcome->reads++;
                outcome->read_bytes += request.length;
            }
        } else if (request.command == CMD_WRITE && request.flags == write_flags && request.length) {
            served = serve_write(view, redirects, &request, received + request.body) ?
                SERVED : NOT_SERVED;
            if (served == SERVED) {
                acknowledge = put_done(acknowledge, style, &request);
                outcome->writes++;
                outcome->written_bytes += request.length;
            }
        }
        if (served == SERVED) {
            round->served++;
        } else {
            if (PyErr_Occurred() || append_request(call->rest, &request) < 0)
                return -1;
            /* The protocol promises no order among requests in flight. All the same, no write
             * overtakes a change that was sent before it and is not made yet. */
            if (changes(request.command))
                view->head_slot = -1;
        }
        outcome->position = next;
    }
    round->acknowledged = acknowledge - round->acknowledgements;
    return 0;
}

/* Serve what has been received, and have the journal know of what it redirected: of what is
 * answered then. When the journal fails, nothing of the round is acknowledged (promise D1): its
 * writes are handed back, and refused by a volume that has failed. -1 with an exception set. */
static int serve_round(
    View *view, const Call *call, Redirects *redirects, Round *round, Outcome *outcome)
{
    Outcome before = *outcome;
    for (;;) {
        if (serve_received(view, call, redirects, round, outcome) < 0) {
            PyObject *type, *value, *traceback;
            PyErr_Fetch(&type, &value, &traceback);
            commit_redirects(redirects);
            PyErr_Restore(type, value, traceback);
            return -1;
        }
        int committed = commit_redirects(redirects);
        if (committed)
            return committed < 0 ? -1 : 0;
        *outcome = before;
        memset(round, 0, offsetof(Round, gaps));
        if (PyList_SetSlice(call->rest, 0, PyList_Size(call->rest), NULL) < 0)
            return -1;
        view->head_slot = -1; /* now nothing is written, and so nothing redirected */
    }
}

/* Send a round's replies as far as the socket takes them now. Data of the rest that is still in
 * files is read into the reply buffer; -1 with an exception set when that fails. */
static int send_replies(const Call *call, Round *round)
{
    unsigned char *reply = call->reply.buf;
    struct iovec parts[2 * MAX_MAPPED + 2];
    int count = 0;
    Py_ssize_t at = 0;
    for (int number = 0; number < round->gap_count; number++) {
        const Gap *gap = &round->gaps[number];
        if (gap->at > at)
            parts[count++] = (struct iovec){reply + at, (size_t)(gap->at - at)};
        parts[count++] = (struct iovec){gap->data, (size_t)gap->length};
        at = gap->at + gap->length;
    }
    if (round->filled > at)
        parts[count++] = (struct iovec){reply + at, (size_t)(round->filled - at)};
    /* Others put more replies to reads in front of these, if there is a rest: they stay whole. */
    if (round->acknowledged && !PyList_Size(call->rest))
        parts[count++] = (struct iovec){round->acknowledgements, (size_t)round->acknowledged};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
    ssize_t sent = sendmsg(call->sock, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    round->sent = sent < 0 ? 0 : sent; /* who sends the rest meets the error */
    for (int number = 0; number < round->gap_count; number++) {
        const Gap *gap = &round->gaps[number];
        Py_ssize_t done = round->sent > gap->at ? round->sent - gap->at : 0;
        while (done < gap->length) {
            ssize_t got;
            Py_BEGIN_ALLOW_THREADS /* should a page be gone since it was seen */
            got = pread(
                gap->fd, reply + gap->at + done, (size_t)(gap->length - done), gap->offset + done);
            Py_END_ALLOW_THREADS
            if (got <= 0) {
                errno = got < 0 ? errno : EIO;
                PyErr_SetFromErrno(PyExc_OSError);
                return -1;
            }
            done += got;
        }
    }
    return 0;
}

static int64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* Receive, looking again and again for so long; as recv, errno included. */
static ssize_t poll_socket(int sock, void *into, size_t room, int64_t nanoseconds)
{
    ssize_t count;
    int error;
    Py_BEGIN_ALLOW_THREADS
    int64_t until = now_ns() + nanoseconds;
    do {
        count = recv(sock, into, room, MSG_DONTWAIT);
        error = errno;
    } while (count < 0 && (error == EAGAIN || error == EWOULDBLOCK) && now_ns() < until);
    Py_END_ALLOW_THREADS
    errno = error;
    return count;
}

/* Receive behind what is left of the last request; whether something came. */
static int receive_more(const Call *call, Outcome *outcome, int64_t until)
{
    unsigned char *received = call->received.buf;
    Py_ssize_t left = outcome->end - outcome->position;
    int64_t time = until - now_ns();
    if (left == call->received.len || time <= 0)
        return 0;
    if (left)
        memmove(received, received + outcome->position, (size_t)left);
    outcome->position = 0;
    outcome->end = left;
    ssize_t count = poll_socket(
        call->sock, received + left, (size_t)(call->received.len - left),
        time < call->poll_ns ? time : call->poll_ns);
    if (count <= 0) { /* whoever receives next meets what it was */
        outcome->polled = time >= call->poll_ns;
        return 0;
    }
    outcome->end += count;
    outcome->received_bytes += (uint64_t)count;
    return 1;
}

static int append_latency(PyObject *list, int64_t nanoseconds, Py_ssize_t requests)
{
    PyObject *tuple = Py_BuildValue("(Ln)", (long long)nanoseconds, requests);
    if (tuple == NULL)
        return -1;
    int failed = PyList_Append(list, tuple);
    Py_DECREF(tuple);
    return failed;
}

/* Round after round, as long as there is nothing for others to do; -1 with an exception set. */
static int serve_rounds(
    View *view, const Call *call, Redirects *redirects, Round *round, Outcome *outcome,
    PyObject *latencies)
{
    int64_t until = now_ns() + call->turn_ns;
    for (;;) {
        outcome->started = now_ns();
        memset(round, 0, offsetof(Round, gaps));
        if (serve_round(view, call, redirects, round, outcome) < 0)
            return -1;
        Py_ssize_t replies = round->filled + round->acknowledged, left = PyList_Size(call->rest);
        if (call->sock >= 0 && replies && (!left || round->gap_count) &&
            send_replies(call, round) < 0)
            return -1;
        if (left || round->missed_count || round->sent < replies)
            return 0;
        if (round->served) {
            if (append_latency(latencies, now_ns() - outcome->started, round->served) < 0)
                return -1;
            round->served = 0;
        }
        if (!call->poll_ns || round->stopped == AT_THE_PARSERS)
            return 0;
        if (round->stopped == FOR_WANT_OF_ROOM ? now_ns() > until :
                                                 !receive_more(call, outcome, until))
            return 0;
    }
}

PyDoc_STRVAR(serve_doc,
"serve(received, start, end, reply, style, view, readable, writable, max_read, max_payload,\n"
"max_missed, sock, poll_ns, turn_ns)\n\n"
"Serve the plain requests in received[start:end]; see fastlane.py.");

static PyObject *serve(PyObject *Py_UNUSED(module), PyObject *args)
{
    Call call = {0};
    Outcome outcome = {0};
    Py_ssize_t start, end;
    int style;
    unsigned long long readable, writable;
    View view = {0};
    if (!PyArg_ParseTuple(
            args, "w*nnw*iO&KKKKiiLL:serve", &call.received, &start, &end, &call.reply, &style,
            parse_view, &view, &readable, &writable, &call.max_read, &call.max_payload,
            &call.max_missed, &call.sock, &call.poll_ns, &call.turn_ns))
        return NULL;
    view.readable = readable < view.readable ? readable : view.readable;
    view.writable = writable < view.writable ? writable : view.writable;
    Redirects redirects;
    begin_redirects(&redirects, &view);
    call.style = (enum style)style;
    call.rest = PyList_New(0);
    call.held = PyList_New(0);
    PyObject *result = NULL, *latencies = PyList_New(0);
    if (call.rest == NULL || call.held == NULL || latencies == NULL)
        goto done;
    if (start < 0 || end < start || end > call.received.len || style < SIMPLE || style > EXTENDED) {
        PyErr_SetString(PyExc_ValueError, "no such range or style");
        goto done;
    }
    outcome.position = start;
    outcome.end = end;
    Round round;
    if (serve_rounds(&view, &call, &redirects, &round, &outcome, latencies) < 0)
        goto done;
    Py_ssize_t sent = round.sent < round.filled ? round.sent : round.filled;
    Py_ssize_t acknowledged = round.sent - sent;
    result = Py_BuildValue(
        "(nnKiOnnny#OLKKKKiy#)", outcome.position, outcome.end,
        (unsigned long long)outcome.received_bytes, outcome.polled, call.rest, round.served, sent,
        round.filled, (char *)round.acknowledgements + acknowledged,
        round.acknowledged - acknowledged, latencies, (long long)outcome.started,
        (unsigned long long)outcome.reads, (unsigned long long)outcome.read_bytes,
        (unsigned long long)outcome.writes, (unsigned long long)outcome.written_bytes,
        outcome.unflagged, (char *)round.missed,
        (Py_ssize_t)(round.missed_count * sizeof(Missed)));
done:
    Py_XDECREF(view.mapped.window);
    Py_XDECREF(redirects.shared);
    Py_XDECREF(call.held);
    Py_XDECREF(call.rest);
    Py_XDECREF(latencies);
    PyBuffer_Release(&call.received);
    PyBuffer_Release(&call.reply);
    return result;
}

/* -- receiving --------------------------------------------------------------------------------- */

PyDoc_STRVAR(receive_doc,
"receive(fd, into, nanoseconds) -> int\n\n"
"Receive what is there, looking again and again for so long: the number of bytes, 0 when the peer\n"
"is gone or the connection broken, -1 when nothing came.");

static PyObject *receive(PyObject *Py_UNUSED(module), PyObject *args)
{
    int fd;
    Py_buffer into;
    long long nanoseconds;
    if (!PyArg_ParseTuple(args, "iw*L:receive", &fd, &into, &nanoseconds))
        return NULL;
    ssize_t count = poll_socket(fd, into.buf, (size_t)into.len, nanoseconds);
    if (count < 0)
        count = errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? -1 : 0;
    PyBuffer_Release(&into);
    return PyLong_FromSsize_t(count);
}

#include "_fastlane_payload.h"

static PyMethodDef methods[] = {
    {"serve", serve, METH_VARARGS, serve_doc},
    {"receive", receive, METH_VARARGS, receive_doc},
    {"take", take_method, METH_VARARGS, take_doc},
    {"read_missed", read_missed, METH_VARARGS, read_missed_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_fastlane",
    .m_doc = "The inner loop of the hot path, compiled; see fastlane.py.",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__fastlane(void)
{
    return PyModuleDef_Init(&definition);
}
