/* The payload of a large write, written as it comes. One source file, _fastlane.c, takes this in.
 *
 * A part is what has come of the payload, up to a multiple of `unit_bytes` in the volume, and to the
 * next one of `part_bytes` at most: PartSizes in bockd.pool.device. Each is written as a write of its
 * own, from the receive buffer. The first one that serve_write does not take ends the call: it is for
 * Python. What is in the map is staged in any case; the caller commits.
 *
 * What has come of the next part moves to the front of the buffer, so a unit bounds what is copied.
 */

typedef struct {
    Py_buffer received;
    Py_ssize_t position, end;
    uint64_t offset, left; /* of the payload from `position` on, in the volume; in bytes */
    uint64_t received_bytes;
    unsigned long long part_bytes, unit_bytes;
    enum { WRITTEN, FOR_PYTHON, NOTHING_CAME, TURN_IS_OVER } why; /* as in fastlane.py */
} Payload;

/* How long the part is that begins at `position`; 0 when more must come first. */
static uint64_t part_bytes(const Payload *payload)
{
    uint64_t there = (uint64_t)(payload->end - payload->position);
    uint64_t room = payload->part_bytes - payload->offset % payload->part_bytes;
    uint64_t length = there < payload->left ? there : payload->left;
    if (length > room)
        return room;
    if (length == payload->left)
        return length;
    uint64_t beyond = (payload->offset + length) % payload->unit_bytes;
    return length > beyond ? length - beyond : 0;
}

/* Write the parts that are there; false when one is for Python, or an exception is set. */
static int write_parts(View *view, Redirects *redirects, Payload *payload)
{
    const Payload before = *payload;
    const unsigned char *received = payload->received.buf;
    int written = 1;
    for (uint64_t length; payload->left && (length = part_bytes(payload));) {
        Request part = {.offset = payload->offset, .length = length};
        written = serve_write(view, redirects, &part, received + payload->position);
        if (!written)
            break;
        payload->position += (Py_ssize_t)length;
        payload->offset += length;
        payload->left -= length;
    }
    if (PyErr_Occurred()) /* none of the payload is answered; what is put off is in no map */
        return 0;
    write_put_off(view, &redirects->put_offs);
    if (redirects->put_offs.failed) { /* Python writes all of them, and meets the error */
        *payload = before;
        written = 0;
    }
    return written;
}

/* Receive behind what has come of the next part; false when nothing came. */
static int receive_payload(Payload *payload, int sock, int64_t nanoseconds)
{
    unsigned char *received = payload->received.buf;
    Py_ssize_t kept = payload->end - payload->position;
    if (payload->position)
        memmove(received, received + payload->position, (size_t)kept);
    payload->position = 0;
    payload->end = kept;
    ssize_t count = poll_socket(
        sock, received + kept, (size_t)(payload->received.len - kept), nanoseconds);
    if (count <= 0) /* whoever receives next meets what it was */
        return 0;
    payload->end += count;
    payload->received_bytes += (uint64_t)count;
    return 1;
}

static void take_payload(
    View *view, Redirects *redirects, Payload *payload, int sock, int64_t poll_ns, int64_t turn_ns)
{
    int64_t until = now_ns() + turn_ns;
    for (;;) {
        if (!write_parts(view, redirects, payload))
            payload->why = FOR_PYTHON;
        else if (!payload->left)
            payload->why = WRITTEN;
        else if (sock < 0) /* others receive: they must be asked, whatever the turn */
            payload->why = NOTHING_CAME;
        else if (now_ns() > until)
            payload->why = TURN_IS_OVER;
        else if (!receive_payload(payload, sock, poll_ns))
            payload->why = NOTHING_CAME;
        else
            continue;
        return;
    }
}

PyDoc_STRVAR(take_doc,
"take(received, start, end, offset, length, view, writable, part_bytes, unit_bytes, sock, poll_ns,\n"
"turn_ns)\n\n"
"Write a payload that begins at received[start] as it comes; see fastlane.py.");

static PyObject *take_method(PyObject *Py_UNUSED(module), PyObject *args)
{
    Payload payload = {0};
    View view = {0};
    unsigned long long offset, left, writable;
    int sock;
    long long poll_ns, turn_ns;
    if (!PyArg_ParseTuple(
            args, "w*nnKKO&KKKiLL:take", &payload.received, &payload.position, &payload.end, &offset,
            &left, parse_view, &view, &writable, &payload.part_bytes, &payload.unit_bytes, &sock,
            &poll_ns, &turn_ns))
        return NULL;
    view.writable = writable < view.writable ? writable : view.writable;
    payload.offset = offset;
    payload.left = left;
    PyObject *result = NULL;
    if (payload.position < 0 || payload.end < payload.position ||
        payload.end > payload.received.len) {
        PyErr_SetString(PyExc_ValueError, "no such range");
    } else if (!payload.part_bytes || !payload.unit_bytes) {
        PyErr_SetString(PyExc_ValueError, "no such parts");
    } else {
        Redirects redirects;
        begin_redirects(&redirects, &view);
        take_payload(&view, &redirects, &payload, sock, poll_ns, turn_ns);
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        int staged = stage_redirects(&redirects);
        end_redirects(&redirects);
        if (type != NULL)
            PyErr_Restore(type, value, traceback);
        else if (staged == 0)
            result = Py_BuildValue(
                "(nnKKi)", payload.position, payload.end,
                (unsigned long long)payload.received_bytes,
                (unsigned long long)(left - payload.left), (int)payload.why);
    }
    PyBuffer_Release(&payload.received);
    return result;
}
