/* Requests to an open image, and their results, by librbd's C interface; see requests.py.
 *
 * librbd is looked up when this is imported: nothing of it is needed to compile this. The interpreter
 * is given up for what begins a request, which may wait for threads of librbd's, and these may wait
 * for the interpreter (`rbd_diff_iterate2` calls back). All else waits for nothing.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include <dlfcn.h>
#include <stdint.h>
#include <sys/types.h>

/* Results that are asked for in one call of librbd's. */
#define AT_ONCE 128

/* librbd.h: an image is the first argument, a completion the last. */
typedef int Transfer(void *, uint64_t, size_t, char *, void *);

static int (*create_completion)(void *, void (*)(void *, void *), void **);
static Transfer *aio_read, *aio_write;
static int (*poll_io_events)(void *, void **, int);
static void *(*get_arg)(void *);
static ssize_t (*get_return_value)(void *);
static void (*release)(void *);

static const struct {
    const char *name;
    void *place;
} functions[] = {
    {"rbd_aio_create_completion", &create_completion},
    {"rbd_aio_read", &aio_read},
    {"rbd_aio_write", &aio_write},
    {"rbd_poll_io_events", &poll_io_events},
    {"rbd_aio_get_arg", &get_arg},
    {"rbd_aio_get_return_value", &get_return_value},
    {"rbd_aio_release", &release},
};

typedef struct {
    int64_t number, status;
} Result;

/* Begin a request: image, number, offset, buffer. librbd has the address of the buffer afterwards; who
 * calls this keeps the buffer until the result has come. */
static PyObject *begin(PyObject *const *args, Py_ssize_t count, Transfer *transfer, int flags)
{
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "image, number, offset and buffer are needed");
        return NULL;
    }
    void *image = PyLong_AsVoidPtr(args[0]), *number = PyLong_AsVoidPtr(args[1]), *completion;
    uint64_t offset = PyLong_AsUnsignedLongLong(args[2]);
    Py_buffer data;
    if (PyErr_Occurred() || PyObject_GetBuffer(args[3], &data, flags) < 0)
        return NULL;
    int status = create_completion(number, NULL, &completion);
    if (status >= 0) {
        Py_BEGIN_ALLOW_THREADS
        status = transfer(image, offset, (size_t)data.len, data.buf, completion);
        Py_END_ALLOW_THREADS
        if (status < 0)
            release(completion);
    }
    PyBuffer_Release(&data);
    return PyLong_FromLong(status);
}

PyDoc_STRVAR(read_doc,
"read(image, number, offset, into) -> int\n\n"
"Begin to read. Return a negative error number if it has not begun.");

static PyObject *read_method(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    return begin(args, count, aio_read, PyBUF_WRITABLE);
}

PyDoc_STRVAR(write_doc,
"write(image, number, offset, data) -> int\n\n"
"Begin to write. Return a negative error number if it has not begun.");

static PyObject *write_method(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    return begin(args, count, aio_write, PyBUF_SIMPLE);
}

PyDoc_STRVAR(results_doc,
"results(image, into) -> int\n\n"
"Take the results that have come, as many as `into` has room for: pairs of 8-byte integers, the\n"
"number of a request and its status. Return how many they are.");

static PyObject *results(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "an image and a buffer are needed");
        return NULL;
    }
    void *image = PyLong_AsVoidPtr(args[0]), *ended[AT_ONCE];
    Py_buffer into;
    if (PyErr_Occurred() || PyObject_GetBuffer(args[1], &into, PyBUF_WRITABLE) < 0)
        return NULL;
    /* What librbd has given away it does not give again, so nothing may fail between. */
    Result *result = into.buf;
    size_t room = (size_t)into.len / sizeof *result;
    int found = poll_io_events(image, ended, room < AT_ONCE ? (int)room : AT_ONCE);
    for (int index = 0; index < found; index++) {
        result[index].number = (int64_t)(intptr_t)get_arg(ended[index]);
        result[index].status = get_return_value(ended[index]);
        release(ended[index]);
    }
    PyBuffer_Release(&into);
    return PyLong_FromLong(found < 0 ? 0 : found);
}

static PyMethodDef methods[] = {
    {"read", (PyCFunction)(void (*)(void))read_method, METH_FASTCALL, read_doc},
    {"write", (PyCFunction)(void (*)(void))write_method, METH_FASTCALL, write_doc},
    {"results", (PyCFunction)(void (*)(void))results, METH_FASTCALL, results_doc},
    {NULL, NULL, 0, NULL},
};

/* Find librbd's functions. It stays loaded: its threads may outlive everything here. */
static int find_functions(PyObject *Py_UNUSED(module))
{
    void *library = dlopen("librbd.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        PyErr_SetString(PyExc_ImportError, dlerror());
        return -1;
    }
    for (size_t index = 0; index < sizeof functions / sizeof *functions; index++) {
        void *found = dlsym(library, functions[index].name);
        if (found == NULL) {
            PyErr_Format(PyExc_ImportError, "librbd has no %s", functions[index].name);
            return -1;
        }
        *(void **)functions[index].place = found;
    }
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, find_functions},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_requests",
    .m_doc = "Requests to an open image, and their results; see requests.py.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__requests(void)
{
    return PyModuleDef_Init(&definition);
}
