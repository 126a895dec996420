/* Attention with AVX512-BF16: vdpbf16ps multiplies pairs of bfloat16 and adds the products in float.
 *
 * A piece of at most LANES keys is transposed once, so that a vector holds one pair of dimensions of each key
 * and the scores need no sum across lanes. The values of the piece are interleaved in pairs of keys. All rows
 * then use both. Weights are rounded to bfloat16 before they are multiplied with the values, as in
 * FlashAttention. The result of a row does not depend on the other rows. */

typedef int32_t two_elements __attribute__((may_alias, aligned(2)));
/* Pieces are scattered in memory, so the hardware prefetcher does not find them. The piece this many pieces
 * later is prefetched into the second-level cache, line by line between other loads. Prefetches in one burst,
 * or into the first-level cache, slowed down the computation. */
#define AHEAD 2
#define PAIRS_OF_KEYS (LANES / 2)

typedef element query_element;

/* Copies one query [dim]; attend() reads it in bfloat16. */
static inline void take_query(query_element *to, const element *from, int64_t dim) {
    memcpy(to, from, dim * sizeof(element));
}

/* Broadcasts the pair of elements at p to all lanes. */
static inline __m512bh pair_of(const element *p) {
    return (__m512bh)_mm512_set1_epi32(*(const two_elements *)p);
}

/* Transposes 16 x 16 words of 32 bits in place. */
static inline void turn(__m512i *m) {
    __m512i t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(m[i], m[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(m[i], m[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        m[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        m[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        m[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        m[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    } /* m[4 i + j] now holds columns j, j + 4, j + 8, j + 12 of rows 4 i .. 4 i + 3 */
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        __m512i a = _mm512_shuffle_i32x4(m[j], m[4 + j], 0x88), b = _mm512_shuffle_i32x4(m[j], m[4 + j], 0xdd);
        __m512i c = _mm512_shuffle_i32x4(m[8 + j], m[12 + j], 0x88);
        __m512i d = _mm512_shuffle_i32x4(m[8 + j], m[12 + j], 0xdd);
        t[j] = _mm512_shuffle_i32x4(a, c, 0x88), t[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
        t[4 + j] = _mm512_shuffle_i32x4(b, d, 0x88), t[12 + j] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) m[i] = t[i];
}

/* Loads row j of a piece from element d on, up to the end of the head. Returns zeros for a row outside the
 * context, because its memory may hold anything. */
static inline __m512i row_of(const element *p, int j, int count, int d, int dim) {
    __mmask32 here = dim - d >= 2 * LANES ? 0xffffffff : 0xffff;
    return j < count ? _mm512_maskz_loadu_epi16(here, p + j * dim + d) : _mm512_setzero_si512();
}

struct piece {
    element keys[MAX_HEAD_DIM / 2][LANES][2] ALIGNED;   /* [pair of dimensions][key] */
    element values[PAIRS_OF_KEYS][MAX_HEAD_DIM][2] ALIGNED; /* [pair of keys][dimension] */
};

/* Fills `piece` with `count` keys and values, k and v [count, dim]; prefetches a piece at ahead_k and ahead_v. */
static inline __attribute__((always_inline)) void lay_out(struct piece *piece, const element *k,
                                                          const element *v, const element *ahead_k,
                                                          const element *ahead_v, int count, const int dim) {
    short order[4 * LANES];
    for (int i = 0; i < 4 * LANES; i++) order[i] = (short)(i / 2 + i % 2 * 2 * LANES);
    const __m512i low = _mm512_loadu_si512(order), high = _mm512_loadu_si512(order + 2 * LANES);
    for (int d = 0; d < dim; d += 2 * LANES) {
        __m512i m[LANES];
#pragma GCC unroll 16
        for (int j = 0; j < LANES; j++) {
            m[j] = row_of(k, j, count, d, dim);
            __builtin_prefetch(ahead_k + j * dim + d, 0, 2);
        }
        turn(m);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) _mm512_store_si512(piece->keys[d / 2 + i], m[i]);
#pragma GCC unroll 8
        for (int j = 0; j < PAIRS_OF_KEYS; j++) {
            __builtin_prefetch(ahead_v + 2 * j * dim + d, 0, 2);
            __builtin_prefetch(ahead_v + (2 * j + 1) * dim + d, 0, 2);
            __m512i a = row_of(v, 2 * j, count, d, dim), b = row_of(v, 2 * j + 1, count, d, dim);
            _mm512_store_si512(piece->values[j][d], _mm512_permutex2var_epi16(a, low, b));
            _mm512_store_si512(piece->values[j][d + LANES], _mm512_permutex2var_epi16(a, high, b));
        }
    }
}

/* Adds one piece to the online softmax of up to four rows. seen[r]: how many of its keys row r attends to. */
static inline __attribute__((always_inline)) void attend_rows(const struct piece *piece, const element *q,
                                                              float scale, float *acc, float *top, vec *total,
                                                              const int *seen, const int rows, const int dim) {
    vec dots[4][2];
    element weights[4][LANES] ALIGNED;
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) dots[r][0] = dots[r][1] = (vec){0};
    for (int d = 0; d < dim; d += 4) {
        __m512bh a = (__m512bh)_mm512_load_si512(piece->keys[d / 2]);
        __m512bh b = (__m512bh)_mm512_load_si512(piece->keys[d / 2 + 1]);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            dots[r][0] = (vec)_mm512_dpbf16_ps((__m512)dots[r][0], a, pair_of(q + r * dim + d));
            dots[r][1] = (vec)_mm512_dpbf16_ps((__m512)dots[r][1], b, pair_of(q + r * dim + d + 2));
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        vec scores = (dots[r][0] + dots[r][1]) * scale;
        if (seen[r] < LANES) scores = pick((ivec){COUNT} < seen[r], scores, broadcast(-INFINITY));
        float best = largest(scores);
        if (best > top[r]) {
            float shrink = expf(top[r] - best);
            total[r] *= shrink;
            for (int d = 0; d < dim; d += LANES) *(vec *)(acc + r * dim + d) *= shrink;
            top[r] = best;
        }
        vec mass = exponential(scores - top[r]);
        total[r] += mass;
        _mm256_store_si256((void *)weights[r], (__m256i)_mm512_cvtneps_pbh((__m512)mass));
    }
    for (int d = 0; d < dim; d += 4 * LANES) {
        const int wide = dim - d < 4 * LANES ? (dim - d) / LANES : 4;
        __m512 out[4][4];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                if (i < wide) out[r][i] = _mm512_loadu_ps(acc + r * dim + d + i * LANES);
#pragma GCC unroll 8
        for (int j = 0; j < PAIRS_OF_KEYS; j++) {
            __m512bh value[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                if (i < wide) value[i] = (__m512bh)_mm512_load_si512(piece->values[j][d + i * LANES]);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                __m512bh weight = pair_of(weights[r] + 2 * j);
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++)
                    if (i < wide) out[r][i] = _mm512_dpbf16_ps(out[r][i], value[i], weight);
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++)
                if (i < wide) _mm512_storeu_ps(acc + r * dim + d + i * LANES, out[r][i]);
    }
}

/* Computes attention of `rows` queries that share a key head: an online softmax over pieces of at most LANES
 * keys. Row r attends to the keys before position ends[r]; ends must not decrease from row to row.
 * q [rows, dim] are the queries in bfloat16, acc [rows, dim] receives the result in float. */
static inline __attribute__((always_inline)) void attend(const struct sequence *at, const query_element *q,
                                                         float scale, float *acc, const int64_t *ends, int rows,
                                                         const int dim) {
    float top[MAX_ROWS];
    vec total[MAX_ROWS];
    struct piece piece;
    for (int r = 0; r < rows; r++) top[r] = -INFINITY, total[r] = (vec){0};
    memset(acc, 0, sizeof(float) * rows * dim);
    const int64_t end = ends[rows - 1];
    int begin = 0;
    for (int64_t first = 0; first < end;) {
        int64_t place = first % at->block_size;
        const element *k = at->kv + at->table[first / at->block_size] * at->block_stride + place * dim;
        int64_t many = at->block_size - place, left = end - first;
        int count = (int)(many < left ? many : left);
        if (count > LANES) count = LANES;
        int64_t next = first + AHEAD * count < end ? first + AHEAD * count : first;
        const element *ahead = at->kv + at->table[next / at->block_size] * at->block_stride +
                               next % at->block_size * dim;
        lay_out(&piece, k, k + at->values, ahead, ahead + at->values, count, dim);
        while (ends[begin] <= first) begin++;
        int seen[MAX_ROWS];
        for (int r = begin; r < rows; r++) seen[r] = (int)(ends[r] - first < count ? ends[r] - first : count);
#define ROWS(n) attend_rows(&piece, q + r * dim, scale, acc + r * dim, top + r, total + r, seen + r, n, dim)
        int r = begin;
        for (; r + 4 <= rows; r += 4) ROWS(4);
        switch (rows - r) {
        case 1: ROWS(1); break;
        case 2: ROWS(2); break;
        case 3: ROWS(3); break;
        }
#undef ROWS
        first += count;
    }
    for (int r = 0; r < rows; r++) {
        float share = 1.0f / sum(total[r]);
        for (int d = 0; d < dim; d += LANES) *(vec *)(acc + r * dim + d) *= share;
    }
}
