/* Whole blocks that the head does not hold are written into it: bockd.pool.device.Redirects, from
 * the lane's side. One source file, _fastlane.c, takes this in.
 *
 * As Volume.try_write does: the data is in the head before the map in memory leads there, and the
 * journal has it before anything of the round is acknowledged. What is in the map is staged in any
 * case, even if serving fails otherwise: or the map would say what the journal never learns.
 */

typedef struct {
    PyObject *port;   /* borrowed; Py_None if none may be made */
    PyObject *shared; /* owned; leaves that must be copied before they change. NULL: not met yet */
    long piece_bytes; /* of what one call writes at most; set with `shared` */
    long allowance;   /* so many more may be made without a question */
    int uncommitted;  /* some of this round are staged */
    int count;        /* of those that are in the map and not staged yet */
    uint32_t ranges[MAX_REQUESTS][2]; /* the first block, and how many */
} Redirects;

static void begin_redirects(Redirects *redirects, const View *view)
{
    redirects->port = view->redirects;
    redirects->shared = NULL;
    redirects->allowance = redirects->uncommitted = redirects->count = 0;
}

/* Tell the port what is in the map; -1 with an exception set. */
static int stage_redirects(Redirects *redirects)
{
    if (!redirects->count)
        return 0;
    Py_ssize_t length = redirects->count * (Py_ssize_t)sizeof redirects->ranges[0];
    redirects->count = 0;
    redirects->uncommitted = 1;
    PyObject *done = PyObject_CallMethod(
        redirects->port, "stage", "y#", (const char *)redirects->ranges, length);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* Have the journal know of a round's redirects: 1 when it does, 0 when nothing of the round may be
 * acknowledged, -1 with an exception set. */
static int commit_redirects(Redirects *redirects)
{
    if (stage_redirects(redirects) < 0)
        return -1;
    if (!redirects->uncommitted)
        return 1;
    redirects->uncommitted = 0;
    PyObject *done = PyObject_CallMethod(redirects->port, "commit", NULL);
    int committed = done == NULL ? -1 : PyObject_IsTrue(done);
    Py_XDECREF(done);
    return committed;
}

/* Whether one more may be made; false, too, with an exception set. */
static int may_redirect(Redirects *redirects)
{
    if (redirects->port == Py_None)
        return 0;
    if (redirects->shared == NULL) {
        redirects->piece_bytes = long_attribute(redirects->port, "piece_bytes");
        if (redirects->piece_bytes <= 0)
            return 0;
        redirects->shared = PyObject_GetAttrString(redirects->port, "shared");
        if (redirects->shared == NULL)
            return 0;
    }
    if (redirects->allowance > 0)
        return 1;
    /* What is in the map already counts in the answer. */
    if (stage_redirects(redirects) < 0)
        return 0;
    PyObject *allowance = PyObject_CallMethod(redirects->port, "allowance", NULL);
    if (allowance == NULL)
        return 0;
    redirects->allowance = PyLong_AsLong(allowance);
    Py_DECREF(allowance);
    if (redirects->allowance > MAX_REQUESTS) /* no more ranges are noted between two questions */
        redirects->allowance = MAX_REQUESTS;
    return redirects->allowance > 0;
}

/* Whether a leaf must be copied before it changes; true, too, with an exception set. */
static int is_shared(const Redirects *redirects, PyObject *leaf)
{
    PyObject *slot = PySequence_GetItem(leaf, 0);
    if (slot == NULL)
        return 1;
    PyObject *shared = PyDict_GetItemWithError(redirects->shared, slot);
    Py_DECREF(slot);
    return shared == leaf || PyErr_Occurred();
}

/* A leaf that may be changed (a new reference), or NULL: none is in memory, or an exception. */
static PyObject *own_leaf(const View *view, const Redirects *redirects, uint64_t number)
{
    PyObject *key = PyLong_FromUnsignedLongLong(number);
    if (key == NULL)
        return NULL;
    PyObject *leaf = PyDict_GetItemWithError(view->leaves, key);
    if (leaf != NULL && !is_shared(redirects, leaf))
        Py_INCREF(leaf);
    else if (!PyErr_Occurred())
        leaf = PyObject_CallMethod(redirects->port, "own_leaf", "O", key);
    else
        leaf = NULL;
    Py_DECREF(key);
    if (leaf == Py_None) {
        Py_DECREF(leaf);
        return NULL;
    }
    return leaf;
}

static int write_new(
    int fd, const unsigned char *data, uint64_t length, uint64_t offset, size_t piece_bytes)
{
    while (length) {
        size_t piece = length < piece_bytes ? (size_t)length : piece_bytes;
        if (pwrite(fd, data, piece, (off_t)offset) != (ssize_t)piece)
            return 0;
        data += piece;
        offset += piece;
        length -= piece;
    }
    return 1;
}

/* Note blocks of one leaf that the map has in the head: as one range with what they follow. */
static void add_range(Redirects *redirects, uint32_t first, uint32_t count)
{
    if (redirects->count) {
        uint32_t *last = redirects->ranges[redirects->count - 1];
        if (last[0] + last[1] == first && last[0] >> LEAF_SHIFT == first >> LEAF_SHIFT) {
            last[1] += count;
            return;
        }
    }
    redirects->ranges[redirects->count][0] = first;
    redirects->ranges[redirects->count][1] = count;
    redirects->count++;
    redirects->allowance--;
}

/* Write whole blocks of one leaf into the head, and have the map lead there; false when that is for
 * Python to do, or an exception is set. The head's file is open. */
static int redirect(
    View *view, Redirects *redirects, const Request *request, const unsigned char *data)
{
    uint64_t first = request->offset >> BLOCK_SHIFT, count = request->length >> BLOCK_SHIFT;
    uint64_t within = (1 << BLOCK_SHIFT) - 1;
    if ((request->offset | request->length) & within ||
        first >> LEAF_SHIFT != (first + count - 1) >> LEAF_SHIFT || first + count > UINT32_MAX ||
        covers_zeros(data, request->offset, request->length) || !may_redirect(redirects))
        return 0;
    const File *file = find_file(view, view->head_slot);
    if (file == NULL || file->fd < 0 || note_unsynced(view) < 0)
        return 0;
    PyObject *leaf = own_leaf(view, redirects, first >> LEAF_SHIFT);
    if (leaf == NULL)
        return 0;
    Py_buffer entries;
    int fd = file->fd, written = 0;
    size_t piece_bytes = (size_t)redirects->piece_bytes;
    if (PyObject_GetBuffer(leaf, &entries, PyBUF_WRITABLE) == 0) {
        if (entries.len == LEAF_BLOCKS * (Py_ssize_t)sizeof(uint16_t)) {
            Py_BEGIN_ALLOW_THREADS
            written = write_new(fd, data, request->length, request->offset, piece_bytes);
            Py_END_ALLOW_THREADS
        }
        if (written) {
            uint16_t *entry = (uint16_t *)entries.buf + (first & LEAF_MASK);
            for (uint64_t block = 0; block < count; block++)
                entry[block] = (uint16_t)view->head_slot;
            add_range(redirects, (uint32_t)first, (uint32_t)count);
            view->minds_zeros = 1; /* no barrier covers these */
        }
        PyBuffer_Release(&entries);
    }
    Py_DECREF(leaf);
    return written;
}
