/* Attention in float arithmetic, for every processor and both element types. */

typedef float query_element;

/* Copies one query [dim], converted to the type that attend() reads. */
static inline void take_query(query_element *to, const element *from, int64_t dim) {
    for (int64_t d = 0; d < dim; d += LANES) *(vec *)(to + d) = load(from + d);
}

/* Computes attention of `rows` queries that share a key head: an online softmax over pieces of at most LANES
 * keys. Row r attends to the keys before position ends[r]; ends must not decrease from row to row.
 * q [rows, dim] are the queries, acc [rows, dim] receives the result in float. */
static inline __attribute__((always_inline)) void attend(const struct sequence *at, const query_element *q,
                                                         float scale, float *acc, const int64_t *ends, int rows,
                                                         const int dim) {
    const int wide = dim / LANES;
    float top[MAX_ROWS];
    vec total[MAX_ROWS];
#ifdef BFLOAT16
    float keys[LANES * MAX_HEAD_DIM] ALIGNED, values[LANES * MAX_HEAD_DIM] ALIGNED;
#endif
    for (int r = 0; r < rows; r++) top[r] = -INFINITY, total[r] = (vec){0};
    memset(acc, 0, sizeof(float) * rows * dim);
    for (int64_t first = 0; first < ends[rows - 1];) {
        int64_t place = first % at->block_size;
        const element *k = at->kv + at->table[first / at->block_size] * at->block_stride + place * dim;
        const element *v = k + at->values;
        int64_t many = at->block_size - place, left = ends[rows - 1] - first;
        int count = (int)(many < left ? many : left);
        if (count > LANES) count = LANES;
#ifdef BFLOAT16
        for (int i = 0; i < count * dim; i += LANES) {
            *(vec *)(keys + i) = load(k + i);
            *(vec *)(values + i) = load(v + i);
        }
#else
        const float *keys = k, *values = v;
#endif
        for (int r = 0; r < rows; r++) {
            if (ends[r] <= first) continue;
            int seen = (int)(ends[r] - first < count ? ends[r] - first : count);
            const float *query = q + r * dim;
            float *out = acc + r * dim;
            vec dots[LANES];
            if (seen == LANES) {
#pragma GCC unroll 16
                for (int j = 0; j < LANES; j++) {
                    dots[j] = *(const vec *)query * *(const vec *)(keys + j * dim);
                    for (int d = 1; d < wide; d++)
                        dots[j] += *(const vec *)(query + d * LANES) * *(const vec *)(keys + j * dim + d * LANES);
                }
            } else {
                for (int j = 0; j < LANES; j++) {
                    dots[j] = (vec){0};
                    for (int d = 0; j < seen && d < wide; d++)
                        dots[j] += *(const vec *)(query + d * LANES) * *(const vec *)(keys + j * dim + d * LANES);
                }
            }
            vec scores = pick((ivec){COUNT} < seen, sums(dots) * scale, broadcast(-INFINITY));
            float best = largest(scores);
            if (best > top[r]) {
                float shrink = expf(top[r] - best);
                total[r] *= shrink;
                for (int d = 0; d < dim; d += LANES) *(vec *)(out + d) *= shrink;
                top[r] = best;
            }
            vec mass = exponential(scores - top[r]);
            total[r] += mass;
            float weights[LANES];
            *(vec *)weights = mass;
            for (int d = 0; d < dim; d += 4 * LANES) {
                if (d + 4 * LANES <= dim) { /* four vectors of the output remain in registers */
                    vec a = *(vec *)(out + d), b = *(vec *)(out + d + LANES);
                    vec c = *(vec *)(out + d + 2 * LANES), e = *(vec *)(out + d + 3 * LANES);
                    for (int j = 0; j < seen; j++) {
                        const float *value = values + j * dim + d;
                        float w = weights[j];
                        a += w * *(const vec *)value;
                        b += w * *(const vec *)(value + LANES);
                        c += w * *(const vec *)(value + 2 * LANES);
                        e += w * *(const vec *)(value + 3 * LANES);
                    }
                    *(vec *)(out + d) = a, *(vec *)(out + d + LANES) = b;
                    *(vec *)(out + d + 2 * LANES) = c, *(vec *)(out + d + 3 * LANES) = e;
                } else {
                    for (int i = d; i < dim; i += LANES)
                        for (int j = 0; j < seen; j++)
                            *(vec *)(out + i) += weights[j] * *(const vec *)(values + j * dim + i);
                }
            }
        }
        first += count;
    }
    for (int r = 0; r < rows; r++) {
        float share = 1.0f / sum(total[r]);
        for (int d = 0; d < dim; d += LANES) *(vec *)(acc + r * dim + d) *= share;
    }
}
