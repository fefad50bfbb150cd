/* How long requests took: counts of an export by operation, which durations.py describes. One source
 * file, _fastlane.c, takes this in.
 */

/* Each has so many numbers: requests by duration, then the sum of their nanoseconds. */
#define DURATION_NUMBERS 24
#define DURATION_BUCKETS 22
#define DURATION_SUM DURATION_BUCKETS
/* The first bucket ends at 2^14 ns, each further one at twice as much. */
#define FIRST_DURATION_BITS 14

enum operation { READS, WRITES, FLUSHES, TRIMS, OPERATIONS };

#define DURATION_BYTES (OPERATIONS * DURATION_NUMBERS * (Py_ssize_t)sizeof(uint64_t))

/* Enter that so many requests took so long, each. */
static void enter_duration(
    const Py_buffer *durations, enum operation operation, int64_t nanoseconds, uint64_t requests)
{
    if (!requests)
        return;
    uint64_t time = nanoseconds > 0 ? (uint64_t)nanoseconds : 0;
    uint64_t *numbers = (uint64_t *)durations->buf + operation * DURATION_NUMBERS;
    int bucket = time >> FIRST_DURATION_BITS ? 64 - FIRST_DURATION_BITS - __builtin_clzll(time) : 0;
    numbers[bucket < DURATION_BUCKETS ? bucket : DURATION_BUCKETS - 1] += requests;
    numbers[DURATION_SUM] += time * requests;
}
