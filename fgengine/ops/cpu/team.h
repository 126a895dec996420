/* A team of threads. All go through the same phases in the same order; each takes work of a phase while some
 * is left.
 *
 * A phase ends when all its work is done, not when all threads have reached its end. So a thread that loses its
 * core delays the others only by the work that it has just taken. The others do the rest without it, and when
 * it runs again, it finds no work left in the phase. */

#include <time.h>

struct phase {
    int64_t next, done; /* pieces of work that were taken, and that are done */
} __attribute__((aligned(128))); /* two cache lines, because processors fetch lines in pairs */

/* After this many spins, a thread has probably lost its core. Sleeping gives it ours. */
#define SPINS 4000
#define NAP_NANOSECONDS 20000

/* Takes up to `many` pieces of work, [*from, *to). Returns 0 if none are left. */
static inline int claim(struct phase *phase, int64_t total, int64_t many, int64_t *from, int64_t *to) {
    if (__atomic_load_n(&phase->next, __ATOMIC_RELAXED) >= total) return 0;
    *from = __atomic_fetch_add(&phase->next, many, __ATOMIC_RELAXED);
    *to = *from + many < total ? *from + many : total;
    return *from < total;
}

/* Counts `pieces` pieces of work as done. */
static inline void finished(struct phase *phase, int64_t pieces) {
    __atomic_fetch_add(&phase->done, pieces, __ATOMIC_RELEASE);
}

/* Waits until all `total` pieces of work are done. */
static inline void await_all(const struct phase *phase, int64_t total) {
    for (int64_t turns = 0; __atomic_load_n(&phase->done, __ATOMIC_ACQUIRE) < total; turns++) {
        if (turns < SPINS) {
#if defined(__x86_64__) || defined(__i386__)
            __builtin_ia32_pause();
#endif
        } else {
            nanosleep(&(struct timespec){0, NAP_NANOSECONDS}, NULL);
        }
    }
}

/* Runs the statement that follows for each index of the phase that this thread takes. */
#define SHARED(phase, total, many, index)                                                                     \
    for (int64_t from_, to_; claim(phase, total, many, &from_, &to_); finished(phase, to_ - from_))           \
        for (int64_t index = from_; index < to_; index++)
