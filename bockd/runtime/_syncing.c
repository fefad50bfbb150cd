/* Making files last (fdatasync) in threads that need no interpreter; see syncing.py. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <Python.h>

#include <errno.h>
#include <unistd.h>

/* Of one sync: a layer has two, a journal segment one. */
#define MAX_FILES 4

typedef struct {
    int count;
    int files[MAX_FILES];
} Task;

static int run_task(const Task *task)
{
    for (int number = 0; number < task->count; number++) {
        int failed;
        do
            failed = fdatasync(task->files[number]);
        while (failed && errno == EINTR);
        if (failed)
            return errno;
    }
    return 0;
}

#define THREADS_TYPE "bockd.runtime._syncing.Running"
#include "_threads.h"

PyDoc_STRVAR(begin_doc,
"begin(descriptors) -> Running | None\n\n"
"Begin to fdatasync these files, one after the other. None, with nothing begun, when there is no\n"
"thread or no descriptor for it.");

static PyObject *begin(PyObject *Py_UNUSED(module), PyObject *descriptors)
{
    Py_ssize_t count = PySequence_Size(descriptors);
    if (count < 0)
        return NULL;
    if (count > MAX_FILES)
        Py_RETURN_NONE;
    Task task = {.count = (int)count};
    for (Py_ssize_t number = 0; number < count; number++) {
        PyObject *item = PySequence_GetItem(descriptors, number);
        if (item == NULL)
            return NULL;
        task.files[number] = (int)PyLong_AsLong(item);
        Py_DECREF(item);
        if (PyErr_Occurred())
            return NULL;
    }
    return begin_task(&task, NULL);
}

static PyMethodDef methods[] = {
    {"begin", begin, METH_O, begin_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_syncing",
    .m_doc = "Threads that make files last without the interpreter; see syncing.py.",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__syncing(void)
{
    return PyModuleDef_Init(&definition);
}
