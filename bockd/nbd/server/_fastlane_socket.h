/* Looking at a socket until something comes. One source file, _fastlane.c, takes this in. */

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
