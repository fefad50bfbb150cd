/* Rounds of plain requests: from receiving to sending. One source file, _fastlane.c, takes this in.
 *
 * What the socket does not take at once of mapped data is read into the reply buffer, so that
 * nothing is left to be sent from a file that changes.
 */

/* Mapped pieces of one round: with what lies between them, fewer parts than sendmsg takes (1024).
 * One read has 257 at most. */
#define MAX_MAPPED 384

static int append_request(PyObject *list, const Request *request)
{
    PyObject *tuple = Py_BuildValue(
        "(HHKKKn)", request->flags, request->command, (unsigned long long)request->cookie,
        (unsigned long long)request->offset, (unsigned long long)request->length, request->body);
    if (tuple == NULL)
        return -1;
    int failed = PyList_Append(list, tuple);
    Py_DECREF(tuple);
    return failed;
}

/* What the arguments of a call say. */
typedef struct {
    Py_buffer received, reply;
    Py_buffer durations; /* of the export; see _fastlane_durations.h */
    enum style style;
    unsigned long long max_read, max_payload;
    int max_missed, sock;
    long long poll_ns, turn_ns;
    int write_back; /* the first write is the only one before a flush, as it seems */
    PyObject *rest; /* requests that were not served */
    PyObject *held; /* windows in use */
    Trace trace;
} Call;

/* Of one round: from receiving to sending. */
typedef struct {
    Py_ssize_t filled, acknowledged; /* bytes: replies to reads, and to writes */
    Py_ssize_t sent;                 /* of both together */
    Py_ssize_t served;
    enum { AT_THE_END, FOR_WANT_OF_ROOM, AT_THE_PARSERS } stopped;
    Py_ssize_t missed_bytes; /* of their replies */
    int gap_count, missed_count;
    Gap gaps[MAX_MAPPED];
    Missed missed[MAX_REQUESTS];
    unsigned char acknowledgements[MAX_REQUESTS * MAX_REPLY_BYTES];
} Round;

typedef struct {
    Py_ssize_t position, end;
    int64_t started; /* the last round */
    uint64_t reads, read_bytes, writes, written_bytes, trims, received_bytes;
    uint64_t timed_reads, timed_writes, timed_trims; /* of them, those whose durations are entered */
    int polled; /* in vain */
    int written_back; /* what was written is on its way to the disk */
    int unflagged; /* whether there was a write whose flags do not mention its payload */
} Outcome;

/* Whether the arguments of a call are wrong; an exception is set then. */
static int refused(const Call *call, Py_ssize_t start, Py_ssize_t end, int style)
{
    int wrong = start < 0 || end < start || end > call->received.len || style < SIMPLE ||
                style > EXTENDED || call->durations.len != DURATION_BYTES;
    if (wrong)
        PyErr_SetString(PyExc_ValueError, "no such range or style, or no durations");
    return wrong;
}

static int changes(uint16_t command)
{
    return command != CMD_READ && command != CMD_FLUSH && command != CMD_CACHE &&
           command != CMD_BLOCK_STATUS;
}

/* Hand a request back; -1 with an exception set. */
static int hand_back(View *view, const Call *call, const Request *request)
{
    /* The protocol promises no order among requests in flight. All the same, no write overtakes a
     * change that was sent before it and is not made yet, and no trim does. */
    if (changes(request->command)) {
        view->head_slot = -1;
        view->may_trim = 0;
    }
    return PyErr_Occurred() ? -1 : append_request(call->rest, request);
}

/* Make the trims that were gathered, and acknowledge them from `acknowledge` on, behind which it
 * leaves the place of the next reply; -1 with an exception set. */
static int serve_trims(
    View *view, Call *call, Redirects *redirects, Trims *trims, Round *round,
    Outcome *outcome, unsigned char **acknowledge)
{
    int count = trims->count, made = make_trims(view, redirects, trims);
    if (made < 0)
        return -1;
    for (int number = 0; number < made; number++) {
        *acknowledge = put_done(*acknowledge, call->style, &trims->requests[number]);
        trace_request(&call->trace, &trims->requests[number]);
    }
    round->served += made;
    outcome->trims += (uint64_t)made;
    for (int number = made; number < count; number++)
        if (hand_back(view, call, &trims->requests[number]) < 0)
            return -1;
    return 0;
}

/* Serve what has been received, from outcome->position on; -1 with an exception set. */
static int serve_received(
    View *view, Call *call, Redirects *redirects, Round *round, Outcome *outcome)
{
    Trims trims;
    trims.count = trims.of_round = 0;
    trims.bytes_of_round = 0;
    enum style style = call->style;
    int extended = style == EXTENDED;
    uint16_t write_flags = extended ? FLAG_PAYLOAD_LEN : 0;
    Py_ssize_t header = data_header_bytes(style);
    const unsigned char *received = call->received.buf;
    unsigned char *into = call->reply.buf, *acknowledge = round->acknowledgements;
    for (int count = 0;; count++) {
        Request request;
        Missed missed;
        Py_ssize_t next = take(
            received, outcome->position, outcome->end, extended, call->max_payload, &request);
        if (next <= 0) {
            round->stopped = next == INCOMPLETE ? AT_THE_END : AT_THE_PARSERS;
            break;
        }
        if (count == MAX_REQUESTS || round->missed_bytes >= MAX_MISSED_BYTES) {
            round->stopped = FOR_WANT_OF_ROOM;
            break;
        }
        if (!write_before(view, &redirects->put_offs, &request))
            return PyErr_Occurred() ? -1 : 0; /* what failed is met by commit_redirects */
        outcome->unflagged |= request.unflagged;
        if (is_trim(view, redirects, &request)) {
            if (!add_trim(&trims, &request)) {
                round->stopped = FOR_WANT_OF_ROOM;
                break;
            }
            outcome->position = next;
            continue;
        }
        if (trims.count &&
            serve_trims(view, call, redirects, &trims, round, outcome, &acknowledge) < 0)
            return -1;
        enum served served = NOT_SERVED;
        int may_map = call->sock >= 0 && request.length >= MIN_MAPPED_BYTES &&
                      request.length <= MAX_MAPPED_BYTES;
        if (request.command == CMD_READ && !request.flags && request.length &&
            (request.length <= call->max_read || may_map) && !touches_mark(&view->marks, &request)) {
            Py_ssize_t data = round->filled + header;
            if (data + (Py_ssize_t)request.length > call->reply.len) {
                round->stopped = FOR_WANT_OF_ROOM;
                break;
            }
            Gap *gap = &round->gaps[round->gap_count];
            int gaps = !may_map ? 0 : map_read(
                view, &request, gap, MAX_MAPPED - round->gap_count, call->held);
            if (gaps == NO_ROOM) {
                round->stopped = FOR_WANT_OF_ROOM;
                break;
            }
            if (gaps) {
                for (Py_ssize_t at = data; gap < &round->gaps[round->gap_count + gaps]; gap++) {
                    gap->at = at;
                    at += gap->length;
                }
                round->gap_count += gaps;
                served = SERVED;
            } else if (!PyErr_Occurred() && request.length <= call->max_read) {
                served = serve_read(view, &request, into + data, &missed);
            }
            if (served == MISSED && round->missed_count < call->max_missed) {
                missed.at = (uint32_t)(round->missed_bytes + header);
                round->missed[round->missed_count++] = missed;
                round->missed_bytes += header + (Py_ssize_t)request.length;
                outcome->position = next;
                continue;
            }
            if (served == SERVED) {
                put_data_header(into + round->filled, style, &request);
                round->filled = data + (Py_ssize_t)request.length;
                outcome->reads++;
                outcome->read_bytes += request.length;
            }
        } else if (request.command == CMD_WRITE && request.flags == write_flags && request.length) {
            served = serve_write(view, redirects, &request, received + request.body) ?
                SERVED : NOT_SERVED;
            if (served == SERVED) {
                acknowledge = put_done(acknowledge, style, &request);
                outcome->writes++;
                outcome->written_bytes += request.length;
            }
        }
        if (served == SERVED) {
            round->served++;
            trace_request(&call->trace, &request);
        } else if (hand_back(view, call, &request) < 0) {
            return -1;
        }
        outcome->position = next;
    }
    if (trims.count &&
        serve_trims(view, call, redirects, &trims, round, outcome, &acknowledge) < 0)
        return -1;
    round->acknowledged = acknowledge - round->acknowledgements;
    return 0;
}

/* Serve what has been received, and have the journal know of what it redirected: of what is
 * answered then. When the journal fails, or what was put off cannot be written, nothing of the round
 * is acknowledged (promise D1): its writes are handed back, and refused by a volume that has failed,
 * or written anew. -1 with an exception set. */
static int serve_round(
    View *view, Call *call, Redirects *redirects, Round *round, Outcome *outcome)
{
    Outcome before = *outcome;
    for (;;) {
        if (serve_received(view, call, redirects, round, outcome) < 0) {
            PyObject *type, *value, *traceback;
            PyErr_Fetch(&type, &value, &traceback);
            commit_redirects(view, redirects);
            PyErr_Restore(type, value, traceback);
            return -1;
        }
        int committed = commit_redirects(view, redirects);
        if (committed)
            return committed < 0 ? -1 : 0;
        *outcome = before;
        memset(round, 0, offsetof(Round, gaps));
        forget_traced(&call->trace);
        if (PyList_SetSlice(call->rest, 0, PyList_Size(call->rest), NULL) < 0)
            return -1;
        view->head_slot = -1; /* now nothing is written, and so nothing redirected */
        view->may_trim = 0;
    }
}

/* Send a round's replies as far as the socket takes them now. Data of the rest that is still in
 * files is read into the reply buffer; -1 with an exception set when that fails. */
static int send_replies(const Call *call, Round *round)
{
    unsigned char *reply = call->reply.buf;
    struct iovec parts[2 * MAX_MAPPED + 2];
    int count = 0;
    Py_ssize_t at = 0;
    for (int number = 0; number < round->gap_count; number++) {
        const Gap *gap = &round->gaps[number];
        if (gap->at > at)
            parts[count++] = (struct iovec){reply + at, (size_t)(gap->at - at)};
        parts[count++] = (struct iovec){gap->data, (size_t)gap->length};
        at = gap->at + gap->length;
    }
    if (round->filled > at)
        parts[count++] = (struct iovec){reply + at, (size_t)(round->filled - at)};
    /* Others put more replies to reads in front of these, if there is a rest: they stay whole. */
    if (round->acknowledged && !PyList_Size(call->rest))
        parts[count++] = (struct iovec){round->acknowledgements, (size_t)round->acknowledged};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
    ssize_t sent = sendmsg(call->sock, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    round->sent = sent < 0 ? 0 : sent; /* who sends the rest meets the error */
    for (int number = 0; number < round->gap_count; number++) {
        const Gap *gap = &round->gaps[number];
        Py_ssize_t done = round->sent > gap->at ? round->sent - gap->at : 0;
        while (done < gap->length) {
            ssize_t got;
            Py_BEGIN_ALLOW_THREADS /* should a page be gone since it was seen */
            got = pread(
                gap->fd, reply + gap->at + done, (size_t)(gap->length - done), gap->offset + done);
            Py_END_ALLOW_THREADS
            if (got <= 0) {
                errno = got < 0 ? errno : EIO;
                PyErr_SetFromErrno(PyExc_OSError);
                return -1;
            }
            done += got;
        }
    }
    return 0;
}

/* Receive behind what is left of the last request; whether something came. */
static int receive_more(const Call *call, Outcome *outcome, int64_t until)
{
    unsigned char *received = call->received.buf;
    Py_ssize_t left = outcome->end - outcome->position;
    int64_t time = until - now_ns();
    if (left == call->received.len || time <= 0)
        return 0;
    if (left)
        memmove(received, received + outcome->position, (size_t)left);
    outcome->position = 0;
    outcome->end = left;
    ssize_t count = poll_socket(
        call->sock, received + left, (size_t)(call->received.len - left),
        time < call->poll_ns ? time : call->poll_ns);
    if (count <= 0) { /* whoever receives next meets what it was */
        outcome->polled = time >= call->poll_ns;
        return 0;
    }
    outcome->end += count;
    outcome->received_bytes += (uint64_t)count;
    return 1;
}

/* Enter how long a round took until `now`, for all that it has served. */
static void enter_round(const Call *call, Outcome *outcome, int64_t now)
{
    const Py_buffer *into = &call->durations;
    int64_t nanoseconds = now - outcome->started;
    enter_duration(into, READS, nanoseconds, outcome->reads - outcome->timed_reads);
    enter_duration(into, WRITES, nanoseconds, outcome->writes - outcome->timed_writes);
    enter_duration(into, TRIMS, nanoseconds, outcome->trims - outcome->timed_trims);
    outcome->timed_reads = outcome->reads;
    outcome->timed_writes = outcome->writes;
    outcome->timed_trims = outcome->trims;
}

/* Round after round, as long as there is nothing for others to do; -1 with an exception set. */
static int serve_rounds(
    View *view, Call *call, Redirects *redirects, Round *round, Outcome *outcome)
{
    int64_t until = now_ns() + call->turn_ns;
    for (;;) {
        outcome->started = now_ns();
        memset(round, 0, offsetof(Round, gaps));
        if (serve_round(view, call, redirects, round, outcome) < 0)
            return -1;
        finish_traced(&call->trace, outcome->started);
        Py_ssize_t replies = round->filled + round->acknowledged, left = PyList_Size(call->rest);
        if (call->sock >= 0 && replies && (!left || round->gap_count) &&
            send_replies(call, round) < 0)
            return -1;
        if (round->served)
            enter_round(call, outcome, now_ns());
        if (left || round->missed_count || round->sent < replies)
            return 0;
        round->served = 0;
        if (!call->poll_ns || round->stopped == AT_THE_PARSERS)
            return 0;
        if (call->write_back && outcome->writes == 1 && view->written.length)
            outcome->written_back |= begin_write_back(&view->written);
        view->written.length = 0;
        if (round->stopped == FOR_WANT_OF_ROOM ? now_ns() > until :
                                                 !receive_more(call, outcome, until))
            return 0;
    }
}

/* What Python is told of a call: Served in fastlane.py; NULL with an exception set. */
static PyObject *build_outcome(const Call *call, const Outcome *outcome, const Round *round)
{
    Py_ssize_t sent = round->sent < round->filled ? round->sent : round->filled;
    Py_ssize_t acknowledged = round->sent - sent;
    return Py_BuildValue(
        "(nnKiOnnny#LKKKKiy#Ki)", outcome->position, outcome->end,
        (unsigned long long)outcome->received_bytes, outcome->polled, call->rest, round->served,
        sent, round->filled, (const char *)round->acknowledgements + acknowledged,
        round->acknowledged - acknowledged, (long long)outcome->started,
        (unsigned long long)outcome->reads, (unsigned long long)outcome->read_bytes,
        (unsigned long long)outcome->writes, (unsigned long long)outcome->written_bytes,
        outcome->unflagged, (const char *)round->missed,
        (Py_ssize_t)(round->missed_count * sizeof(Missed)), (unsigned long long)outcome->trims,
        outcome->written_back);
}
