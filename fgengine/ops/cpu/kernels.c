/* The operations between a model's matrix multiplications, for CPUs. The meaning of each is in
 * fgengine/ops/reference.py; what is here only goes faster.
 *
 * Compiled once for each element type: float, or with -DBFLOAT16 bfloat16, which is a float's upper half.
 * All arithmetic is in float. Vectors are the compiler's own (GCC and clang), as wide as the processor's.
 * Strides and sizes are in elements. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h> /* where GCC makes too much of the portable form */
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define MAX_HEAD_DIM 256
#define ALIGNED __attribute__((aligned(64))) /* a load across two cache lines costs two */
/* Below this many elements a second thread costs more than it brings. */
#define WORTH_SHARING 32768

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4)));
typedef uint32_t uvec __attribute__((vector_size(LANES * 4), aligned(4)));

#ifdef BFLOAT16
typedef uint16_t element;
typedef uint16_t hvec __attribute__((vector_size(LANES * 2), aligned(2)));

static inline vec load(const element *p) {
#ifdef __AVX512F__
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16);
#else
    return (vec)(__builtin_convertvector(*(const hvec *)p, uvec) << 16);
#endif
}
static inline void store(element *p, vec x) { /* to nearest, ties to even; NaN stays NaN */
    uvec bits = (uvec)x;
    uvec nan = (uvec)(x != x);
    bits += 0x7fff + ((bits >> 16) & 1);
    *(hvec *)p = __builtin_convertvector((bits >> 16 & ~nan) | (0x7fc0 & nan), hvec);
}
static inline float load1(const element *p) {
    uint32_t bits = (uint32_t)*p << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
static inline void store1(element *p, float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    *p = x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
#else
typedef float element;
static inline vec load(const element *p) { return *(const vec *)p; }
static inline void store(element *p, vec x) { *(vec *)p = x; }
static inline float load1(const element *p) { return *p; }
static inline void store1(element *p, float x) { *p = x; }
#endif

static inline vec broadcast(float x) { return x - (vec){0}; }
static inline vec pick(ivec mask, vec yes, vec no) {
    return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask));
}
static inline vec larger(vec a, vec b) {
#ifdef __AVX512F__
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return pick(a > b, a, b);
#endif
}

#if LANES == 16
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define COUNT 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#elif LANES == 8
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define ODD 1, 3, 5, 7, 9, 11, 13, 15
#define COUNT 0, 1, 2, 3, 4, 5, 6, 7
#else
#define EVEN 0, 2, 4, 6
#define ODD 1, 3, 5, 7
#define COUNT 0, 1, 2, 3
#endif
#ifdef __clang__
#define EVENS(a, b) __builtin_shufflevector(a, b, EVEN)
#define ODDS(a, b) __builtin_shufflevector(a, b, ODD)
#else
#define EVENS(a, b) __builtin_shuffle(a, b, (ivec){EVEN})
#define ODDS(a, b) __builtin_shuffle(a, b, (ivec){ODD})
#endif

/* One vector that holds the sum of each of the LANES given ones, in their order. */
static inline vec sums(vec *v) {
#pragma GCC unroll 4
    for (int n = LANES / 2; n > 0; n /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < n; i++) v[i] = EVENS(v[2 * i], v[2 * i + 1]) + ODDS(v[2 * i], v[2 * i + 1]);
    return v[0];
}
static inline float sum(vec v) {
#pragma GCC unroll 4
    for (int n = LANES; n > 1; n /= 2) v = EVENS(v, v) + ODDS(v, v);
    return v[0];
}
static inline float largest(vec v) {
#ifdef __AVX512F__
    return _mm512_reduce_max_ps((__m512)v);
#else
#pragma GCC unroll 4
    for (int n = LANES; n > 1; n /= 2) v = larger(EVENS(v, v), ODDS(v, v));
    return v[0];
#endif
}

/* e^x: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes' expf coefficients); below -87 it is 0. */
static inline vec exponential(vec x) {
    ivec none = x < -87.0f;
    x = -larger(-larger(x, broadcast(-87.0f)), broadcast(-88.0f));
    vec n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f; /* to the nearest whole number */
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec y = 1.9875691500e-4f * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    ivec power = (__builtin_convertvector(n, ivec) + 127) << 23;
    return (vec)((ivec)(y * (vec)power) & ~none);
}

/* residual += x where x is given; out = residual / rms(residual) * weight. [rows, size] each, contiguous. */
void rms_norm(element *out, const element *x, element *residual, const element *weight, float eps,
              int64_t rows, int64_t size) {
#pragma omp parallel for if (rows * size > WORTH_SHARING)
    for (int64_t row = 0; row < rows; row++) {
        element *r = residual + row * size, *o = out + row * size;
        int64_t whole = size / LANES * LANES, i;
        if (x) {
            const element *added = x + row * size;
            for (i = 0; i < whole; i += LANES) store(r + i, load(r + i) + load(added + i));
            for (; i < size; i++) store1(r + i, load1(r + i) + load1(added + i));
        }
        vec squares = {0};
        for (i = 0; i < whole; i += LANES) squares += load(r + i) * load(r + i);
        float total = sum(squares);
        for (; i < size; i++) total += load1(r + i) * load1(r + i);
        float scale = 1.0f / sqrtf(total / size + eps);
        for (i = 0; i < whole; i += LANES) store(o + i, load(r + i) * scale * load(weight + i));
        for (; i < size; i++) store1(o + i, load1(r + i) * scale * load1(weight + i));
    }
}

/* gate_up [rows, 2 * size] -> out [rows, size]; size is a multiple of LANES. */
void silu_mul(element *out, const element *gate_up, int64_t rows, int64_t size) {
#pragma omp parallel for if (rows * size > WORTH_SHARING)
    for (int64_t row = 0; row < rows; row++) {
        const element *gate = gate_up + row * 2 * size, *up = gate + size;
        for (int64_t i = 0; i < size; i += LANES) {
            vec g = load(gate + i);
            store(out + row * size + i, g / (1.0f + exponential(-g)) * load(up + i));
        }
    }
}

/* Rotates queries and keys in place by rope [max_position, dim] (none when rope is null), then stores keys
 * and values; dim / 2 is a multiple of LANES where there is a rope. */
void write_kv(element *qkv, element *kv, const float *rope, const int64_t *positions, const int64_t *slots,
              int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim, int64_t block_size,
              int64_t block_stride) {
    int64_t width = (heads + 2 * kv_heads) * dim, half = dim / 2;
#pragma omp parallel for if (tokens * width > WORTH_SHARING)
    for (int64_t t = 0; t < tokens; t++) {
        element *row = qkv + t * width;
        if (rope) {
            const float *cosine = rope + positions[t] * dim, *sine = cosine + half;
            for (int64_t h = 0; h < heads + kv_heads; h++) {
                element *low = row + h * dim, *high = low + half;
                for (int64_t i = 0; i < half; i += LANES) {
                    vec a = load(low + i), b = load(high + i);
                    vec c = *(const vec *)(cosine + i), s = *(const vec *)(sine + i);
                    store(low + i, a * c - b * s);
                    store(high + i, b * c + a * s);
                }
            }
        }
        element *block = kv + slots[t] / block_size * block_stride + slots[t] % block_size * dim;
        for (int64_t h = 0; h < 2 * kv_heads; h++) /* keys of all heads, then values */
            memcpy(block + h * block_size * dim, row + (heads + h) * dim, dim * sizeof(element));
    }
}

struct sequence { /* one request's place in the pool, for one key head */
    const element *kv;
    const int32_t *table;
    int64_t block_size, block_stride, values; /* values: from a block's keys to its values */
};

#define MAX_ROWS 64
#if defined(BFLOAT16) && defined(__AVX512BF16__)
#include "attend_bf16.h"
#include "linear.h"
#else
#include "attend.h"
#endif

/* q [tokens, heads, dim] with its own stride between tokens -> out [tokens, heads * dim], contiguous.
 * The work is shared out by request, key head and tile of queries. heads / kv_heads <= MAX_ROWS,
 * dim <= MAX_HEAD_DIM and a multiple of LANES. */
void attention(element *out, const element *q, const element *kv, const int32_t *tables,
               const int32_t *query_starts, const int32_t *context_lens, int64_t requests, int64_t table_width,
               int64_t heads, int64_t kv_heads, int64_t dim, int64_t block_size, int64_t block_stride,
               int64_t q_stride) {
    const int64_t group = heads / kv_heads, tile = group < 32 ? 32 / group : 1;
    const float scale = 1.0f / sqrtf((float)dim);
#pragma omp parallel
    for (int64_t b = 0; b < requests; b++) {
        int64_t begin = query_starts[b], new_tokens = query_starts[b + 1] - begin;
        int64_t tiles = (new_tokens + tile - 1) / tile;
#pragma omp for schedule(dynamic) nowait
        for (int64_t piece = 0; piece < tiles * kv_heads; piece++) {
            int64_t head = piece % kv_heads, from = piece / kv_heads * tile;
            int64_t to = from + tile < new_tokens ? from + tile : new_tokens;
            query_element queries[MAX_ROWS * MAX_HEAD_DIM] ALIGNED;
            float acc[MAX_ROWS * MAX_HEAD_DIM] ALIGNED;
            int64_t ends[MAX_ROWS];
            int rows = 0;
            for (int64_t t = from; t < to; t++)
                for (int64_t h = head * group; h < (head + 1) * group; h++, rows++) {
                    take_query(queries + rows * dim, q + (begin + t) * q_stride + h * dim, dim);
                    ends[rows] = context_lens[b] - new_tokens + t + 1;
                }
            struct sequence at = {kv + head * block_size * dim, tables + b * table_width, block_size,
                                  block_stride, kv_heads * block_size * dim};
            switch (dim) { /* the usual sizes as constants, so that the loops over a head unroll */
            case 64: attend(&at, queries, scale, acc, ends, rows, 64); break;
            case 128: attend(&at, queries, scale, acc, ends, rows, 128); break;
            default: attend(&at, queries, scale, acc, ends, rows, (int)dim);
            }
            rows = 0;
            for (int64_t t = from; t < to; t++)
                for (int64_t h = head * group; h < (head + 1) * group; h++, rows++)
                    for (int64_t d = 0; d < dim; d += LANES)
                        store(out + ((begin + t) * heads + h) * dim + d, *(vec *)(acc + rows * dim + d));
        }
    }
}

int lanes(void) { return LANES; }
