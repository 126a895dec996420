/* A step of a model on a CPU: a program of operations, run by a team of threads (see team.h). Each operation
 * is defined in fgengine/ops/reference.py; this file only computes it faster.
 *
 * The file is compiled once for each element type: float or, with -DBFLOAT16, bfloat16 (the upper half of a
 * float). All arithmetic is in float. Strides and sizes are in elements. The structs must match
 * instructions.py. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "vectors.h"

#define MAX_HEAD_DIM 256
#define MAX_ROWS 64
/* Below this many elements, a second thread costs more time than it saves. */
#define WORTH_SHARING 32768
/* Elements that a thread takes at once from work that is done row by row. */
#define WORTH_TAKING 4096

enum kind { EMBED, RMS_NORM, LAYER_NORM, LINEAR, SILU_MUL, WRITE_KV, ATTENTION, PICK };

struct instruction {
    int64_t kind;
    int64_t ending; /* 1: compute only the rows that yield a token; 0: all rows */
    element *out;
    const element *x;
    element *residual;
    const element *weight, *bias;
    const float *rope;
    const element *kv;
    int64_t out_stride, x_stride, residual_stride;
    int64_t size, outputs;
    int64_t flag; /* EMBED: look up by position and add; LINEAR: apply relu */
    int64_t heads, kv_heads, dim, block_size, block_stride;
    double eps;
};

struct step {
    int64_t rows, ending_rows, requests, table_width;
    int64_t pool_shift; /* elements from the pool that the program was recorded with to this step's pool */
    const int64_t *tokens, *positions, *slots, *ending;
    const int32_t *tables, *query_starts, *context_lens;
};

struct sequence { /* the KV of one request for one key head */
    const element *kv; /* the head's keys in block 0 of the pool */
    const int32_t *table;
    int64_t block_size, block_stride, values; /* values: elements from a block's keys to its values */
};

#include "rows.h"
#include "team.h"
#include "linear.h"
#include "forbid.h"
#if defined(BFLOAT16) && defined(__AVX512BF16__)
#include "attend_bf16.h"
#else
#include "attend.h"
#endif

/* Returns the tokens of a tile: queries of one request that share a key head are computed in tiles. */
static inline int64_t tile_of(const struct instruction *in) {
    const int64_t group = in->heads / in->kv_heads;
    return group < 32 ? 32 / group : 1;
}

/* Fills starts [requests + 1] with the index of each request's first tile; the last entry is their number. */
static void count_tiles(int64_t *starts, const struct step *step, int64_t tile) {
    starts[0] = 0;
    for (int64_t b = 0; b < step->requests; b++) {
        int64_t tokens = step->query_starts[b + 1] - step->query_starts[b];
        starts[b + 1] = starts[b] + (tokens + tile - 1) / tile;
    }
}

/* Computes attention for one tile of queries and one key head. */
static void attention(const struct instruction *in, const struct step *step, const int64_t *starts,
                      int64_t piece) {
    const int64_t head = piece % in->kv_heads, at_tile = piece / in->kv_heads, dim = in->dim;
    const int64_t group = in->heads / in->kv_heads, tile = tile_of(in);
    int64_t b = 0, above = step->requests; /* starts[b] <= at_tile < starts[above] */
    while (above - b > 1) {
        int64_t middle = (b + above) / 2;
        if (starts[middle] <= at_tile) b = middle;
        else above = middle;
    }
    const int64_t begin = step->query_starts[b], tokens = step->query_starts[b + 1] - begin;
    const int64_t from = (at_tile - starts[b]) * tile, to = from + tile < tokens ? from + tile : tokens;
    query_element queries[MAX_ROWS * MAX_HEAD_DIM] ALIGNED;
    float acc[MAX_ROWS * MAX_HEAD_DIM] ALIGNED;
    int64_t ends[MAX_ROWS];
    int rows = 0;
    for (int64_t t = from; t < to; t++)
        for (int64_t h = head * group; h < (head + 1) * group; h++, rows++) {
            take_query(queries + rows * dim, in->x + (begin + t) * in->x_stride + h * dim, dim);
            ends[rows] = step->context_lens[b] - tokens + t + 1;
        }
    const int64_t block_size = in->block_size;
    const element *kv = in->kv + step->pool_shift + head * block_size * dim;
    struct sequence at = {kv, step->tables + b * step->table_width, block_size, in->block_stride,
                          in->kv_heads * block_size * dim};
    const float scale = 1.0f / sqrtf((float)dim);
    switch (dim) { /* usual sizes are constants, so that the compiler unrolls the loops over a head */
    case 64: attend(&at, queries, scale, acc, ends, rows, 64); break;
    case 128: attend(&at, queries, scale, acc, ends, rows, 128); break;
    default: attend(&at, queries, scale, acc, ends, rows, (int)dim);
    }
    rows = 0;
    for (int64_t t = from; t < to; t++)
        for (int64_t h = head * group; h < (head + 1) * group; h++, rows++)
            for (int64_t d = 0; d < dim; d += LANES)
                store(in->out + (begin + t) * in->out_stride + h * dim + d, *(vec *)(acc + rows * dim + d));
}

/* Estimates the elements that an operation reads or writes, to decide if it is worth a second thread. */
static int64_t work_of(const struct instruction *in, int64_t rows) {
    if (in->kind == LINEAR) return in->outputs * in->size;
    if (in->kind == ATTENTION) return WORTH_SHARING + 1;
    return rows * in->size;
}

/* Computes this thread's part of one instruction, then waits until all of it is done. */
static void execute(const struct instruction *in, struct phase *phase, const struct step *step,
                    const int64_t *starts, int64_t threads) {
    const int64_t rows = in->ending ? step->ending_rows : step->rows;
    const int64_t size = in->size, many = size < WORTH_TAKING ? WORTH_TAKING / size : 1;
    int64_t total = rows;
#define OUT (in->out + row * in->out_stride)
#define X (in->x ? in->x + row * in->x_stride : NULL)
#define RESIDUAL (in->residual + row * in->residual_stride)
    switch (in->kind) {
    case EMBED:
        SHARED(phase, total, many, row) {
            const int64_t index = in->flag ? step->positions[row] : step->tokens[row];
            embed(OUT, in->weight + index * size, size, (int)in->flag);
        }
        break;
    case RMS_NORM:
        SHARED(phase, total, many, row) rms_norm(OUT, X, RESIDUAL, in->weight, (float)in->eps, size);
        break;
    case LAYER_NORM:
        SHARED(phase, total, many, row)
            layer_norm(OUT, X, RESIDUAL, in->weight, in->bias, (float)in->eps, size);
        break;
    case SILU_MUL:
        SHARED(phase, total, many, row) silu_mul(OUT, X, size);
        break;
    case WRITE_KV:
        SHARED(phase, total, many, row) {
            const int64_t slot = step->slots[row], block_size = in->block_size;
            element *place = (element *)in->kv + step->pool_shift + slot / block_size * in->block_stride +
                             slot % block_size * in->dim;
            const float *rope = in->rope ? in->rope + step->positions[row] * in->dim : NULL;
            write_kv(OUT, place, rope, in->heads, in->kv_heads, in->dim, block_size);
        }
        break;
    case PICK:
        SHARED(phase, total, many, row)
            memcpy(OUT, in->x + step->ending[row] * in->x_stride, size * sizeof(element));
        break;
    case ATTENTION:
        total = starts[step->requests] * in->kv_heads;
        SHARED(phase, total, 1, piece) attention(in, step, starts, piece);
        break;
    case LINEAR:
        total = linear_panels(in->outputs) * linear_blocks(rows);
        SHARED(phase, total, 1, piece)
            linear(in->out, in->x, in->weight, in->bias, rows, in->outputs, size / GROUP, in->x_stride,
                   in->out_stride, (int)in->flag, piece, threads);
        break;
    }
    await_all(phase, total);
}

/* Runs the program once. Returns 0, or 1 if there is not enough memory. */
int run(const struct instruction *program, int64_t count, const struct step *step, int64_t threads) {
    struct phase *phases = aligned_alloc(sizeof(struct phase), count * sizeof(struct phase));
    int64_t *starts = malloc((step->requests + 1) * sizeof(int64_t));
    if (!phases || !starts) {
        free(phases);
        free(starts);
        return 1;
    }
    memset(phases, 0, count * sizeof(struct phase));
    for (int64_t i = 0; i < count; i++)
        if (program[i].kind == ATTENTION) { /* all of a model's have the same tiles */
            count_tiles(starts, step, tile_of(&program[i]));
            break;
        }
    if (count == 1 && work_of(program, program->ending ? step->ending_rows : step->rows) <= WORTH_SHARING)
        threads = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < count; i++) execute(&program[i], &phases[i], step, starts, threads);
    free(phases);
    free(starts);
    return 0;
}

int lanes(void) { return LANES; }
int group(void) { return GROUP; } /* inputs that one instruction multiplies and adds together */
