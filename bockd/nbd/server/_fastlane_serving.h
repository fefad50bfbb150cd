/* One plain read or write, done at once or handed back. One source file, _fastlane.c, takes this in.
 *
 * The data of larger reads is sent from a mapping of the file, if all of it is in the page cache:
 * so it is copied once and not twice. Nothing here touches what is mapped, where a page that cannot
 * be read would kill the process; sendmsg fails instead.
 */

/* Shorter reads are copied: to see whether a page is there costs as much. */
#define MIN_MAPPED_BYTES (8 * 1024)
/* Longer ones are not sent from here. */
#define MAX_MAPPED_BYTES (1024 * 1024)
#define PAGE_BYTES 4096

/* Data that is in the file and not in the reply buffer, where its place is left empty. */
typedef struct {
    Py_ssize_t at, length; /* in the reply buffer */
    unsigned char *data;
    int fd;
    off_t offset;
} Gap;

#define NO_ROOM (-1)

enum served { NOT_SERVED, SERVED, MISSED };

/* Read into `into`. NOT_SERVED, too, when an exception is set; MISSED fills `missed`. */
static enum served serve_read(
    View *view, const Request *request, unsigned char *into, Missed *missed)
{
    if (request->offset > view->readable || request->length > view->readable - request->offset)
        return NOT_SERVED;
    Place place;
    if (!find_place(view, request, &place))
        return NOT_SERVED;
    const File *file = place.file;
    if (file->fd == HOLE) {
        memset(into, 0, request->length);
        return SERVED;
    }
    struct iovec part = {into, request->length};
    ssize_t count;
    if (file->flags) { /* does not wait: others need not have the lock meanwhile */
        count = preadv2(file->fd, &part, 1, (off_t)place.at, file->flags);
    } else {
        int fd = file->fd;
        Py_BEGIN_ALLOW_THREADS
        count = preadv(fd, &part, 1, (off_t)place.at);
        Py_END_ALLOW_THREADS
    }
    if (count == (ssize_t)request->length)
        return SERVED;
    if (!file->flags || (count < 0 ? errno != EAGAIN : count == 0))
        return NOT_SERVED;
    *missed = (Missed){file->slot, file->fd, request->offset, place.at, (uint32_t)request->length, 0,
        request->cookie, (uint64_t)request->body};
    return MISSED;
}

/* Where a piece of a file can be sent from; false when it must be copied, or an exception is set. */
static int map_piece(
    View *view, const File *file, uint64_t at, uint64_t length, Gap *gap, PyObject *held)
{
    const Mapped *mapped = find_window(view, file, at, length, held);
    if (mapped == NULL)
        return 0;
    uint64_t start = at - mapped->start;
    unsigned char resident[MAX_MAPPED_BYTES / PAGE_BYTES + 1];
    uint64_t first = start & ~(uint64_t)(PAGE_BYTES - 1);
    size_t reach = (size_t)(start + length - first);
    if (mincore(mapped->address + first, reach, resident) < 0)
        return 0;
    for (size_t page = 0; page < (reach + PAGE_BYTES - 1) / PAGE_BYTES; page++)
        if (!(resident[page] & 1))
            return 0;
    gap->length = (Py_ssize_t)length;
    gap->data = mapped->address + start;
    gap->fd = file->fd;
    gap->offset = (off_t)at;
    return 1;
}

/* Where a read's data can be sent from, piece by piece: how many gaps that makes; NO_ROOM for more
 * than `room`; 0 when it must be copied, or an exception is set. */
static int map_read(View *view, const Request *request, Gap *gaps, int room, PyObject *held)
{
    if (request->offset > view->readable || request->length > view->readable - request->offset)
        return 0;
    long slot = find_slot(view, request->offset, request->length);
    if (slot < 0)
        return 0;
    const File *file = find_file(view, slot);
    if (file == NULL || file->fd == HOLE || !file->flags)
        return 0;
    Values cells;
    cells.values = NULL;
    if (file->packed && find_values(&cells, view->cells,
            request->offset >> (BLOCK_SHIFT + LEAF_SHIFT), sizeof(uint32_t)) == NULL)
        return 0;
    uint64_t offset = request->offset, left = request->length;
    int count = 0;
    for (; left; count++) {
        uint64_t at, length = run_bytes(cells.values, offset, left, &at);
        if (count == room || !map_piece(view, file, at, length, &gaps[count], held))
            break;
        offset += length;
        left -= length;
    }
    let_go(&cells);
    return !left ? count : count == room ? NO_ROOM : 0;
}

/* Write in place, or whole blocks into the head; false when that is for Python to do, or an
 * exception is set. */
static int serve_write(
    View *view, Redirects *redirects, const Request *request, const unsigned char *data)
{
    if (view->head_slot < 0 || request->offset > view->writable ||
        request->length > view->writable - request->offset)
        return 0;
    if (find_slot(view, request->offset, request->length) != view->head_slot)
        return !PyErr_Occurred() && redirect(view, redirects, request, data);
    if (view->minds_zeros && covers_zeros(data, request->offset, request->length))
        return 0;
    const File *file = find_file(view, view->head_slot);
    uint64_t at;
    if (file == NULL || file->fd < 0 || !find_byte(view, file, request, &at) ||
        note_unsynced(view) < 0)
        return 0;
    int fd = file->fd;
    ssize_t count;
    Py_BEGIN_ALLOW_THREADS
    count = pwrite(fd, data, request->length, (off_t)at);
    Py_END_ALLOW_THREADS
    view->written = (Written){fd, (off_t)at, request->length};
    return count == (ssize_t)request->length;
}
