/* Linear layer: x [rows, inputs] times a weight, plus a bias. Sums are in float.
 *
 * The weight has the layout [outputs / PANEL][inputs / GROUP][PANEL][GROUP] (see linear.py), so that one panel
 * (the weights of PANEL outputs) is read sequentially.
 *
 * Each output is a sum over its inputs in order, in one register. So it does not depend on the number of rows,
 * and the values of a request do not depend on its batch. */

#define PANEL (2 * LANES)
#define BLOCK_ROWS 96 /* rows multiplied with a panel while it is in the second-level cache */

#if defined(BFLOAT16) && defined(__AVX512BF16__)
#include "linear_bf16.h"
#else
#include "linear_float.h"
#endif

/* The work is divided into pieces. A piece is one panel times one block of rows. */
static inline int64_t linear_blocks(int64_t rows) { return (rows + BLOCK_ROWS - 1) / BLOCK_ROWS; }
static inline int64_t linear_panels(int64_t outputs) { return (outputs + PANEL - 1) / PANEL; }

/* Computes one piece. `near`: this thread will probably compute the panel `near` panels later next, so that
 * one is prefetched. */
static void linear(element *out, const element *x, const element *weight, const element *bias, int64_t rows,
                   int64_t outputs, int64_t groups, int64_t x_stride, int64_t out_stride, int relu,
                   int64_t piece, int64_t near) {
    const int64_t panels = linear_panels(outputs), blocks = linear_blocks(rows), panel = piece % panels;
    const int64_t from = rows * (piece / panels) / blocks, to = rows * (piece / panels + 1) / blocks;
    const int64_t tiles = (to - from + TILE_ROWS - 1) / TILE_ROWS;
    const element *w = weight + panel * groups * GROUP * PANEL;
    const element *next = panel + near < panels ? w + near * groups * GROUP * PANEL : w;
    vec start[2] = {{0}, {0}};
    int used[2]; /* columns of each half that are outputs, not padding */
    for (int half = 0; half < 2; half++) {
        int64_t first = panel * PANEL + half * LANES, left = outputs - first;
        used[half] = (int)(left >= LANES ? LANES : left > 0 ? left : 0);
        if (bias)
            for (int i = 0; i < used[half]; i++) start[half][i] = load1(bias + first + i);
    }
    for (int64_t tile = 0; tile < tiles; tile++) {
        int64_t row = from + (to - from) * tile / tiles, count = from + (to - from) * (tile + 1) / tiles - row;
        const element *ahead = tile + 1 < tiles ? w : next;
#define TILE(n)                                                                                               \
    case n:                                                                                                   \
        linear_tile(out + row * out_stride + panel * PANEL, x + row * x_stride, w, ahead, start, used,        \
                    groups, x_stride, out_stride, relu, n);                                                   \
        break;
        switch (count) {
            TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)
#if TILE_ROWS > 6
            TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12)
#endif
        }
#undef TILE
    }
}
