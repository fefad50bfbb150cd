/* Reads whose data is not in the page cache: gathered in a round, and done together in a thread.
 * One source file, _fastlane.c, takes this in.
 *
 * The kernel is asked for all of them before one is waited for, so that the disk has them at once;
 * the rest is plain pread. (Where preadv2 with RWF_NOWAIT has begun to read, they are asked for
 * already.) (io_uring would do no better: it asks for buffered data in the same
 * way, also waits for a file's metadata, and is refused in many containers.)
 */

/* Replies of so many bytes are gathered at a time: a larger group would keep its first ones
 * waiting. */
#define MAX_MISSED_BYTES (1024 * 1024)

/* fastlane.py has the same layout. */
typedef struct {
    uint32_t slot;
    int32_t fd;
    uint64_t offset; /* in the device */
    uint64_t byte;   /* in the file */
    uint32_t length;
    uint32_t at; /* its data, in the replies */
    uint64_t cookie;
    uint64_t body; /* see Request */
} Missed;

static int pread_all(int fd, unsigned char *into, size_t length, off_t offset)
{
    while (length) {
        ssize_t got = pread(fd, into, length, offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            errno = got < 0 ? errno : EIO;
            return -1;
        }
        into += got;
        offset += got;
        length -= (size_t)got;
    }
    return 0;
}

/* What one call of a thread is about. */
typedef struct {
    const Missed *list;
    Py_ssize_t count;
    unsigned char *reply;
    enum style style;
    struct Together *together; /* else NULL: a turn of several lanes that a part is to be taken of */
} Task;

static void help(struct Together *together);

/* Read all of it; 0, or what errno was for the one that failed. */
static int run_task(const Task *task)
{
    if (task->together != NULL) {
        help(task->together);
        return 0;
    }
    Py_ssize_t header = data_header_bytes(task->style);
    for (Py_ssize_t number = 0; number < task->count && task->count > 1; number++) {
        const Missed *one = &task->list[number];
        posix_fadvise(one->fd, (off_t)one->byte, one->length, POSIX_FADV_WILLNEED);
    }
    /* The disk was asked for the last one last: once it is there, most others are, and to wait for
     * each of them would be a change of thread each. */
    for (Py_ssize_t number = task->count; number--;) {
        const Missed *one = &task->list[number];
        unsigned char *into = task->reply + one->at;
        Request request = {.cookie = one->cookie, .offset = one->offset, .length = one->length};
        put_data_header(into - header, task->style, &request);
        if (pread_all(one->fd, into, one->length, (off_t)one->byte) < 0)
            return errno;
    }
    return 0;
}

#define THREADS_TYPE "bockd.nbd.server._fastlane.Running"
#include "../../runtime/_threads.h"

PyDoc_STRVAR(read_missed_doc,
"read_missed(missed, reply, style)\n\n"
"Read what `serve` has missed, and put the replies into a buffer that is exactly as large. Waits\n"
"for the disk, without the interpreter's lock. Raises OSError when one of them fails.");

static PyObject *read_missed(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer missed, reply;
    int style, error;
    if (!PyArg_ParseTuple(args, "y*w*i:read_missed", &missed, &reply, &style))
        return NULL;
    Task task = {missed.buf, missed.len / (Py_ssize_t)sizeof(Missed), reply.buf, (enum style)style, NULL};
    Py_BEGIN_ALLOW_THREADS
    error = run_task(&task);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&missed);
    PyBuffer_Release(&reply);
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(begin_missed_doc,
"begin_missed(missed, reply, style) -> Running | None\n\n"
"Begin to do what `read_missed` does, in a thread that needs no interpreter. None, with nothing\n"
"begun, when there is no thread or no descriptor for it.");

static PyObject *begin_missed(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *missed, *reply;
    int style;
    if (!PyArg_ParseTuple(args, "SOi:begin_missed", &missed, &reply, &style))
        return NULL;
    /* A view of our own: no one can release the memory while it is held. */
    PyObject *view = PyMemoryView_FromObject(reply);
    if (view == NULL)
        return NULL;
    Py_buffer into;
    PyObject *begun = NULL, *held = PyTuple_Pack(2, missed, view);
    if (held != NULL && PyObject_GetBuffer(view, &into, PyBUF_WRITABLE) == 0) {
        Task task = {
            (const Missed *)(const void *)PyBytes_AsString(missed),
            PyBytes_Size(missed) / (Py_ssize_t)sizeof(Missed), into.buf, (enum style)style, NULL};
        PyBuffer_Release(&into);
        begun = begin_task(&task, held);
    }
    Py_XDECREF(held);
    Py_DECREF(view);
    return begun;
}
