/* Operations that work row by row. A row is one token. All pointers point to one row. */

/* out [size] = entry [size], or out += entry if `add`. */
static inline void embed(element *out, const element *entry, int64_t size, int add) {
    if (!add) {
        memcpy(out, entry, size * sizeof(element));
        return;
    }
    int64_t whole = size / LANES * LANES, i;
    for (i = 0; i < whole; i += LANES) store(out + i, load(out + i) + load(entry + i));
    for (; i < size; i++) store1(out + i, load1(out + i) + load1(entry + i));
}

/* residual += x, if x is given; out = residual / rms(residual) * weight. All are [size]. */
static inline void rms_norm(element *out, const element *x, element *residual, const element *weight, float eps,
                            int64_t size) {
    int64_t whole = size / LANES * LANES, i;
    if (x) embed(residual, x, size, 1);
    vec squares = {0};
    for (i = 0; i < whole; i += LANES) squares += load(residual + i) * load(residual + i);
    float total = sum(squares);
    for (; i < size; i++) total += load1(residual + i) * load1(residual + i);
    float scale = 1.0f / sqrtf(total / size + eps);
    for (i = 0; i < whole; i += LANES) store(out + i, load(residual + i) * scale * load(weight + i));
    for (; i < size; i++) store1(out + i, load1(residual + i) * scale * load1(weight + i));
}

/* residual += x, if x is given; out = (residual - mean) / deviation * weight + bias. All are [size]. */
static inline void layer_norm(element *out, const element *x, element *residual, const element *weight,
                              const element *bias, float eps, int64_t size) {
    int64_t whole = size / LANES * LANES, i;
    if (x) embed(residual, x, size, 1);
    vec values = {0}, squares = {0};
    for (i = 0; i < whole; i += LANES) values += load(residual + i);
    float total = sum(values);
    for (; i < size; i++) total += load1(residual + i);
    const float mean = total / size;
    for (i = 0; i < whole; i += LANES) {
        vec apart = load(residual + i) - mean;
        squares += apart * apart;
    }
    float variance = sum(squares);
    for (; i < size; i++) variance += (load1(residual + i) - mean) * (load1(residual + i) - mean);
    const float scale = 1.0f / sqrtf(variance / size + eps);
    for (i = 0; i < whole; i += LANES)
        store(out + i, (load(residual + i) - mean) * scale * load(weight + i) + load(bias + i));
    for (; i < size; i++)
        store1(out + i, (load1(residual + i) - mean) * scale * load1(weight + i) + load1(bias + i));
}

/* gate_up [2 * size] -> out [size]: silu(gate) * up; size is a multiple of LANES. */
static inline void silu_mul(element *out, const element *gate_up, int64_t size) {
    const element *up = gate_up + size;
    for (int64_t i = 0; i < size; i += LANES) {
        vec g = load(gate_up + i);
        store(out + i, g / (1.0f + exponential(-g)) * load(up + i));
    }
}

/* Stores a token's keys and values in a block. `place` is the address of the token's first key in the block;
 * its 2 * kv_heads rows [dim] are block_size * dim elements apart. If `rope` [dim] is given (cosines, then
 * sines), the queries and keys in qkv are first rotated in place; dim / 2 must then be a multiple of LANES. */
static inline void write_kv(element *qkv, element *place, const float *rope, int64_t heads, int64_t kv_heads,
                            int64_t dim, int64_t block_size) {
    int64_t half = dim / 2;
    if (rope) {
        const float *cosine = rope, *sine = rope + half;
        for (int64_t h = 0; h < heads + kv_heads; h++) {
            element *low = qkv + h * dim, *high = low + half;
            for (int64_t i = 0; i < half; i += LANES) {
                vec a = load(low + i), b = load(high + i);
                vec c = *(const vec *)(cosine + i), s = *(const vec *)(sine + i);
                store(low + i, a * c - b * s);
                store(high + i, b * c + a * s);
            }
        }
    }
    for (int64_t h = 0; h < 2 * kv_heads; h++) /* the keys of all heads, then their values */
        memcpy(place + h * block_size * dim, qkv + (heads + h) * dim, dim * sizeof(element));
}
