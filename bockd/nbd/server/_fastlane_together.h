/* Turns of several connections at once, those of different volumes in several threads. One source
 * file, _fastlane.c, takes this in.
 *
 * The thread that calls owns all volumes, and does nothing else until all lanes have ended. So what
 * holds for `serve` holds here: no map changes but by what is served, no file is closed. Lanes of one
 * volume, which is known by its `leaves`, are served by one thread, one after another. What two
 * threads both touch of a turn is atomic, with the turn's lock, or not changed once helpers are asked.
 * A lane, and all that belongs to it, is touched by the thread alone that has taken its part, from
 * then on until it leaves: both with the turn's lock.
 */

#include <poll.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#define MAX_LANES 16
#define MAX_LANE_THREADS 8

/* One turn of several lanes. */
typedef struct Together {
    atomic_int references;
    atomic_int over; /* every thread ends with its round */
    int lanes;
    int loop; /* a descriptor: readable when the owner has something else to do */
    int64_t poll_ns, share_ns, until;
    pthread_mutex_t lock;
    pthread_cond_t left;
    int parts, next_part; /* of them, the first that no thread has taken; with `lock` */
    int inside;           /* helpers that have taken a part; with `lock` */
    Lane *lane[MAX_LANES];
} Together;

/* -- one part of a turn ------------------------------------------------------------------------- */

/* Of one round, where several volumes have the same thread: a client with more under way waits for the
 * others in between. */
#define MAX_SHARED_REQUESTS 32

/* What one thread serves: some volumes, in turn. */
typedef struct {
    Together *turn;
    int volumes;
    Lane *next[MAX_LANES]; /* of each volume, the lane that is looked at next */
    int64_t now, heard;    /* when something came last */
    PyThreadState *state;
} Part;

static void find_volumes(Part *part, int number)
{
    Together *turn = part->turn;
    for (int lane = 0; lane < turn->lanes; lane++)
        if (turn->lane[lane]->part == number && turn->lane[lane]->first)
            part->next[part->volumes++] = turn->lane[lane];
    for (int lane = 0; lane < turn->lanes; lane++)
        if (turn->lane[lane]->part == number)
            turn->lane[lane]->room = part->volumes > 1 ? MAX_SHARED_REQUESTS : MAX_REQUESTS;
}

/* Serve the lanes of one volume that have something to serve: each at most once, and no more of them
 * when the volume's share of the time is used up, unless there is no other volume. Whether one of them
 * has ended. */
static int serve_volume(Part *part, Lane **next)
{
    Together *turn = part->turn;
    Lane *first = *next;
    int64_t until = part->now + turn->share_ns;
    int ended = 0;
    do {
        Lane *lane = *next;
        *next = lane->next;
        lane->looks++;
        serve_lane(lane, &part->state);
        if (lane->heard > part->heard)
            part->heard = lane->heard;
        ended |= lane->state != RUNNING;
        part->now = now_ns();
    } while (*next != first && (part->volumes == 1 || part->now < until) &&
             part->now <= turn->until && !atomic_load(&turn->over));
    return ended;
}

/* Serve each volume of a part; whether the turn is over. */
static int serve_once(Part *part)
{
    int over = 0;
    for (int number = 0; number < part->volumes && !atomic_load(&part->turn->over); number++) {
        over |= serve_volume(part, &part->next[number]);
        if (part->now > part->turn->until) /* not sooner, so that each turn serves somebody */
            return 1;
    }
    return over;
}

/* Serve the lanes of a part until the turn is over, one of them is for the owner, or nothing has
 * come for any of them for a while. Whoever `watches` ends the turn when there is something else for
 * the owner to do. Called with the interpreter's lock. */
static void serve_part(Together *turn, int number, int watches)
{
    Part part = {.turn = turn};
    find_volumes(&part, number);
    part.now = part.heard = now_ns();
    part.state = PyEval_SaveThread();
    while (!atomic_load(&turn->over)) {
        struct pollfd loop = {.fd = turn->loop, .events = POLLIN};
        int64_t before = part.heard;
        if (serve_once(&part) || (watches && poll(&loop, 1, 0) > 0))
            atomic_store(&turn->over, 1);
        else if (part.heard == before && now_ns() - part.heard > turn->poll_ns)
            break;
        else if (part.heard == before)
            sched_yield(); /* to a client on the same core, if there is one */
    }
    PyEval_RestoreThread(part.state);
}

/* The next part that nobody has taken, or -1. */
static int take_part(Together *turn, int helps)
{
    pthread_mutex_lock(&turn->lock);
    int part = turn->next_part < turn->parts ? turn->next_part++ : -1;
    turn->inside += helps && part >= 0;
    pthread_mutex_unlock(&turn->lock);
    return part;
}

static void let_turn_go(Together *turn)
{
    if (atomic_fetch_sub(&turn->references, 1) != 1)
        return;
    pthread_cond_destroy(&turn->left);
    pthread_mutex_destroy(&turn->lock);
    free(turn);
}

/* Helpers that were asked for and have not come yet. While all threads wait for a disk there would be
 * more of them with each turn. */
static atomic_int asked;
static unsigned asked_in; /* the process, by its `forks`: a child has none of its parent's */

/* What a helper does: one part, if there is one left. It may come after the turn has ended: then
 * there is none, and nothing of the turn is touched but what its references keep. */
static void help(Together *turn)
{
    atomic_fetch_sub(&asked, 1);
    int part = take_part(turn, 1);
    if (part >= 0) {
        PyGILState_STATE state = PyGILState_Ensure();
        serve_part(turn, part, 0);
        PyGILState_Release(state);
        atomic_store(&turn->over, 1);
        pthread_mutex_lock(&turn->lock);
        turn->inside--;
        pthread_cond_signal(&turn->left);
        pthread_mutex_unlock(&turn->lock);
    }
    let_turn_go(turn);
}

/* Whether a helper will come, sooner or later. */
static int ask_for_help(Together *turn)
{
    if (asked_in != pool.forks) {
        atomic_store(&asked, 0);
        asked_in = pool.forks;
    }
    Job *job = atomic_load(&asked) < MAX_LANE_THREADS ? new_job() : NULL;
    if (job == NULL)
        return 0;
    job->task = (Task){.together = turn};
    atomic_fetch_add(&turn->references, 1);
    atomic_fetch_add(&asked, 1);
    int accepted = submit(job);
    if (!accepted) {
        atomic_fetch_sub(&asked, 1);
        atomic_fetch_sub(&turn->references, 1);
    }
    release(job);
    return accepted;
}

/* Ask for a helper for each part but one. What would be theirs who do not come is divided anew. */
static void begin_turn(Together *turn)
{
    pthread_mutex_lock(&turn->lock); /* whoever comes waits for what is decided here */
    int parts = 1;
    while (parts < turn->parts && ask_for_help(turn))
        parts++;
    turn->parts = parts;
    for (int number = 0; number < turn->lanes; number++)
        turn->lane[number]->part %= parts;
    pthread_mutex_unlock(&turn->lock);
}

/* Have all lanes served, until the turn is over for all of them. The caller watches, whichever part
 * it is left with. */
static void serve_turn(Together *turn)
{
    begin_turn(turn);
    for (int part; (part = take_part(turn, 0)) >= 0;)
        serve_part(turn, part, 1);
    atomic_store(&turn->over, 1);
    Py_BEGIN_ALLOW_THREADS
    pthread_mutex_lock(&turn->lock);
    while (turn->inside)
        pthread_cond_wait(&turn->left, &turn->lock);
    pthread_mutex_unlock(&turn->lock);
    Py_END_ALLOW_THREADS
}

/* -- what Python sees --------------------------------------------------------------------------- */

/* Divide the lanes into parts, those of one volume, which are a ring, into the same: so many that there
 * is a core for each, and `threads` at most. */
static void divide(Together *turn, int threads)
{
    cpu_set_t cores;
    int volumes = 0, most = sched_getaffinity(0, sizeof cores, &cores) ? 1 : CPU_COUNT(&cores);
    if (most > threads)
        most = threads;
    if (most > MAX_LANE_THREADS)
        most = MAX_LANE_THREADS;
    for (int number = 0; number < turn->lanes; number++) {
        Lane *lane = turn->lane[number], *last = NULL; /* of the same volume */
        for (int before = 0; before < number; before++)
            if (turn->lane[before]->view.leaves == lane->view.leaves)
                last = turn->lane[before];
        lane->first = last == NULL;
        lane->part = last == NULL ? volumes++ % most : last->part;
        lane->next = last == NULL ? lane : last->next;
        if (last != NULL)
            last->next = lane;
    }
    turn->parts = volumes < most ? volumes : most;
}

static void free_lane(Lane *lane)
{
    PyBuffer_Release(&lane->call.received);
    PyBuffer_Release(&lane->call.reply);
    PyBuffer_Release(&lane->call.durations);
    PyBuffer_Release(&lane->call.trace.buffer);
    free(lane);
}

/* A lane as an argument describes it; NULL with an exception set. */
static Lane *make_lane(PyObject *arguments)
{
    Lane *lane = malloc(sizeof *lane);
    if (lane == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    memset(lane, 0, offsetof(Lane, plan));
    int style;
    unsigned long long readable, writable;
    Py_ssize_t start, end;
    Call *call = &lane->call;
    if (!PyArg_ParseTuple(arguments, "w*nnw*iO&KKKKiw*O&:lane", &call->received, &start, &end,
            &call->reply, &style, parse_view, &lane->view, &readable, &writable, &call->max_read,
            &call->max_payload, &call->sock, &call->durations, parse_trace, &call->trace)) {
        free(lane);
        return NULL;
    }
    if (refused(call, start, end, style)) {
        free_lane(lane);
        return NULL;
    }
    lane->view.readable = readable < lane->view.readable ? readable : lane->view.readable;
    lane->view.writable = writable < lane->view.writable ? writable : lane->view.writable;
    call->style = (enum style)style;
    lane->outcome.position = start;
    lane->outcome.end = end;
    lane->fresh = start < end;
    lane->outcome.started = lane->heard = now_ns();
    memset(&lane->round, 0, offsetof(Round, gaps));
    return lane;
}

/* What Python is told of a lane: Served in fastlane.py, whether there may be more at once, and how
 * often it was looked for some. NULL with an exception set. */
static PyObject *lane_result(Lane *lane, int64_t poll_ns)
{
    int dry = lane->state == RUNNING && lane->empty && now_ns() - lane->heard > poll_ns;
    PyObject *result = NULL, *rest = PyList_New(0);
    if (rest != NULL) {
        lane->outcome.polled = dry;
        lane->call.rest = rest;
        PyObject *served = build_outcome(&lane->call, &lane->outcome, &lane->round);
        if (served != NULL)
            result = Py_BuildValue("(NOi)", served,
                lane->state == RUNNING && !dry ? Py_True : Py_False, lane->looks);
    }
    Py_XDECREF(rest);
    return result;
}

/* A turn without lanes; NULL with an exception set. */
static Together *make_turn(int loop, int64_t poll_ns)
{
    Together *turn = calloc(1, sizeof *turn);
    if (turn == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    pthread_mutex_init(&turn->lock, NULL);
    pthread_cond_init(&turn->left, NULL);
    atomic_init(&turn->references, 1);
    turn->loop = loop;
    turn->poll_ns = poll_ns;
    return turn;
}

/* The exception that is set, which is not set any more. */
static PyObject *take_exception(void)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
}

/* Make the lanes of a turn. In `results` each has a place, and one that is refused the reason; -1
 * with an exception set. */
static int make_lanes(Together *turn, PyObject *list, PyObject *results)
{
    for (int number = 0; number < PyList_Size(list); number++) {
        Lane *lane = make_lane(PyList_GetItem(list, number));
        PyObject *result = lane == NULL ? take_exception() : Py_NewRef(Py_None);
        if (lane != NULL) {
            lane->number = number;
            turn->lane[turn->lanes++] = lane;
        }
        int failed = PyList_Append(results, result);
        Py_DECREF(result);
        if (failed)
            return -1;
    }
    return 0;
}

PyDoc_STRVAR(serve_together_doc,
"serve_together(lanes, loop, poll_ns, turn_ns, share_ns, threads)\n"
"-> list[tuple[tuple, bool, int] | BaseException]\n\n"
"Serve the plain requests of several connections, in so many threads at most; see together.py. The\n"
"exception is that one's alone.");

static PyObject *serve_together(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *list;
    int loop, threads;
    long long poll_ns, turn_ns, share_ns;
    if (!PyArg_ParseTuple(args, "O!iLLLi:serve_together", &PyList_Type, &list, &loop, &poll_ns,
            &turn_ns, &share_ns, &threads) ||
        running_type() == NULL)
        return NULL;
    if (PyList_Size(list) > MAX_LANES || threads < 1) {
        PyErr_SetString(PyExc_ValueError, "too many lanes, or no thread");
        return NULL;
    }
    Together *turn = make_turn(loop, poll_ns);
    if (turn == NULL)
        return NULL;
    PyObject *results = PyList_New(0);
    if (results == NULL || make_lanes(turn, list, results) < 0) {
        Py_CLEAR(results);
        goto done;
    }
    turn->share_ns = share_ns;
    turn->until = now_ns() + turn_ns;
    divide(turn, threads);
    serve_turn(turn);
    for (int number = 0; number < turn->lanes; number++) {
        PyObject *result = lane_result(turn->lane[number], poll_ns);
        PyList_SetItem(
            results, turn->lane[number]->number, result == NULL ? take_exception() : result);
    }
done:
    for (int number = 0; number < turn->lanes; number++)
        free_lane(turn->lane[number]);
    let_turn_go(turn);
    return results;
}
