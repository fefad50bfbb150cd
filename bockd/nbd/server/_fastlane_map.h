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
    int packed; /* its blocks lie in cells; else each at its offset in the device */
    PyObject *layer; /* borrowed */
} File;

/* Where all of a request's blocks lie, in one piece. */
typedef struct {
    const File *file;
    uint64_t at; /* the byte in the file; nothing when it is a HOLE */
} Place;

/* A mapped part of a file. */
typedef struct {
    uint16_t slot;
    PyObject *window; /* borrowed: others see to it that it stays mapped */
    uint64_t start, length;
    unsigned char *address;
} Mapped;

/* Windows met in one call. */
#define KNOWN_WINDOWS 8

/* Offsets; a read that covers one of them is not for the lane. */
#define MAX_MARKS 8
typedef struct {
    int count;
    uint64_t at[MAX_MARKS];
} Marks;

typedef struct {
    PyObject *leaves, *cells, *slots, *journal; /* borrowed */
    PyObject *redirects;                        /* borrowed; None if none may be made */
    long head_slot;                     /* -1: nothing may be written */
    int may_trim;
    uint64_t readable, writable;        /* where reads and writes end at the latest, in bytes */
    File files[KNOWN_FILES];
    int known, next;
    Mapped windows[KNOWN_WINDOWS];
    int mapped, last_mapped; /* how many there are, and which was asked for last */
    int unsynced;  /* the journal knows that the head has unsynced writes */
    Marks marks;
    int minds_zeros; /* blocks must not become zeros without a word to the journal */
    Written written; /* the last write in place */
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
            object, "O!O!O!lOKpOO&:FastView", &PyDict_Type, &view->leaves, &PyDict_Type,
            &view->cells, &PyList_Type, &view->slots, &view->head_slot, &view->journal, &reach,
            &view->minds_zeros, &view->redirects, parse_marks, &view->marks))
        return 0;
    view->readable = view->writable = reach;
    view->may_trim = 1;
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

/* One value for each block of a leaf, from `leaves` or `cells`. */
typedef struct {
    Py_buffer buffer;
    const void *values; /* NULL: not in memory. Else to be let go */
} Values;

/* Look up a leaf's values, of so many bytes: NULL if they are not in memory. Sets an exception only
 * when something is broken. */
static const void *find_values(
    Values *found, PyObject *leaves, uint64_t leaf, size_t value_bytes)
{
    found->values = NULL;
    PyObject *number = PyLong_FromUnsignedLongLong(leaf);
    if (number == NULL)
        return NULL;
    PyObject *values = PyDict_GetItemWithError(leaves, number);
    Py_DECREF(number);
    if (values == NULL || PyObject_GetBuffer(values, &found->buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    if (found->buffer.len == LEAF_BLOCKS * (Py_ssize_t)value_bytes)
        found->values = found->buffer.buf;
    else
        PyBuffer_Release(&found->buffer);
    return found->values;
}

static void let_go(Values *found)
{
    if (found->values != NULL)
        PyBuffer_Release(&found->buffer);
}

/* The slot that all of a request's blocks are in, -1 if there is no such slot in memory. Sets an
 * exception only when something is broken. */
static long find_slot(View *view, uint64_t offset, uint64_t length)
{
    uint64_t first = offset >> BLOCK_SHIFT, last = (offset + length - 1) >> BLOCK_SHIFT;
    if (first >> LEAF_SHIFT != last >> LEAF_SHIFT)
        return -1;
    Values found;
    const uint16_t *entry = find_values(
        &found, view->leaves, first >> LEAF_SHIFT, sizeof(uint16_t));
    if (entry == NULL)
        return -1;
    long slot = entry[first & LEAF_MASK];
    for (uint64_t block = first; block <= last; block++)
        if (entry[block & LEAF_MASK] != slot) {
            slot = -1;
            break;
        }
    let_go(&found);
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
    File file = {.slot = (uint16_t)slot, .fd = HOLE, .layer = layer};
    if (layer != Py_None) {
        Py_INCREF(layer);
        long fd = long_attribute(layer, "first_descriptor");
        file.fd = fd < 0 ? UNKNOWN : (int)fd;
        long flags = long_attribute(layer, "nowait_flag");
        file.packed = long_attribute(layer, "packed") != 0;
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

/* How many bytes of a request from `offset` on lie in one piece, and where that is. `cells` are
 * those of its leaf, NULL in a file that is not packed. */
static uint64_t run_bytes(const uint32_t *cells, uint64_t offset, uint64_t length, uint64_t *at)
{
    *at = offset;
    if (cells == NULL)
        return length;
    uint64_t within = offset & ((1 << BLOCK_SHIFT) - 1);
    uint64_t first = (offset >> BLOCK_SHIFT) & LEAF_MASK;
    uint64_t last = ((offset + length - 1) >> BLOCK_SHIFT) & LEAF_MASK, end = first + 1;
    while (end <= last && cells[end] == (uint64_t)cells[end - 1] + 1)
        end++;
    *at = ((uint64_t)cells[first] << BLOCK_SHIFT) + within;
    return end > last ? length : ((end - first) << BLOCK_SHIFT) - within;
}

/* Where in its file a request's data begins that one slot has; false if it is in more pieces than
 * one, or not known in memory. Sets an exception only when something is broken. */
static int find_byte(View *view, const File *file, const Request *request, uint64_t *at)
{
    *at = request->offset;
    if (!file->packed)
        return 1;
    Values cells;
    if (find_values(&cells, view->cells, request->offset >> (BLOCK_SHIFT + LEAF_SHIFT),
            sizeof(uint32_t)) == NULL)
        return 0;
    uint64_t length = run_bytes(cells.values, request->offset, request->length, at);
    let_go(&cells);
    return length == request->length;
}

/* Where a request's data lies; false if it is in more places than one, must be asked for, or an
 * exception is set. */
static int find_place(View *view, const Request *request, Place *place)
{
    long slot = find_slot(view, request->offset, request->length);
    if (slot < 0)
        return 0;
    place->file = find_file(view, slot);
    return place->file != NULL && find_byte(view, place->file, request, &place->at);
}

/* Where bytes of a file are mapped that lie in one window; NULL when they are nowhere, or an
 * exception is set. A window that was not known before is appended to `held`, which keeps it mapped
 * for the rest of the call. */
static const Mapped *find_window(
    View *view, const File *file, uint64_t at, uint64_t length, PyObject *held)
{
    for (int count = 0; count < view->mapped; count++) {
        int number = (view->last_mapped + count) % view->mapped;
        const Mapped *mapped = &view->windows[number];
        if (mapped->slot == file->slot && at >= mapped->start &&
            at - mapped->start < mapped->length && length <= mapped->length - (at - mapped->start)) {
            view->last_mapped = number;
            return mapped;
        }
    }
    /* By the last byte: a file that has grown has a longer one by now. */
    PyObject *window = PyObject_CallMethod(
        file->layer, "window", "K", (unsigned long long)(at + length - 1));
    if (window == NULL || window == Py_None) {
        Py_XDECREF(window);
        return NULL;
    }
    int failed = PyList_Append(held, window);
    Py_DECREF(window);
    static const char *const names[] = {"start", "length", "address"};
    unsigned long long values[3];
    for (int name = 0; name < 3 && !failed; name++) {
        PyObject *value = PyObject_GetAttrString(window, names[name]);
        if (value != NULL) {
            values[name] = PyLong_AsUnsignedLongLong(value);
            Py_DECREF(value);
        }
        failed = PyErr_Occurred() != NULL;
    }
    if (failed || at < values[0] || at - values[0] > values[1] ||
        length > values[1] - (at - values[0]))
        return NULL; /* it begins in another one, or the file is shorter than it should be */
    view->last_mapped = view->mapped < KNOWN_WINDOWS ? view->mapped++ :
                                                       (view->last_mapped + 1) % KNOWN_WINDOWS;
    view->windows[view->last_mapped] = (Mapped){
        file->slot, window, values[0], values[1], (unsigned char *)(uintptr_t)values[2]};
    return &view->windows[view->last_mapped];
}
