/* Threads that go through the same phases in the same order, each taking what work of a phase is left.
 *
 * A phase ends when all its work is done, not when all threads have come to its end. So a thread that loses
 * its processor holds the others up only for what it was just computing: they do the rest without it, and it
 * finds nothing left when it is back. */

#include <time.h>

struct phase {
    int64_t next, done;
} __attribute__((aligned(128))); /* two lines: the processor fetches them in pairs */

/* A wait this long is for a thread that has lost its processor, and sleeping gives it ours. */
#define SPINS 4000
#define NAP_NANOSECONDS 20000

/* The next at most `many` pieces of work, [*from, *to); whether any are left. */
static inline int claim(struct phase *phase, int64_t total, int64_t many, int64_t *from, int64_t *to) {
    if (__atomic_load_n(&phase->next, __ATOMIC_RELAXED) >= total) return 0;
    *from = __atomic_fetch_add(&phase->next, many, __ATOMIC_RELAXED);
    *to = *from + many < total ? *from + many : total;
    return *from < total;
}

static inline void finished(struct phase *phase, int64_t pieces) {
    __atomic_fetch_add(&phase->done, pieces, __ATOMIC_RELEASE);
}

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

/* Runs the statement behind it for each index of a phase that this thread gets. */
#define SHARED(phase, total, many, index)                                                                     \
    for (int64_t from_, to_; claim(phase, total, many, &from_, &to_); finished(phase, to_ - from_))           \
        for (int64_t index = from_; index < to_; index++)
