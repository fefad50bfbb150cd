/* Blocks that are new to a packed head: put off, and written together. One source file, _fastlane.c,
 * takes this in.
 *
 * One call writes all of a round to cells that follow each other: that is what makes first writes
 * cheap. Until then neither the file nor the map has any of it; so whatever comes to one of the
 * blocks has all of it written before (`write_before`), and sees what it would see if each had been
 * written when it came. Whatever may say no is asked before a write is put off. After that only
 * writing can fail: then nothing of the round may be acknowledged, and the map does not know of it.
 */

/* Blocks that are put off, by number modulo this. Two that share a bit cost an early write. */
#define SEEN_BLOCKS 4096

/* Whole blocks of one leaf. */
typedef struct {
    PyObject *leaf, *cells; /* owned */
    uint16_t *slot;         /* in `leaf`, of the first block: nobody makes a leaf longer or shorter */
    uint32_t *cell;         /* in `cells` */
    uint32_t first, count;
    const unsigned char *data; /* in the receive buffer */
} PutOff;

typedef struct {
    PyObject *port; /* borrowed */
    long head_slot;
    int count;
    int failed;      /* to write; until the round is served again */
    int uncommitted; /* some of this round are staged */
    uint32_t blocks;
    PutOff list[MAX_REQUESTS];
    uint64_t seen[SEEN_BLOCKS / 64]; /* set while something is put off */
} PutOffs;

static void begin_put_offs(PutOffs *put_offs, const View *view)
{
    put_offs->port = view->redirects;
    put_offs->head_slot = view->head_slot;
    put_offs->count = put_offs->failed = put_offs->uncommitted = 0;
    put_offs->blocks = 0;
}

static void forget_put_offs(PutOffs *put_offs)
{
    for (int number = 0; number < put_offs->count; number++) {
        Py_DECREF(put_offs->list[number].leaf);
        Py_DECREF(put_offs->list[number].cells);
    }
    put_offs->count = 0;
    put_offs->blocks = 0;
}

/* The values of a leaf that may be changed, of so many bytes each; NULL with or without an
 * exception. The leaf must outlive them. */
static void *changeable(PyObject *leaf, size_t value_bytes)
{
    Py_buffer buffer;
    void *values = NULL;
    if (PyObject_GetBuffer(leaf, &buffer, PyBUF_WRITABLE) < 0)
        return NULL;
    if (buffer.len == LEAF_BLOCKS * (Py_ssize_t)value_bytes)
        values = buffer.buf;
    PyBuffer_Release(&buffer);
    return values;
}

/* Put off whole blocks that the head does not hold, with the leaf and the cells that will lead to
 * them; false when some are in the head, or an exception is set. */
static int put_off(
    PutOffs *put_offs, PyObject *leaf, PyObject *cells, const Request *request,
    const unsigned char *data)
{
    PutOff *one = &put_offs->list[put_offs->count];
    uint64_t first = request->offset >> BLOCK_SHIFT, count = request->length >> BLOCK_SHIFT;
    uint16_t *slots = changeable(leaf, sizeof *slots);
    uint32_t *numbers = slots == NULL ? NULL : changeable(cells, sizeof *numbers);
    if (numbers == NULL || put_offs->count == MAX_REQUESTS)
        return 0;
    for (uint64_t block = first; block < first + count; block++)
        if (slots[block & LEAF_MASK] == put_offs->head_slot)
            return 0;
    if (!put_offs->count)
        memset(put_offs->seen, 0, sizeof put_offs->seen);
    for (uint64_t block = first; block < first + count; block++)
        put_offs->seen[block % SEEN_BLOCKS / 64] |= (uint64_t)1 << block % 64;
    Py_INCREF(leaf);
    Py_INCREF(cells);
    *one = (PutOff){leaf, cells, slots + (first & LEAF_MASK), numbers + (first & LEAF_MASK),
        (uint32_t)first, (uint32_t)count, data};
    put_offs->count++;
    put_offs->blocks += (uint32_t)count;
    return 1;
}

static int write_to_cells(const PutOffs *put_offs, int fd, off_t at)
{
    struct iovec parts[MAX_REQUESTS];
    ssize_t length = (ssize_t)put_offs->blocks << BLOCK_SHIFT, written;
    for (int number = 0; number < put_offs->count; number++) {
        const PutOff *one = &put_offs->list[number];
        parts[number] = (struct iovec){(void *)one->data, (size_t)one->count << BLOCK_SHIFT};
    }
    Py_BEGIN_ALLOW_THREADS
    written = pwritev(fd, parts, put_offs->count, at);
    Py_END_ALLOW_THREADS
    return written == length;
}

/* Note blocks of one leaf: as one range with the last of `count`, if they follow it there. How many
 * ranges there are then. */
static int append_range(uint32_t (*ranges)[2], int count, uint32_t first, uint32_t blocks)
{
    uint32_t *last = count ? ranges[count - 1] : NULL;
    if (last != NULL && last[0] + last[1] == first && last[0] >> LEAF_SHIFT == first >> LEAF_SHIFT) {
        last[1] += blocks;
        return count;
    }
    ranges[count][0] = first;
    ranges[count][1] = blocks;
    return count + 1;
}

/* Have the map lead to the cells from `cell` on, and tell the port; false with an exception set. */
static int lead_to_cells(PutOffs *put_offs, unsigned long long cell)
{
    uint32_t ranges[MAX_REQUESTS][2];
    int count = 0;
    uint32_t at = (uint32_t)cell;
    for (int number = 0; number < put_offs->count; number++) {
        const PutOff *one = &put_offs->list[number];
        for (uint32_t block = 0; block < one->count; block++) {
            one->slot[block] = (uint16_t)put_offs->head_slot;
            one->cell[block] = at++;
        }
        count = append_range(ranges, count, one->first, one->count);
    }
    put_offs->uncommitted = 1;
    PyObject *done = PyObject_CallMethod(
        put_offs->port, "stage_cells", "y#K", (const char *)ranges,
        count * (Py_ssize_t)sizeof ranges[0], cell);
    Py_XDECREF(done);
    return done != NULL;
}

/* The first of the cells for what is put off; -1 when there are none, or an exception is set. */
static long long take_cells(const PutOffs *put_offs)
{
    PyObject *taken = PyObject_CallMethod(put_offs->port, "take", "I", put_offs->blocks);
    if (taken == NULL)
        return -1;
    long long cell = PyLong_AsLongLong(taken);
    Py_DECREF(taken);
    return cell;
}

/* Write what is put off, have the map lead there, and stage it; false when that failed, or an
 * exception is set. In any case nothing is put off any more. */
static int write_put_off(View *view, PutOffs *put_offs)
{
    if (!put_offs->count)
        return 1;
    int done = 0;
    const File *file = find_file(view, put_offs->head_slot);
    if (file != NULL && file->fd >= 0 && note_unsynced(view) == 0) {
        long long cell = take_cells(put_offs);
        if (cell >= 0 && write_to_cells(put_offs, file->fd, (off_t)cell << BLOCK_SHIFT)) {
            done = lead_to_cells(put_offs, (unsigned long long)cell);
        } else if (cell >= 0) {
            PyObject *given = PyObject_CallMethod(
                put_offs->port, "give_back", "LI", cell, put_offs->blocks);
            Py_XDECREF(given);
        }
    }
    forget_put_offs(put_offs);
    put_offs->failed |= !done;
    return done;
}

/* Write what is put off if a request comes to one of its blocks; false when that failed, now or
 * before, or an exception is set. */
static int write_before(View *view, PutOffs *put_offs, const Request *request)
{
    if (!put_offs->count)
        return !put_offs->failed;
    uint64_t first = request->offset >> BLOCK_SHIFT;
    uint64_t last = (request->offset + request->length - 1) >> BLOCK_SHIFT;
    if (request->length > SEEN_BLOCKS << BLOCK_SHIFT) /* a trim, or not served from here */
        return 1;
    for (uint64_t block = first; request->length && block <= last; block++)
        if (put_offs->seen[block % SEEN_BLOCKS / 64] & (uint64_t)1 << block % 64)
            return write_put_off(view, put_offs);
    return 1;
}
