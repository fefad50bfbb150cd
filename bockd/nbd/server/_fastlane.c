/* The inner loop of the hot path, compiled; see fastlane.py, which says what it is for.
 *
 * It does nothing that batch.py and the local driver do not do in Python, it only does less: it takes
 * plain reads and writes whose blocks lie in one file, and writes of whole blocks that are new to
 * the head (_fastlane_redirect.h), has trims made (_fastlane_trims.h), and hands every other request
 * back. What fails here is handed back, too, so that Python does it again and meets the error itself.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "_fastlane_wire.h"

#include "_fastlane_durations.h"

#include "_fastlane_writeback.h"

#include "_fastlane_map.h"

#include "_fastlane_missed.h"

/* Of one round. No more requests of it are served, so that acknowledgements have room. */
#define MAX_REQUESTS 512

#include "_fastlane_putoff.h"

#include "_fastlane_redirect.h"

#include "_fastlane_trims.h"

#include "_fastlane_serving.h"

#include "_fastlane_socket.h"

#include "_fastlane_trace.h"

#include "_fastlane_rounds.h"

#include "_fastlane_payload.h"

#include "_fastlane_lane.h"

#include "_fastlane_together.h"

PyDoc_STRVAR(serve_doc,
"serve(received, start, end, reply, style, view, readable, writable, max_read, max_payload,\n"
"max_missed, sock, poll_ns, turn_ns, write_back, durations, trace)\n\n"
"Serve the plain requests in received[start:end]; see fastlane.py.");

static PyObject *serve(PyObject *Py_UNUSED(module), PyObject *args)
{
    Call call = {0};
    Outcome outcome = {0};
    Py_ssize_t start, end;
    int style;
    unsigned long long readable, writable;
    View view = {0};
    if (!PyArg_ParseTuple(
            args, "w*nnw*iO&KKKKiiLLpw*O&:serve", &call.received, &start, &end, &call.reply, &style,
            parse_view, &view, &readable, &writable, &call.max_read, &call.max_payload,
            &call.max_missed, &call.sock, &call.poll_ns, &call.turn_ns, &call.write_back,
            &call.durations, parse_trace, &call.trace))
        return NULL;
    view.readable = readable < view.readable ? readable : view.readable;
    view.writable = writable < view.writable ? writable : view.writable;
    Redirects redirects;
    begin_redirects(&redirects, &view);
    call.style = (enum style)style;
    call.rest = PyList_New(0);
    call.held = PyList_New(0);
    PyObject *result = NULL;
    if (call.rest == NULL || call.held == NULL)
        goto done;
    if (refused(&call, start, end, style))
        goto done;
    outcome.position = start;
    outcome.end = end;
    Round round;
    if (serve_rounds(&view, &call, &redirects, &round, &outcome) < 0)
        goto done;
    result = build_outcome(&call, &outcome, &round);
done:
    end_redirects(&redirects);
    Py_XDECREF(call.held);
    Py_XDECREF(call.rest);
    PyBuffer_Release(&call.received);
    PyBuffer_Release(&call.reply);
    PyBuffer_Release(&call.durations);
    PyBuffer_Release(&call.trace.buffer);
    return result;
}

static PyMethodDef methods[] = {
    {"serve", serve, METH_VARARGS, serve_doc},
    {"serve_together", serve_together, METH_VARARGS, serve_together_doc},
    {"receive", receive, METH_VARARGS, receive_doc},
    {"take", take_method, METH_VARARGS, take_doc},
    {"read_missed", read_missed, METH_VARARGS, read_missed_doc},
    {"begin_missed", begin_missed, METH_VARARGS, begin_missed_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_fastlane",
    .m_doc = "The inner loop of the hot path, compiled; see fastlane.py.",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC PyInit__fastlane(void)
{
    return PyModuleDef_Init(&definition);
}
