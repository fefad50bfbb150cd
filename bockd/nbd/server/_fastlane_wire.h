/* Requests and replies as bytes. One source file, _fastlane.c, takes this in.
 *
 * Formats: proto.md, "Request message", "Simple reply message", "Structured reply chunk message",
 * "Extended request message", "Extended reply chunk message".
 */

enum style { SIMPLE, STRUCTURED, EXTENDED };

enum {
    CMD_READ = 0,
    CMD_WRITE = 1,
    CMD_DISC = 2,
    CMD_FLUSH = 3,
    CMD_TRIM = 4,
    CMD_CACHE = 5,
    CMD_WRITE_ZEROES = 6,
    CMD_BLOCK_STATUS = 7
};
enum { FLAG_PAYLOAD_LEN = 1 << 5 };
#define COMPACT_REQUEST_MAGIC 0x25609513u
#define EXTENDED_REQUEST_MAGIC 0x21E41C71u
#define SIMPLE_REPLY_MAGIC 0x67446698u
#define STRUCTURED_REPLY_MAGIC 0x668E33EFu
#define EXTENDED_REPLY_MAGIC 0x6E8A278Cu
enum { COMPACT_REQUEST_BYTES = 28, EXTENDED_REQUEST_BYTES = 32 };
enum { REPLY_FLAG_DONE = 1, REPLY_NONE = 0, REPLY_OFFSET_DATA = 1 };
#define MAX_REPLY_BYTES 32 /* of one that carries no data */

typedef struct {
    uint16_t flags, command;
    uint64_t cookie, offset, length;
    Py_ssize_t body;
    int unflagged; /* a write that did not say it carries a payload; see transmission.py */
} Request;

/* -- bytes in network order -------------------------------------------------------------------- */

static uint16_t get16(const unsigned char *p) { return (uint16_t)(p[0] << 8 | p[1]); }

static uint32_t get32(const unsigned char *p)
{
    return (uint32_t)get16(p) << 16 | get16(p + 2);
}

static uint64_t get64(const unsigned char *p) { return (uint64_t)get32(p) << 32 | get32(p + 4); }

static unsigned char *put16(unsigned char *p, uint16_t value)
{
    p[0] = (unsigned char)(value >> 8);
    p[1] = (unsigned char)value;
    return p + 2;
}

static unsigned char *put32(unsigned char *p, uint32_t value)
{
    return put16(put16(p, (uint16_t)(value >> 16)), (uint16_t)value);
}

static unsigned char *put64(unsigned char *p, uint64_t value)
{
    return put32(put32(p, (uint32_t)(value >> 32)), (uint32_t)value);
}

/* -- replies ----------------------------------------------------------------------------------- */

static Py_ssize_t data_header_bytes(enum style style)
{
    return style == SIMPLE ? 16 : style == STRUCTURED ? 28 : 40;
}

static void put_data_header(unsigned char *p, enum style style, const Request *request)
{
    if (style == SIMPLE) {
        put64(put32(put32(p, SIMPLE_REPLY_MAGIC), 0), request->cookie);
        return;
    }
    p = put32(p, style == STRUCTURED ? STRUCTURED_REPLY_MAGIC : EXTENDED_REPLY_MAGIC);
    p = put64(put16(put16(p, REPLY_FLAG_DONE), REPLY_OFFSET_DATA), request->cookie);
    if (style == STRUCTURED)
        p = put32(p, (uint32_t)(request->length + 8));
    else
        p = put64(put64(p, request->offset), request->length + 8);
    put64(p, request->offset);
}

/* Acknowledge a write; where the next one goes. */
static unsigned char *put_done(unsigned char *p, enum style style, const Request *request)
{
    if (style != EXTENDED)
        return put64(put32(put32(p, SIMPLE_REPLY_MAGIC), 0), request->cookie);
    p = put16(put16(put32(p, EXTENDED_REPLY_MAGIC), REPLY_FLAG_DONE), REPLY_NONE);
    return put64(put64(put64(p, request->cookie), request->offset), 0);
}

/* -- requests ---------------------------------------------------------------------------------- */

enum { INCOMPLETE = 0, FOR_THE_PARSER = -1 };

/* Take the request at `at`; where the next one begins, or INCOMPLETE, or FOR_THE_PARSER. */
static Py_ssize_t take(
    const unsigned char *received, Py_ssize_t at, Py_ssize_t end, int extended,
    uint64_t max_payload, Request *request)
{
    Py_ssize_t header = extended ? EXTENDED_REQUEST_BYTES : COMPACT_REQUEST_BYTES;
    if (end - at < header)
        return INCOMPLETE;
    const unsigned char *p = received + at;
    if (get32(p) != (extended ? EXTENDED_REQUEST_MAGIC : COMPACT_REQUEST_MAGIC))
        return FOR_THE_PARSER;
    request->flags = get16(p + 4);
    request->command = get16(p + 6);
    request->cookie = get64(p + 8);
    request->offset = get64(p + 16);
    request->length = extended ? get64(p + 24) : get32(p + 24);
    request->body = at + header;
    request->unflagged = 0;
    if (request->command == CMD_DISC)
        return FOR_THE_PARSER;
    if (request->command == CMD_WRITE) {
        request->unflagged = extended && !(request->flags & FLAG_PAYLOAD_LEN);
        if (extended)
            request->flags |= FLAG_PAYLOAD_LEN;
    } else if (!extended || !(request->flags & FLAG_PAYLOAD_LEN)) {
        return request->body;
    }
    if (request->length > max_payload)
        return FOR_THE_PARSER;
    if (request->length > (uint64_t)(end - request->body))
        return INCOMPLETE;
    return request->body + (Py_ssize_t)request->length;
}
