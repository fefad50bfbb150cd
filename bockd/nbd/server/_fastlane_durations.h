/* How long requests took: counts of an export by operation, which durations.py describes. One source
 * file, _fastlane.c, takes this in.
 */

/* Each has so many numbers: requests by duration, then the sum of their nanoseconds. */
#define DURATION_BUCKETS 208
#define DURATION_NUMBERS (DURATION_BUCKETS + 1)
/* Eight buckets to each doubling, from 2^10 ns on, and eight below that. */
#define DURATION_STEP_BITS 3
#define FIRST_DURATION_BITS 10

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
    int doublings = 63 - FIRST_DURATION_BITS - __builtin_clzll(time | 1 << FIRST_DURATION_BITS);
    uint64_t step = time >> (doublings + FIRST_DURATION_BITS - DURATION_STEP_BITS);
    uint64_t bucket = ((uint64_t)doublings << DURATION_STEP_BITS) + step;
    numbers[bucket < DURATION_BUCKETS ? bucket : DURATION_BUCKETS - 1] += requests;
    numbers[DURATION_BUCKETS] += time * requests;
}
