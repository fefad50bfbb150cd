/* Reads whose data is not in the page cache: gathered in a round, and done together in a thread.
 * One source file, _fastlane.c, takes this in.
 *
 * The kernel is asked for all of them before the first is waited for, so that the disk has them at
 * once; the rest is plain pread. (io_uring would do no better: it asks for buffered data in the same
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

PyDoc_STRVAR(read_missed_doc,
"read_missed(missed, reply, style)\n\n"
"Read what `serve` has missed, and put the replies into a buffer that is exactly as large. Waits\n"
"for the disk, without the interpreter's lock. Raises OSError when one of them fails.");

static PyObject *read_missed(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer missed, reply;
    int style;
    if (!PyArg_ParseTuple(args, "y*w*i:read_missed", &missed, &reply, &style))
        return NULL;
    const Missed *list = missed.buf;
    Py_ssize_t count = missed.len / (Py_ssize_t)sizeof(Missed), header = data_header_bytes(style);
    int error = 0;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t number = 0; number < count && count > 1; number++)
        posix_fadvise(
            list[number].fd, (off_t)list[number].byte, list[number].length, POSIX_FADV_WILLNEED);
    for (Py_ssize_t number = 0; number < count && !error; number++) {
        const Missed *one = &list[number];
        unsigned char *into = (unsigned char *)reply.buf + one->at;
        Request request = {.cookie = one->cookie, .offset = one->offset, .length = one->length};
        put_data_header(into - header, style, &request);
        if (pread_all(one->fd, into, one->length, (off_t)one->byte) < 0)
            error = errno;
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&missed);
    PyBuffer_Release(&reply);
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}
