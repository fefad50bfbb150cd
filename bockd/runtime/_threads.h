/* Threads that make calls which may wait for a disk, without the interpreter. One source file of a
 * module takes this in, behind
 *
 *     typedef struct {...} Task;            what one call is about
 *     static int run_task(const Task *);    makes it, in a thread; 0, or what errno was
 *     #define THREADS_TYPE "..."            the name of what Python is given
 *
 * A thread of Python needs the interpreter's lock to take up its work and to report its end, and an
 * event loop hears of that end by way of a queue and a socket. These threads need no lock but their
 * own, and the end of a call is a descriptor that becomes readable.
 *
 * Threads are started when there is something for them to do, at most MAX_THREADS of them in each
 * module, and go when they have had nothing to do for a while: an idle process has none. A child
 * after fork() has none either, and starts its own.
 */

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/* Calls at once; a disk's own queue depth, as DEVICE_THREADS in steprunner.py. Others wait. */
#define MAX_THREADS 32
#define IDLE_SECONDS 10
#define STACK_BYTES (128 * 1024)

/* One call. It belongs to whoever holds a reference: the object that Python has, and the pool until
 * it has ended. */
typedef struct Job {
    struct Job *next; /* in the queue, or among the spare ones */
    atomic_int references;
    int ended; /* an eventfd: readable once it has ended */
    int error; /* 0, or what errno was; not before it has ended */
    int heard; /* its end was read from the eventfd */
    Task task;
} Job;

static struct {
    pthread_mutex_t lock;
    pthread_cond_t wanted;
    Job *first, **last; /* the queue: what no thread has taken up yet */
    int queued, threads, idle;
    Job *spare; /* to be used again: an eventfd costs two calls otherwise */
    int spares;
    unsigned forks; /* how many made this process from the one that began with 0 */
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .last = &pool.first};

/* -- jobs -------------------------------------------------------------------------------------- */

static Job *new_job(void)
{
    pthread_mutex_lock(&pool.lock);
    Job *job = pool.spare;
    if (job != NULL) {
        pool.spare = job->next;
        pool.spares--;
    }
    pthread_mutex_unlock(&pool.lock);
    if (job == NULL) {
        job = calloc(1, sizeof *job);
        if (job == NULL)
            return NULL;
        job->ended = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (job->ended < 0) {
            free(job);
            return NULL;
        }
    }
    job->next = NULL;
    job->error = job->heard = 0;
    atomic_store(&job->references, 1);
    return job;
}

static void release(Job *job)
{
    if (atomic_fetch_sub(&job->references, 1) != 1)
        return;
    if (!job->heard) {
        uint64_t unread;
        ssize_t count = read(job->ended, &unread, sizeof unread);
        (void)count;
    }
    pthread_mutex_lock(&pool.lock);
    int keep = pool.spares < MAX_THREADS;
    if (keep) {
        job->next = pool.spare;
        pool.spare = job;
        pool.spares++;
    }
    pthread_mutex_unlock(&pool.lock);
    if (!keep) {
        close(job->ended);
        free(job);
    }
}

/* -- threads ----------------------------------------------------------------------------------- */

static void *work(void *nothing)
{
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += IDLE_SECONDS;
        int waited = 0;
        pool.idle++;
        while (pool.first == NULL && waited != ETIMEDOUT)
            waited = pthread_cond_timedwait(&pool.wanted, &pool.lock, &until);
        pool.idle--;
        Job *job = pool.first;
        if (job == NULL)
            break;
        pool.first = job->next;
        if (pool.first == NULL)
            pool.last = &pool.first;
        pool.queued--;
        pthread_mutex_unlock(&pool.lock);
        job->error = run_task(&job->task);
        uint64_t one = 1;
        ssize_t count = write(job->ended, &one, sizeof one); /* a counter: it has room */
        (void)count;
        release(job);
        pthread_mutex_lock(&pool.lock);
    }
    pool.threads--;
    pthread_mutex_unlock(&pool.lock);
    return nothing;
}

/* Start a thread, which takes no signals: they are for Python. Whether there is one now. */
static int start_thread(void)
{
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes))
        return 0;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    int failed = pthread_create(&thread, &attributes, work, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return !failed;
}

/* Hand a job to the threads; false, with nothing done, when there is none and none can be started. */
static int submit(Job *job)
{
    pthread_mutex_lock(&pool.lock);
    if (pool.idle <= pool.queued && pool.threads < MAX_THREADS && start_thread())
        pool.threads++;
    int accepted = pool.threads > 0;
    if (accepted) {
        atomic_fetch_add(&job->references, 1);
        *pool.last = job;
        pool.last = &job->next;
        pool.queued++;
    }
    pthread_mutex_unlock(&pool.lock);
    if (accepted) /* not sooner: on the same core it would wake up to wait for the lock */
        pthread_cond_signal(&pool.wanted);
    return accepted;
}

/* -- fork -------------------------------------------------------------------------------------- */

static void before_fork(void) { pthread_mutex_lock(&pool.lock); }

static void in_parent(void) { pthread_mutex_unlock(&pool.lock); }

static int prepare_wanted(void)
{
    pthread_condattr_t attributes;
    if (pthread_condattr_init(&attributes))
        return -1;
    int failed = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) ||
                 pthread_cond_init(&pool.wanted, &attributes);
    pthread_condattr_destroy(&attributes);
    return failed ? -1 : 0;
}

/* The threads are the parent's, and so are the eventfds: both processes would hear of one's end. */
static void in_child(void)
{
    pthread_mutex_init(&pool.lock, NULL);
    prepare_wanted();
    while (pool.spare != NULL) {
        Job *job = pool.spare;
        pool.spare = job->next;
        close(job->ended);
        free(job);
    }
    pool.first = NULL;
    pool.last = &pool.first;
    pool.queued = pool.threads = pool.idle = pool.spares = 0;
    pool.forks++;
}

/* -- what Python sees -------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Job *job;
    PyObject *held;  /* what the call uses lives for as long; may be NULL */
    unsigned forks;  /* of the process whose threads are at it */
} Running;

PyDoc_STRVAR(fileno_doc, "fileno() -> int\n\nReturn the descriptor: readable once it has ended.");

static PyObject *running_fileno(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    return PyLong_FromLong(((Running *)self)->job->ended);
}

PyDoc_STRVAR(result_doc,
"result() -> int\n\n"
"Return 0 if it has succeeded, errno if it has failed, -1 if it has not ended. After another value\n"
"than -1 it is not to be asked again.");

static PyObject *running_result(PyObject *self, PyObject *Py_UNUSED(nothing))
{
    Running *running = (Running *)self;
    uint64_t count;
    if (read(running->job->ended, &count, sizeof count) != sizeof count)
        return PyLong_FromLong(-1);
    running->job->heard = 1;
    return PyLong_FromLong(running->job->error);
}

PyDoc_STRVAR(wait_doc,
"wait(one, other, nanoseconds) -> int\n\n"
"Wait until it has ended, one of two other descriptors is readable, a signal has come or the time is\n"
"over; then as result().");

static PyObject *running_wait(PyObject *self, PyObject *args)
{
    int one, other;
    long long nanoseconds;
    if (!PyArg_ParseTuple(args, "iiL:wait", &one, &other, &nanoseconds))
        return NULL;
    struct pollfd awaited[] = {
        {.fd = ((Running *)self)->job->ended, .events = POLLIN},
        {.fd = one, .events = POLLIN},
        {.fd = other, .events = POLLIN},
    };
    struct timespec limit = {nanoseconds / 1000000000, nanoseconds % 1000000000};
    Py_BEGIN_ALLOW_THREADS
    ppoll(awaited, 3, &limit, NULL); /* if it fails, it has not ended: others wait for it then */
    Py_END_ALLOW_THREADS
    return running_result(self, NULL);
}

/* Wait for the end of a call that nobody waits for any more, if it uses what is about to go. */
static void await_end(const Running *running)
{
    if (running->held == NULL || running->job->heard)
        return;
    struct pollfd ended = {.fd = running->job->ended, .events = POLLIN};
    Py_BEGIN_ALLOW_THREADS
    while (poll(&ended, 1, -1) < 0 && errno == EINTR)
        ;
    Py_END_ALLOW_THREADS
}

static void running_dealloc(PyObject *self)
{
    Running *running = (Running *)self;
    PyTypeObject *type = Py_TYPE(self);
    /* A child of fork() leaves the parent's jobs alone: they have one eventfd for both, and who reads
     * it there would take the end from the parent, which waits for it. */
    if (running->job != NULL && running->forks == pool.forks) {
        await_end(running);
        release(running->job);
    }
    Py_XDECREF(running->held);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_object(self);
    Py_DECREF(type);
}

static PyMethodDef running_methods[] = {
    {"fileno", running_fileno, METH_NOARGS, fileno_doc},
    {"result", running_result, METH_NOARGS, result_doc},
    {"wait", running_wait, METH_VARARGS, wait_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot running_slots[] = {
    {Py_tp_dealloc, running_dealloc},
    {Py_tp_methods, running_methods},
    {0, NULL},
};

static PyType_Spec running_spec = {
    .name = THREADS_TYPE,
    .basicsize = sizeof(Running),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = running_slots,
};

/* The type of what Python is given: it lives as long as the process. NULL with an exception set. */
static PyTypeObject *running_type(void)
{
    static PyTypeObject *type;
    if (type != NULL)
        return type;
    if (prepare_wanted() < 0 || pthread_atfork(before_fork, in_parent, in_child)) {
        PyErr_SetString(PyExc_ImportError, "threads cannot be prepared");
        return NULL;
    }
    return type = (PyTypeObject *)PyType_FromSpec(&running_spec);
}

/* Begin a call: a new reference to what tells of its end, which keeps `held` alive until then. None,
 * with nothing begun, when there is no thread or no descriptor for it; NULL with an exception set. */
static PyObject *begin_task(const Task *task, PyObject *held)
{
    PyTypeObject *type = running_type();
    if (type == NULL)
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Running *running = (Running *)allocate(type, 0);
    if (running == NULL)
        return NULL;
    running->forks = pool.forks;
    Job *job = running->job = new_job();
    if (job != NULL) {
        job->task = *task;
        if (submit(job)) {
            running->held = Py_XNewRef(held);
            return (PyObject *)running;
        }
    }
    Py_DECREF(running);
    Py_RETURN_NONE;
}
