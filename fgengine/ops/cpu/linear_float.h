/* A tile of a linear layer in float arithmetic, for every processor and both element types. */

#define GROUP 1
#if LANES == 16
#define TILE_ROWS 12 /* 24 vectors of sums, two of weights and one of inputs fit in 32 registers */
#else
#define TILE_ROWS 6 /* half of that, in 16 registers */
#endif

/* Stores the first `used` elements of x. */
static inline void store_some(element *p, vec x, int used) {
    if (used == LANES) {
        store(p, x);
        return;
    }
    for (int i = 0; i < used; i++) store1(p + i, x[i]);
}

/* Computes x [rows, groups] times one panel w [groups][PANEL]; prefetches `ahead`.
 * start: the bias of both halves of the panel; used: the outputs of each half that are not padding. */
static inline __attribute__((always_inline)) void linear_tile(
    element *out, const element *x, const element *w, const element *ahead, const vec *start, const int *used,
    int64_t groups, int64_t x_stride, int64_t out_stride, int relu, const int rows) {
    vec sums[TILE_ROWS][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) sums[r][0] = start[0], sums[r][1] = start[1];
    for (int64_t k = 0; k < groups; k++) {
        vec low = load(w + k * PANEL), high = load(w + k * PANEL + LANES);
        __builtin_prefetch(ahead + k * PANEL, 0, 2);
        if (sizeof(element) * PANEL > 64) __builtin_prefetch(ahead + k * PANEL + LANES, 0, 2);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            vec input = broadcast(load1(x + r * x_stride + k));
            sums[r][0] += low * input;
            sums[r][1] += high * input;
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++) {
            vec sum = sums[r][half];
            if (relu) sum = pick(sum < 0.0f, (vec){0}, sum); /* NaN remains NaN */
            store_some(out + r * out_stride + half * LANES, sum, used[half]);
        }
}
