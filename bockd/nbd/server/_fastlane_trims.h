/* Trims, and writes of zeroes that may leave holes: gathered, and made by bockd.pool.device.Redirects
 * in one call for those that come one after another. One source file, _fastlane.c, takes this in.
 *
 * Clients trim one range after the other in many requests, which then are one change of the map. They
 * are made before the next request is looked at that is none, so that nothing overtakes them.
 */

/* Of one round: what each may take of the loop's turn is some microseconds, for each GiB as well. */
#define MAX_TRIMS 64
#define MAX_TRIMMED_BYTES ((uint64_t)4 << 30)

typedef struct {
    int count, of_round;
    uint64_t bytes_of_round;
    uint64_t ranges[MAX_TRIMS][2]; /* offset and length */
    Request requests[MAX_TRIMS];
} Trims;

/* Whether a request may be one of these. */
static int is_trim(const View *view, const Redirects *redirects, const Request *request)
{
    uint64_t beside = (1 << BLOCK_SHIFT) - 1;
    return (request->command == CMD_TRIM ||
            (request->command == CMD_WRITE_ZEROES &&
             !((request->offset | request->length) & beside))) &&
           !request->flags && request->length && request->length <= MAX_TRIMMED_BYTES &&
           view->may_trim && redirects->port != Py_None && request->offset <= view->writable &&
           request->length <= view->writable - request->offset;
}

/* Gather one more; false when the round has had its share. */
static int add_trim(Trims *trims, const Request *request)
{
    if (trims->of_round == MAX_TRIMS ||
        trims->bytes_of_round + request->length > MAX_TRIMMED_BYTES)
        return 0;
    trims->of_round++;
    trims->bytes_of_round += request->length;
    trims->ranges[trims->count][0] = request->offset;
    trims->ranges[trims->count][1] = request->length;
    trims->requests[trims->count++] = *request;
    return 1;
}

/* Make what was gathered: how many were made, from the first on; -1 with an exception set. The
 * others are for Python. */
static int make_trims(View *view, Redirects *redirects, Trims *trims)
{
    int count = trims->count;
    trims->count = 0;
    if (!count)
        return 0;
    /* What was redirected before is in the map, and before it in the journal. */
    if (!write_put_off(view, &redirects->put_offs))
        return PyErr_Occurred() ? -1 : 0; /* the round is served again */
    if (stage_redirects(redirects) < 0)
        return -1;
    PyObject *answer = PyObject_CallMethod(
        redirects->port, "trim", "y#", (const char *)trims->ranges,
        count * (Py_ssize_t)sizeof trims->ranges[0]);
    long made = answer == NULL ? -1 : PyLong_AsLong(answer);
    Py_XDECREF(answer);
    if (made < 0 || made > count)
        return -1;
    if (made) {
        redirects->uncommitted = 1;
        view->minds_zeros = 1; /* no barrier covers these */
    }
    return (int)made;
}
