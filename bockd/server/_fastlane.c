/* The inner loop of the hot path, compiled; see fastlane.py, which says what it is for.
 *
 * It does nothing that batch.py and bockd.engine do not do in Python, it only does less: it takes
 * plain reads and writes whose blocks lie in one file, and hands every other request back. What
 * fails here is handed back, too, so that Python does it again and meets the error itself.
 *
 * Formats: proto.md, "Request message", "Simple reply message", "Structured reply chunk message",
 * "Extended request message", "Extended reply chunk message".
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <Python.h>

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define BLOCK_SHIFT 12
#define LEAF_SHIFT 8
#define LEAF_BLOCKS (1 << LEAF_SHIFT)
#define LEAF_MASK (LEAF_BLOCKS - 1)

enum style { SIMPLE, STRUCTURED, EXTENDED };

enum { CMD_READ = 0, CMD_WRITE = 1, CMD_DISC = 2, CMD_FLUSH = 3, CMD_CACHE = 5, CMD_BLOCK_STATUS = 7 };
enum { FLAG_PAYLOAD_LEN = 1 << 5 };
#define COMPACT_REQUEST_MAGIC 0x25609513u
#define EXTENDED_REQUEST_MAGIC 0x21E41C71u
#define SIMPLE_REPLY_MAGIC 0x67446698u
#define STRUCTURED_REPLY_MAGIC 0x668E33EFu
#define EXTENDED_REPLY_MAGIC 0x6E8A278Cu
enum { COMPACT_REQUEST_BYTES = 28, EXTENDED_REQUEST_BYTES = 32 };
enum { REPLY_FLAG_DONE = 1, REPLY_NONE = 0, REPLY_OFFSET_DATA = 1 };

/* Of one call. No request of it is served after this many, so that acknowledgements have room. */
#define MAX_REQUESTS 512
#define MAX_REPLY_BYTES 32

/* Files met in one call. Requests that go to more layers than this look them up anew. */
#define KNOWN_FILES 8

#define HOLE (-1)
#define UNKNOWN (-2)

typedef struct {
    uint16_t slot;
    int fd; /* or HOLE */
    int flags;
} File;

typedef struct {
    uint16_t flags, command;
    uint64_t cookie, offset, length;
    Py_ssize_t body;
} Request;

typedef struct {
    PyObject *leaves, *slots, *journal; /* borrowed */
    long head_slot;                     /* -1: nothing may be written */
    uint64_t readable, writable;        /* where reads and writes end at the latest, in bytes */
    File files[KNOWN_FILES];
    int known, next;
    int unsynced; /* the journal knows that the head has unsynced writes */
} View;

/* -- bytes in network order -------------------------------------------------------------------- */

static uint16_t get16(const unsigned char *p) { return (uint16_t)(p[0] << 8 | p[1]); }

static uint32_t get32(const unsigned char *p)
{
    return (uint32_t)get16(p) << 16 | get16(p + 2);
}

static uint64_t get64(const unsigned char *p) { return (uint64_t)get32(p) << 32 | get32(p + 4); }

static unsigned char *put16(unsigned char *p, uint16_t value)
{
    p[0] = (unsigned char)(value >> 8);
    p[1] = (unsigned char)value;
    return p + 2;
}

static unsigned char *put32(unsigned char *p, uint32_t value)
{
    return put16(put16(p, (uint16_t)(value >> 16)), (uint16_t)value);
}

static unsigned char *put64(unsigned char *p, uint64_t value)
{
    return put32(put32(p, (uint32_t)(value >> 32)), (uint32_t)value);
}

/* -- replies ----------------------------------------------------------------------------------- */

static Py_ssize_t data_header_bytes(enum style style)
{
    return style == SIMPLE ? 16 : style == STRUCTURED ? 28 : 40;
}

static void put_data_header(unsigned char *p, enum style style, const Request *request)
{
    if (style == SIMPLE) {
        put64(put32(put32(p, SIMPLE_REPLY_MAGIC), 0), request->cookie);
        return;
    }
    p = put32(p, style == STRUCTURED ? STRUCTURED_REPLY_MAGIC : EXTENDED_REPLY_MAGIC);
    p = put64(put16(put16(p, REPLY_FLAG_DONE), REPLY_OFFSET_DATA), request->cookie);
    if (style == STRUCTURED)
        p = put32(p, (uint32_t)(request->length + 8));
    else
        p = put64(put64(p, request->offset), request->length + 8);
    put64(p, request->offset);
}

/* Acknowledge a write; where the next one goes. */
static unsigned char *put_done(unsigned char *p, enum style style, const Request *request)
{
    if (style != EXTENDED)
        return put64(put32(put32(p, SIMPLE_REPLY_MAGIC), 0), request->cookie);
    p = put16(put16(put32(p, EXTENDED_REPLY_MAGIC), REPLY_FLAG_DONE), REPLY_NONE);
    return put64(put64(put64(p, request->cookie), request->offset), 0);
}

/* -- the map ----------------------------------------------------------------------------------- */

/* The slot that all of a request's blocks are in, -1 if there is no such slot in memory. Sets an
 * exception only when something is broken. */
static long find_slot(View *view, uint64_t offset, uint64_t length)
{
    uint64_t first = offset >> BLOCK_SHIFT, last = (offset + length - 1) >> BLOCK_SHIFT;
    if (first >> LEAF_SHIFT != last >> LEAF_SHIFT)
        return -1;
    PyObject *number = PyLong_FromUnsignedLongLong(first >> LEAF_SHIFT);
    if (number == NULL)
        return -1;
    PyObject *leaf = PyDict_GetItemWithError(view->leaves, number);
    Py_DECREF(number);
    if (leaf == NULL)
        return -1;
    Py_buffer entries;
    if (PyObject_GetBuffer(leaf, &entries, PyBUF_SIMPLE) < 0)
        return -1;
    long slot = -1;
    if (entries.len == LEAF_BLOCKS * (Py_ssize_t)sizeof(uint16_t)) {
        const uint16_t *entry = entries.buf;
        slot = entry[first & LEAF_MASK];
        for (uint64_t block = first; block <= last; block++)
            if (entry[block & LEAF_MASK] != slot) {
                slot = -1;
                break;
            }
    }
    PyBuffer_Release(&entries);
    return slot;
}

static long long_attribute(PyObject *object, const char *name)
{
    PyObject *value = PyObject_GetAttrString(object, name);
    if (value == NULL)
        return -1;
    long number = PyLong_AsLong(value);
    Py_DECREF(value);
    return number;
}

/* The first file of a layer: what lies further in than that is not asked for here. */
static int descriptor_of(PyObject *layer)
{
    PyObject *descriptors = PyObject_GetAttrString(layer, "descriptors");
    if (descriptors == NULL)
        return UNKNOWN;
    long fd = UNKNOWN;
    if (PyList_Check(descriptors) && PyList_Size(descriptors) > 0)
        fd = PyLong_AsLong(PyList_GetItem(descriptors, 0));
    Py_DECREF(descriptors);
    return fd < 0 ? UNKNOWN : (int)fd;
}

/* The file of a slot, or NULL if there is none that may be read without a further look. */
static const File *find_file(View *view, long slot)
{
    for (int at = 0; at < view->known; at++)
        if (view->files[at].slot == slot)
            return &view->files[at];
    PyObject *layer = PyList_GetItem(view->slots, slot);
    if (layer == NULL)
        return NULL;
    File file = {(uint16_t)slot, HOLE, 0};
    if (layer != Py_None) {
        Py_INCREF(layer);
        file.fd = descriptor_of(layer);
        long flags = long_attribute(layer, "nowait_flag");
        Py_DECREF(layer);
        if (file.fd == UNKNOWN || PyErr_Occurred())
            return NULL;
        file.flags = (int)flags;
    }
    File *place = &view->files[view->next];
    view->next = (view->next + 1) % KNOWN_FILES;
    if (view->known < KNOWN_FILES)
        view->known++;
    *place = file;
    return place;
}

/* -- the requests ------------------------------------------------------------------------------ */

/* Read into `into`; false when that is for Python to do, or an exception is set. */
static int serve_read(View *view, const Request *request, unsigned char *into)
{
    if (request->offset > view->readable || request->length > view->readable - request->offset)
        return 0;
    long slot = find_slot(view, request->offset, request->length);
    if (slot < 0)
        return 0;
    const File *file = find_file(view, slot);
    if (file == NULL)
        return 0;
    if (file->fd == HOLE) {
        memset(into, 0, request->length);
        return 1;
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
    return count == (ssize_t)request->length;
}

/* Write in place; false when that is for Python to do, or an exception is set. */
static int serve_write(View *view, const Request *request, const unsigned char *data)
{
    if (view->head_slot < 0 || request->offset > view->writable ||
        request->length > view->writable - request->offset)
        return 0;
    if (find_slot(view, request->offset, request->length) != view->head_slot)
        return 0;
    const File *file = find_file(view, view->head_slot);
    if (file == NULL || file->fd < 0)
        return 0;
    if (!view->unsynced) {
        /* Set first: should the write fail half-way, the next sync must still cover it. */
        if (PyObject_SetAttrString(view->journal, "unsynced", Py_True) < 0)
            return 0;
        view->unsynced = 1;
    }
    int fd = file->fd;
    ssize_t count;
    Py_BEGIN_ALLOW_THREADS
    count = pwrite(fd, data, request->length, (off_t)request->offset);
    Py_END_ALLOW_THREADS
    return count == (ssize_t)request->length;
}

/* Take the request at `at`; where the next one begins, 0 if this one is not there in full, or is
 * one that the parser must see. */
static Py_ssize_t take(
    const unsigned char *received, Py_ssize_t at, Py_ssize_t end, int extended,
    uint64_t max_payload, Request *request)
{
    Py_ssize_t header = extended ? EXTENDED_REQUEST_BYTES : COMPACT_REQUEST_BYTES;
    if (end - at < header)
        return 0;
    const unsigned char *p = received + at;
    if (get32(p) != (extended ? EXTENDED_REQUEST_MAGIC : COMPACT_REQUEST_MAGIC))
        return 0;
    request->flags = get16(p + 4);
    request->command = get16(p + 6);
    request->cookie = get64(p + 8);
    request->offset = get64(p + 16);
    request->length = extended ? get64(p + 24) : get32(p + 24);
    request->body = at + header;
    if (request->command == CMD_DISC)
        return 0;
    if (!(extended ? request->flags & FLAG_PAYLOAD_LEN : request->command == CMD_WRITE))
        return request->body;
    if (request->length > max_payload || request->length > (uint64_t)(end - request->body))
        return 0;
    return request->body + (Py_ssize_t)request->length;
}

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

typedef struct {
    Py_ssize_t position, filled;
    Py_ssize_t reads, writes;
    uint64_t written;
    Py_ssize_t acknowledged; /* bytes */
    unsigned char replies[MAX_REQUESTS * MAX_REPLY_BYTES];
} Outcome;

static int changes(uint16_t command)
{
    return command != CMD_READ && command != CMD_FLUSH && command != CMD_CACHE &&
           command != CMD_BLOCK_STATUS;
}

/* Serve from outcome->position on; -1 with an exception set. */
static int serve_all(
    View *view, const unsigned char *received, Py_ssize_t end, const Py_buffer *reply,
    enum style style, uint64_t max_read, uint64_t max_payload, Outcome *outcome, PyObject *rest)
{
    int extended = style == EXTENDED;
    uint16_t write_flags = extended ? FLAG_PAYLOAD_LEN : 0;
    Py_ssize_t header = data_header_bytes(style);
    unsigned char *into = reply->buf, *acknowledge = outcome->replies;
    for (int count = 0; count < MAX_REQUESTS; count++) {
        Request request;
        Py_ssize_t next = take(received, outcome->position, end, extended, max_payload, &request);
        if (!next)
            break;
        int served = 0;
        if (request.command == CMD_READ && !request.flags && request.length &&
            request.length <= max_read) {
            Py_ssize_t data = outcome->filled + header;
            if (data + (Py_ssize_t)request.length > reply->len)
                break;
            served = serve_read(view, &request, into + data);
            if (served) {
                put_data_header(into + outcome->filled, style, &request);
                outcome->filled = data + (Py_ssize_t)request.length;
                outcome->reads++;
            }
        } else if (request.command == CMD_WRITE && request.flags == write_flags && request.length) {
            served = serve_write(view, &request, received + request.body);
            if (served) {
                acknowledge = put_done(acknowledge, style, &request);
                outcome->writes++;
                outcome->written += request.length;
            }
        }
        if (!served) {
            if (PyErr_Occurred() || append_request(rest, &request) < 0)
                return -1;
            /* The protocol promises no order among requests in flight. All the same, no write
             * overtakes a change that was sent before it and is not made yet. */
            if (changes(request.command))
                view->head_slot = -1;
        }
        outcome->position = next;
    }
    outcome->acknowledged = acknowledge - outcome->replies;
    return 0;
}

PyDoc_STRVAR(serve_doc,
"serve(received, start, end, reply, style, view, readable, writable, max_read,\n"
"max_payload)\n\n"
"Serve the plain requests in received[start:end]; see fastlane.py.");

static PyObject *serve(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer received, reply;
    Py_ssize_t start, end;
    int style;
    unsigned long long reach, readable, writable, max_read, max_payload;
    View view = {0};
    if (!PyArg_ParseTuple(
            args, "y*nnw*i(O!O!lOK)KKKK:serve", &received, &start, &end, &reply, &style,
            &PyDict_Type, &view.leaves, &PyList_Type, &view.slots, &view.head_slot, &view.journal,
            &reach, &readable, &writable, &max_read, &max_payload))
        return NULL;
    view.readable = readable < reach ? readable : reach;
    view.writable = writable < reach ? writable : reach;
    PyObject *result = NULL, *rest = PyList_New(0);
    if (rest == NULL)
        goto done;
    if (start < 0 || end < start || end > received.len || style < SIMPLE || style > EXTENDED) {
        PyErr_SetString(PyExc_ValueError, "no such range or style");
        goto done;
    }
    Outcome outcome;
    memset(&outcome, 0, offsetof(Outcome, replies));
    outcome.position = start;
    if (serve_all(
            &view, received.buf, end, &reply, (enum style)style, max_read, max_payload, &outcome,
            rest) < 0)
        goto done;
    result = Py_BuildValue(
        "(nnnnKy#O)", outcome.position, outcome.filled, outcome.reads, outcome.writes,
        (unsigned long long)outcome.written, (char *)outcome.replies, outcome.acknowledged, rest);
done:
    Py_XDECREF(rest);
    PyBuffer_Release(&received);
    PyBuffer_Release(&reply);
    return result;
}

/* -- receiving --------------------------------------------------------------------------------- */

static int64_t now_ns(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

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
    ssize_t count;
    int error;
    Py_BEGIN_ALLOW_THREADS
    int64_t until = now_ns() + nanoseconds;
    do {
        count = recv(fd, into.buf, (size_t)into.len, MSG_DONTWAIT);
        error = errno;
    } while (count < 0 && (error == EAGAIN || error == EWOULDBLOCK) && now_ns() < until);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&into);
    if (count < 0)
        count = error == EAGAIN || error == EWOULDBLOCK || error == EINTR ? -1 : 0;
    return PyLong_FromSsize_t(count);
}

static PyMethodDef methods[] = {
    {"serve", serve, METH_VARARGS, serve_doc},
    {"receive", receive, METH_VARARGS, receive_doc},
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
