/* One connection's part of a turn that it takes together with others (_fastlane_together.h). One source
 * file, _fastlane.c, takes this in.
 *
 * A lane serves what needs no word with Python: reads of less than MIN_MAPPED_BYTES whose data is in
 * the page cache, and writes in place. The first request that is anything else ends it, unserved:
 * `serve` is asked for that one, in its place.
 *
 * A round is planned with the interpreter's lock, and carried out without it: what carries it out uses
 * the plan, the connection's buffers and its socket, and no object of Python.
 */

/* A client that had many requests under way and has sent but a few is left alone for so long: it sends
 * some more meanwhile, and larger rounds cost both ends less. */
#define GATHER_NS 15000

/* A request as it is to be carried out. */
typedef struct {
    Request request;
    Py_ssize_t start; /* of the request, in the receive buffer */
    uint64_t at;      /* the byte in the file */
    int fd;           /* or HOLE */
    int flags;
} Planned;

typedef struct Lane {
    Call call;
    View view;
    Outcome outcome;
    int number; /* among those the turn was asked for */
    int part;   /* which part of the turn it belongs to */
    int first;  /* of those of its volume */
    int room;   /* requests of a round, at most */
    struct Lane *next; /* in the ring of those of its volume */
    int looks;  /* how often it was its turn to be served */
    int fresh;  /* there is something in the receive buffer that was not looked at */
    int empty;  /* nothing had come when it was looked for last */
    enum { RUNNING, FOR_THE_OWNER } state;
    int64_t heard; /* when something came last */
    int planned;
    int most; /* requests of one round so far */
    Planned plan[MAX_REQUESTS];
    Round round;
} Lane;

/* Plan one request; false when it is not for a lane, or an exception is set. */
static int plan_request(Lane *lane, const Request *request, Planned *planned)
{
    View *view = &lane->view;
    uint16_t write_flags = lane->call.style == EXTENDED ? FLAG_PAYLOAD_LEN : 0;
    Place place;
    if (!request->length)
        return 0;
    if (request->command == CMD_READ) {
        if (request->flags || request->length >= MIN_MAPPED_BYTES ||
            request->length > lane->call.max_read || request->offset > view->readable ||
            request->length > view->readable - request->offset ||
            touches_mark(&view->marks, request) || !find_place(view, request, &place) ||
            (place.file->fd != HOLE && !place.file->flags))
            return 0;
    } else {
        const unsigned char *received = lane->call.received.buf;
        if (request->command != CMD_WRITE || request->flags != write_flags ||
            view->head_slot < 0 || request->offset > view->writable ||
            request->length > view->writable - request->offset ||
            !find_place(view, request, &place) || place.file->slot != view->head_slot ||
            place.file->fd < 0 ||
            (view->minds_zeros &&
             covers_zeros(received + request->body, request->offset, request->length)) ||
            note_unsynced(view) < 0)
            return 0;
    }
    planned->request = *request;
    planned->at = place.at;
    planned->fd = place.file->fd;
    planned->flags = place.file->flags;
    return 1;
}

/* Plan what has been received, with the interpreter's lock. */
static void plan_round(Lane *lane)
{
    const Call *call = &lane->call;
    Outcome *outcome = &lane->outcome;
    Round *round = &lane->round;
    Py_ssize_t header = data_header_bytes(call->style), position = outcome->position;
    Py_ssize_t filled = 0;
    lane->planned = 0;
    memset(round, 0, offsetof(Round, gaps));
    for (;;) {
        Planned *planned = &lane->plan[lane->planned];
        Request request;
        Py_ssize_t next = take(call->received.buf, position, outcome->end, call->style == EXTENDED,
            call->max_payload, &request);
        if (next == INCOMPLETE) {
            round->stopped = AT_THE_END;
            break;
        }
        if (next == FOR_THE_PARSER ||
            (request.command == CMD_READ && request.length >= MIN_MAPPED_BYTES)) {
            round->stopped = AT_THE_PARSERS;
            break;
        }
        Py_ssize_t reply = request.command == CMD_READ ? header + (Py_ssize_t)request.length : 0;
        if (lane->planned == lane->room || filled + reply > call->reply.len) {
            round->stopped = FOR_WANT_OF_ROOM;
            break;
        }
        if (!plan_request(lane, &request, planned)) {
            PyErr_Clear(); /* `serve` meets it again */
            round->stopped = AT_THE_PARSERS;
            break;
        }
        planned->start = position;
        filled += reply;
        position = next;
        lane->planned++;
    }
    outcome->position = position;
}

/* Carry out what was planned, up to the first request that cannot be. */
static void carry_out(Lane *lane)
{
    Call *call = &lane->call;
    Outcome *outcome = &lane->outcome;
    Round *round = &lane->round;
    enum style style = call->style;
    Py_ssize_t header = data_header_bytes(style);
    unsigned char *reply = call->reply.buf, *acknowledge = round->acknowledgements;
    const unsigned char *received = call->received.buf;
    for (int number = 0; number < lane->planned; number++) {
        const Planned *one = &lane->plan[number];
        const Request *request = &one->request;
        int done = 1;
        if (request->command == CMD_WRITE) {
            done = pwrite(one->fd, received + request->body, request->length, (off_t)one->at) ==
                   (ssize_t)request->length;
        } else {
            unsigned char *into = reply + round->filled + header;
            struct iovec part = {into, request->length};
            if (one->fd == HOLE)
                memset(into, 0, request->length);
            else
                done = preadv2(one->fd, &part, 1, (off_t)one->at, one->flags) ==
                       (ssize_t)request->length;
        }
        if (!done) {
            outcome->position = one->start;
            round->stopped = AT_THE_PARSERS;
            break;
        }
        outcome->unflagged |= request->unflagged;
        if (request->command == CMD_WRITE) {
            acknowledge = put_done(acknowledge, style, request);
            outcome->writes++;
            outcome->written_bytes += request->length;
        } else {
            put_data_header(reply + round->filled, style, request);
            round->filled += header + (Py_ssize_t)request->length;
            outcome->reads++;
            outcome->read_bytes += request->length;
        }
        round->served++;
        trace_request(&call->trace, request);
    }
    round->acknowledged = acknowledge - round->acknowledgements;
}

/* Send a round's replies; false when the socket does not take all of them now. */
static int send_all(Lane *lane)
{
    Round *round = &lane->round;
    struct iovec parts[] = {
        {lane->call.reply.buf, (size_t)round->filled},
        {round->acknowledgements, (size_t)round->acknowledged},
    };
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    if (!round->filled && !round->acknowledged)
        return 1;
    ssize_t sent = sendmsg(lane->call.sock, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    round->sent = sent < 0 ? 0 : sent; /* who sends the rest meets the error */
    return round->sent == round->filled + round->acknowledged;
}

/* Receive behind what is left of the last request. */
static void receive_now(Lane *lane)
{
    Outcome *outcome = &lane->outcome;
    unsigned char *received = lane->call.received.buf;
    Py_ssize_t left = outcome->end - outcome->position;
    if (left == lane->call.received.len) {
        lane->state = FOR_THE_OWNER;
        return;
    }
    if (left && outcome->position)
        memmove(received, received + outcome->position, (size_t)left);
    outcome->position = 0;
    outcome->end = left;
    ssize_t count = recv(
        lane->call.sock, received + left, (size_t)(lane->call.received.len - left), MSG_DONTWAIT);
    lane->empty = count < 0;
    if (count > 0) {
        outcome->end += count;
        outcome->received_bytes += (uint64_t)count;
        lane->fresh = 1;
    } else if (count == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) {
        lane->state = FOR_THE_OWNER; /* whoever receives next meets what it was */
    }
}

/* Carry out what was planned, and answer it. */
static void finish_round(Lane *lane, int64_t began)
{
    Round *round = &lane->round;
    carry_out(lane);
    finish_traced(&lane->call.trace, began);
    if (lane->planned > lane->most)
        lane->most = lane->planned;
    int sent = send_all(lane);
    lane->heard = now_ns();
    lane->outcome.started = began;
    lane->fresh = round->stopped == FOR_WANT_OF_ROOM;
    if (round->served)
        enter_round(&lane->call, &lane->outcome, lane->heard);
    if (sent)
        round->served = 0;
    if (!sent || round->stopped == AT_THE_PARSERS)
        lane->state = FOR_THE_OWNER;
}

/* Receive what has come, unless there is something already, and serve it: one round. Called without
 * the interpreter's lock, which is taken with `state` to plan. */
static void serve_lane(Lane *lane, PyThreadState **state)
{
    if (!lane->fresh && (4 * lane->planned >= lane->most || now_ns() - lane->heard > GATHER_NS))
        receive_now(lane);
    if (!lane->fresh)
        return;
    int64_t began = now_ns();
    PyEval_RestoreThread(*state);
    plan_round(lane);
    *state = PyEval_SaveThread();
    finish_round(lane, began);
    if (!lane->planned && lane->state == RUNNING) /* less than a request was there */
        receive_now(lane);
}
