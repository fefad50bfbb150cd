/* Whole blocks that the head does not hold are written into it: bockd.pool.device.Redirects, from
 * the lane's side. One source file, _fastlane.c, takes this in.
 *
 * As Volume.try_write does: the data is in the head before the map in memory leads there, and the
 * journal has it before anything of the round is acknowledged. What is in the map is staged in any
 * case, even if serving fails otherwise: or the map would say what the journal never learns. In a
 * packed head the writes of a round are put off and made together (_fastlane_putoff.h).
 */

typedef struct {
    PyObject *port;   /* borrowed; Py_None if none may be made */
    PyObject *shared; /* owned; leaves that must be copied before they change. NULL: not met yet */
    long piece_bytes; /* of what one call writes at most; set with `shared` */
    long allowance;   /* so many more may be made without a question */
    int uncommitted;  /* some of this round are staged */
    PutOffs put_offs;
    int count; /* of those that are in the map and not staged yet */
    uint32_t ranges[MAX_REQUESTS][2]; /* the first block, and how many */
} Redirects;

static void begin_redirects(Redirects *redirects, const View *view)
{
    redirects->port = view->redirects;
    redirects->shared = NULL;
    redirects->allowance = redirects->uncommitted = redirects->count = 0;
    begin_put_offs(&redirects->put_offs, view);
}

static void end_redirects(Redirects *redirects)
{
    forget_put_offs(&redirects->put_offs);
    Py_XDECREF(redirects->shared);
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
static int commit_redirects(View *view, Redirects *redirects)
{
    PutOffs *put_offs = &redirects->put_offs;
    write_put_off(view, put_offs);
    int failed = put_offs->failed;
    put_offs->failed = 0;
    if (PyErr_Occurred() || stage_redirects(redirects) < 0)
        return -1;
    if (!redirects->uncommitted && !put_offs->uncommitted)
        return !failed;
    redirects->uncommitted = put_offs->uncommitted = 0;
    PyObject *done = PyObject_CallMethod(redirects->port, "commit", NULL);
    int committed = done == NULL ? -1 : PyObject_IsTrue(done);
    Py_XDECREF(done);
    return failed && committed > 0 ? 0 : committed;
}

/* Whether one more may be made; false, too, with an exception set. */
static int may_redirect(View *view, Redirects *redirects)
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
    if (!write_put_off(view, &redirects->put_offs) || stage_redirects(redirects) < 0)
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

/* A leaf that may be changed (a new reference), or NULL: none is in memory, or an exception. In a
 * packed head `cells` has its cells then. */
static PyObject *own_leaf(const View *view, const Redirects *redirects, uint64_t number, int packed)
{
    PyObject *key = PyLong_FromUnsignedLongLong(number);
    if (key == NULL)
        return NULL;
    PyObject *leaf = PyDict_GetItemWithError(view->leaves, key);
    if (leaf != NULL && packed && PyDict_GetItemWithError(view->cells, key) == NULL)
        leaf = NULL;
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

/* Note blocks of one leaf that the map has in the head. */
static void add_range(Redirects *redirects, uint32_t first, uint32_t blocks)
{
    int count = append_range(redirects->ranges, redirects->count, first, blocks);
    redirects->allowance -= count - redirects->count;
    redirects->count = count;
}

/* Put off whole blocks of one leaf, which may be changed; false when that is for Python to do, or an
 * exception is set. */
static int redirect_packed(
    View *view, Redirects *redirects, PyObject *leaf, const Request *request,
    const unsigned char *data)
{
    PyObject *key = PyLong_FromUnsignedLongLong(request->offset >> (BLOCK_SHIFT + LEAF_SHIFT));
    if (key == NULL)
        return 0;
    PyObject *cells = PyDict_GetItemWithError(view->cells, key);
    Py_DECREF(key);
    if (cells == NULL || !put_off(&redirects->put_offs, leaf, cells, request, data))
        return 0;
    redirects->allowance--;
    view->minds_zeros = 1; /* no barrier covers these */
    return 1;
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
        covers_zeros(data, request->offset, request->length) || !may_redirect(view, redirects))
        return 0;
    const File *file = find_file(view, view->head_slot);
    if (file == NULL || file->fd < 0 || note_unsynced(view) < 0)
        return 0;
    PyObject *leaf = own_leaf(view, redirects, first >> LEAF_SHIFT, file->packed);
    if (leaf == NULL)
        return 0;
    if (file->packed) {
        int done = redirect_packed(view, redirects, leaf, request, data);
        Py_DECREF(leaf);
        return done;
    }
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
