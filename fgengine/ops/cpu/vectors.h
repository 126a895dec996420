/* Vectors of LANES floats, loaded from elements (float or bfloat16) and stored as elements.
 *
 * They are vector extensions of GCC and clang, as wide as the processor's registers. */

#ifdef __AVX512F__
#include <immintrin.h> /* used where GCC compiles the portable form to slow code */
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define ALIGNED __attribute__((aligned(64))) /* a load across two cache lines costs as much as two */

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
static inline void store(element *p, vec x) { /* rounds to nearest, ties to even; NaN remains NaN */
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
/* Selects `yes` in the lanes whose mask is set (all bits 1), else `no`. */
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

/* Returns a vector whose lane i is the sum over the lanes of v[i]. v [LANES] is overwritten. */
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

/* Returns e^x: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes' expf coefficients); 0 for x < -87. */
static inline vec exponential(vec x) {
    ivec none = x < -87.0f;
    x = -larger(-larger(x, broadcast(-87.0f)), broadcast(-88.0f));
    vec n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f; /* rounds to the nearest integer */
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
