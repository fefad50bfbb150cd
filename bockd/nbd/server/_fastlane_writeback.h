/* What was written in place, on its way to the disk before the flush that is to come. One source file,
 * _fastlane.c, takes this in.
 *
 * A client that flushes after every write waits for the disk each time. Most of that wait passes
 * while it hears of its write and asks for the flush, if the disk begins at once. This promises
 * nothing: the kernel may write back at any time, and whoever syncs meets its errors all the same.
 */

typedef struct {
    int fd;
    off_t at;
    size_t length; /* 0: nothing was written in place */
} Written;

/* Have the kernel begin; false when it does not (a kernel or a filter that refuses the call). */
static int begin_write_back(const Written *written)
{
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = sync_file_range(
        written->fd, written->at, (off_t)written->length, SYNC_FILE_RANGE_WRITE);
    Py_END_ALLOW_THREADS
    return !failed;
}
