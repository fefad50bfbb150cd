/* Where a volume's blocks are, as bockd.pool.device.FastView shows it. One source file, _fastlane.c,
 * takes this in.
 */

#define BLOCK_SHIFT 12
#define LEAF_SHIFT 8
#define LEAF_BLOCKS (1 << LEAF_SHIFT)
#define LEAF_MASK (LEAF_BLOCKS - 1)

/* Files met in one call. Requests that go to more layers than this look them up anew. */
#define KNOWN_FILES 8

#define HOLE (-1)
#define UNKNOWN (-2)

typedef struct {
    uint16_t slot;
    int fd; /* or HOLE */
    int flags;
    PyObject *layer; /* borrowed */
} File;

/* A mapped part of a file. */
typedef struct {
    uint16_t slot;
    PyObject *window; /* owned: it stays mapped while this is held */
    uint64_t start, length;
    unsigned char *address;
} Mapped;

/* Offsets; a read that covers one of them is not for the lane. */
#define MAX_MARKS 8
typedef struct {
    int count;
    uint64_t at[MAX_MARKS];
} Marks;

typedef struct {
    PyObject *leaves, *slots, *journal; /* borrowed */
    PyObject *redirects;                /* borrowed; None if none may be made */
    long head_slot;                     /* -1: nothing may be written */
    uint64_t readable, writable;        /* where reads and writes end at the latest, in bytes */
    File files[KNOWN_FILES];
    int known, next;
    Mapped mapped; /* the last that was asked for */
    int unsynced;  /* the journal knows that the head has unsynced writes */
    Marks marks;
    int minds_zeros; /* blocks must not become zeros without a word to the journal */
} View;

/* A converter for PyArg_ParseTuple. */
static int parse_marks(PyObject *list, void *into)
{
    Marks *marks = into;
    Py_ssize_t count = PyList_Check(list) ? PyList_Size(list) : -1;
    if (count < 0 || count > MAX_MARKS) {
        PyErr_SetString(PyExc_ValueError, "no list of marks, or too many");
        return 0;
    }
    marks->count = (int)count;
    for (Py_ssize_t number = 0; number < count; number++)
        marks->at[number] = PyLong_AsUnsignedLongLong(PyList_GetItem(list, number));
    return !PyErr_Occurred();
}

/* Take a FastView apart: a converter for PyArg_ParseTuple. The view must outlive the result. */
static int parse_view(PyObject *object, void *into)
{
    View *view = into;
    unsigned long long reach;
    if (!PyArg_ParseTuple(
            object, "O!O!lOKpOO&:FastView", &PyDict_Type, &view->leaves, &PyList_Type, &view->slots,
            &view->head_slot, &view->journal, &reach, &view->minds_zeros, &view->redirects,
            parse_marks, &view->marks))
        return 0;
    view->readable = view->writable = reach;
    return 1;
}

/* Have the journal know that the head has unsynced writes; -1 with an exception set. To be called
 * before the write: should that fail half-way, the next sync must still cover it. */
static int note_unsynced(View *view)
{
    if (view->unsynced)
        return 0;
    if (PyObject_SetAttrString(view->journal, "unsynced", Py_True) < 0)
        return -1;
    view->unsynced = 1;
    return 0;
}

static int touches_mark(const Marks *marks, const Request *request)
{
    for (int number = 0; number < marks->count; number++)
        if (marks->at[number] - request->offset < request->length)
            return 1;
    return 0;
}

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

/* Whether what a write holds of some block is nothing but zeros. */
static int covers_zeros(const unsigned char *data, uint64_t offset, uint64_t length)
{
    while (length) {
        uint64_t piece = (1 << BLOCK_SHIFT) - (offset & ((1 << BLOCK_SHIFT) - 1));
        if (piece > length)
            piece = length;
        if (!data[0] && (piece == 1 || !memcmp(data, data + 1, piece - 1)))
            return 1;
        data += piece;
        offset += piece;
        length -= piece;
    }
    return 0;
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

/* The file of a slot, or NULL if there is none that may be read without a further look. */
static const File *find_file(View *view, long slot)
{
    for (int at = 0; at < view->known; at++)
        if (view->files[at].slot == slot)
            return &view->files[at];
    PyObject *layer = PyList_GetItem(view->slots, slot);
    if (layer == NULL)
        return NULL;
    File file = {(uint16_t)slot, HOLE, 0, layer};
    if (layer != Py_None) {
        Py_INCREF(layer);
        long fd = long_attribute(layer, "near_descriptor");
        file.fd = fd < 0 ? UNKNOWN : (int)fd;
        long flags = long_attribute(layer, "nowait_flag");
        if (slot != view->head_slot && PyObject_SetAttrString(layer, "used", Py_True) < 0)
            file.fd = UNKNOWN;
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

/* Have view->mapped be where a byte of a file is mapped; false when it is nowhere, or an exception
 * is set. */
static int find_window(View *view, const File *file, uint64_t offset)
{
    Mapped *mapped = &view->mapped;
    if (mapped->window != NULL && mapped->slot == file->slot && offset >= mapped->start &&
        offset - mapped->start < mapped->length)
        return 1;
    PyObject *window = PyObject_CallMethod(file->layer, "window", "K", (unsigned long long)offset);
    if (window == NULL || window == Py_None) {
        Py_XDECREF(window);
        return 0;
    }
    static const char *const names[] = {"start", "length", "address"};
    unsigned long long values[3];
    for (int at = 0; at < 3; at++) {
        PyObject *value = PyObject_GetAttrString(window, names[at]);
        if (value != NULL) {
            values[at] = PyLong_AsUnsignedLongLong(value);
            Py_DECREF(value);
        }
        if (PyErr_Occurred()) {
            Py_DECREF(window);
            return 0;
        }
    }
    Py_XDECREF(mapped->window);
    *mapped = (Mapped){
        file->slot, window, values[0], values[1], (unsigned char *)(uintptr_t)values[2]};
    return 1;
}
