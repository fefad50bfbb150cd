/* What was served, noted in a ring of records while a volume is recorded. One source file,
 * _fastlane.c, takes this in.
 *
 * tracering.py has the same layout, and bockd/trace/records.py says what is in a record. The owner
 * thread reads the ring between calls, and the lanes of one volume are served by one thread: so
 * nothing here is atomic. Records of a round are staged behind those that count, and count when the
 * round is done with. */

#include <endian.h>

#define TRACE_MARK 0x7254

typedef struct {
    uint64_t capacity; /* a power of two */
    uint64_t written, taken; /* records since the beginning */
    uint64_t dropped; /* for want of room, since the owner looked last */
    int64_t began;
} TraceHead;

typedef struct {
    uint64_t time, offset, length, latency;
    uint32_t order;
    uint8_t kind, flags;
    uint16_t mark;
} TraceRecord;

typedef struct {
    Py_buffer buffer;
    TraceHead *head; /* NULL: nobody records */
    uint64_t staged, dropped;
} Trace;

/* Take an argument, None or a ring; for PyArg_ParseTuple, as the last one. */
static int parse_trace(PyObject *object, void *into)
{
    Trace *trace = into;
    if (object == Py_None)
        return 1;
    if (PyObject_GetBuffer(object, &trace->buffer, PyBUF_WRITABLE) < 0)
        return 0;
    TraceHead *head = trace->buffer.buf;
    size_t length = (size_t)trace->buffer.len;
    if (length < sizeof *head || !head->capacity || head->capacity & (head->capacity - 1) ||
        head->capacity != (length - sizeof *head) / sizeof(TraceRecord)) {
        PyBuffer_Release(&trace->buffer);
        PyErr_SetString(PyExc_ValueError, "no ring of records");
        return 0;
    }
    trace->head = head;
    return 1;
}

static TraceRecord *record_at(TraceHead *head, uint64_t number)
{
    return (TraceRecord *)(void *)(head + 1) + (number & (head->capacity - 1));
}

/* Note a request that was served. */
static inline void trace_request(Trace *trace, const Request *request)
{
    TraceHead *head = trace->head;
    if (head == NULL)
        return;
    uint64_t number = head->written + trace->staged;
    if (number - head->taken >= head->capacity) {
        trace->dropped++;
        return;
    }
    trace->staged++;
    TraceRecord *record = record_at(head, number);
    record->offset = htole64(request->offset);
    record->length = htole64(request->length);
    record->order = htole32((uint32_t)request->body);
    record->kind = (uint8_t)request->command;
    record->flags = (uint8_t)(request->flags & ~FLAG_PAYLOAD_LEN);
    record->mark = htole16(TRACE_MARK);
}

/* Forget what was staged: the round is served anew. */
static void forget_traced(Trace *trace)
{
    trace->staged = trace->dropped = 0;
}

/* Have what was staged count: the replies of its round are ready. */
static void finish_traced(Trace *trace, int64_t started)
{
    TraceHead *head = trace->head;
    if (head == NULL)
        return;
    uint64_t time = htole64((uint64_t)(started - head->began));
    uint64_t latency = htole64((uint64_t)(now_ns() - started));
    for (uint64_t number = 0; number < trace->staged; number++) {
        TraceRecord *record = record_at(head, head->written + number);
        record->time = time;
        record->latency = latency;
    }
    head->written += trace->staged;
    head->dropped += trace->dropped;
    forget_traced(trace);
}
