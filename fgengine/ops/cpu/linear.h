/* x [rows, 2 * pairs] times a weight, plus a bias: bfloat16 in and out, sums in float, with AVX512-BF16.
 *
 * The weight stands as [outputs / 32][pairs][32][2] (see linear.py), so that one panel, the weights of 32
 * outputs, is read from its first byte to its last, and vdpbf16ps adds a pair of inputs to 16 sums at once.
 *
 * An output's sum always goes over its pairs in order, in one register: it does not depend on how many
 * rows come along, so a request's values do not depend on what it is batched with. */

#define PANEL 32
#define TILE_ROWS 12 /* 24 sums, two vectors of weights and one of inputs in 32 registers */
#define BLOCK_ROWS 96 /* rows multiplied with a panel while it is in the second-level cache */

typedef int32_t two_inputs __attribute__((may_alias, aligned(2)));

static inline __attribute__((always_inline)) void linear_tile(
    element *out, const element *x, const element *w, const element *ahead, const __m512 *start,
    const __mmask16 *used, int64_t pairs, int64_t x_stride, int64_t out_stride, const int rows) {
    __m512 sums[TILE_ROWS][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) sums[r][0] = start[0], sums[r][1] = start[1];
    for (int64_t k = 0; k < pairs; k++) {
        __m512bh low = (__m512bh)_mm512_loadu_si512(w + k * 2 * PANEL);
        __m512bh high = (__m512bh)_mm512_loadu_si512(w + k * 2 * PANEL + PANEL);
        __builtin_prefetch(ahead + k * 2 * PANEL, 0, 2);
        __builtin_prefetch(ahead + k * 2 * PANEL + PANEL, 0, 2);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            __m512bh pair = (__m512bh)_mm512_set1_epi32(*(const two_inputs *)(x + r * x_stride + 2 * k));
            sums[r][0] = _mm512_dpbf16_ps(sums[r][0], low, pair);
            sums[r][1] = _mm512_dpbf16_ps(sums[r][1], high, pair);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++)
            _mm256_mask_storeu_epi16(out + r * out_stride + half * LANES, used[half],
                                     (__m256i)_mm512_cvtneps_pbh(sums[r][half]));
}

/* out [rows, outputs] contiguous; x's rows are x_stride elements apart; bias [outputs] or null. */
void linear(element *out, const element *x, const element *weight, const element *bias, int64_t rows,
            int64_t outputs, int64_t pairs, int64_t x_stride) {
    const int64_t panels = (outputs + PANEL - 1) / PANEL, blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
#pragma omp parallel for if (outputs * pairs > WORTH_SHARING)
    for (int64_t piece = 0; piece < panels * blocks; piece++) {
        int64_t panel = piece % panels, from = rows * (piece / panels) / blocks;
        int64_t to = rows * (piece / panels + 1) / blocks, tiles = (to - from + TILE_ROWS - 1) / TILE_ROWS;
        const element *w = weight + panel * pairs * 2 * PANEL;
        const element *next = panel + 1 < panels ? w + pairs * 2 * PANEL : w;
        __m512 start[2];
        __mmask16 used[2];
        for (int half = 0; half < 2; half++) {
            int64_t first = panel * PANEL + half * LANES, left = outputs - first;
            used[half] = left >= LANES ? 0xffff : left > 0 ? (1 << left) - 1 : 0;
            __m512i bits = _mm512_setzero_si512();
            if (bias) bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(used[half], bias + first));
            start[half] = (__m512)_mm512_slli_epi32(bits, 16);
        }
        for (int64_t tile = 0; tile < tiles; tile++) {
            int64_t row = from + (to - from) * tile / tiles, count = from + (to - from) * (tile + 1) / tiles - row;
            const element *ahead = tile + 1 < tiles ? w : next;
#define TILE(n)                                                                                               \
    case n:                                                                                                   \
        linear_tile(out + row * outputs + panel * PANEL, x + row * x_stride, w, ahead, start, used, pairs,    \
                    x_stride, outputs, n);                                                                    \
        break;
            switch (count) {
                TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)
                TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12)
            }
#undef TILE
        }
    }
}
