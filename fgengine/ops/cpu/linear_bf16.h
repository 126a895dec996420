/* A tile of a linear layer with AVX512-BF16: vdpbf16ps multiplies pairs of inputs and adds both products. */

#define GROUP 2
#define TILE_ROWS 12 /* 24 vectors of sums, two of weights and one of inputs fit in 32 registers */

typedef int32_t two_inputs __attribute__((may_alias, aligned(2)));

/* Computes x [rows, groups * GROUP] times one panel w [groups][PANEL][GROUP]; prefetches `ahead`.
 * start: the bias of both halves of the panel; used: the outputs of each half that are not padding. */
static inline __attribute__((always_inline)) void linear_tile(
    element *out, const element *x, const element *w, const element *ahead, const vec *start, const int *used,
    int64_t groups, int64_t x_stride, int64_t out_stride, int relu, const int rows) {
    __m512 sums[TILE_ROWS][2];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) sums[r][0] = (__m512)start[0], sums[r][1] = (__m512)start[1];
    for (int64_t k = 0; k < groups; k++) {
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
    const __mmask16 masks[2] = {(1 << used[0]) - 1, (1 << used[1]) - 1};
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++) {
            if (relu) sums[r][half] = _mm512_max_ps(_mm512_setzero_ps(), sums[r][half]); /* NaN remains NaN */
            _mm256_mask_storeu_epi16(out + r * out_stride + half * LANES, masks[half],
                                     (__m256i)_mm512_cvtneps_pbh(sums[r][half]));
        }
}
