/* One block of GPT-2, or of some of its variants, as fast as memory delivers its weights: what generating text spends its time on.
 *
 * It computes what Block in gpt.py does, for texts whose earlier keys and values are kept (KVCache): called by
 * prepared.py, once a layer, for T new tokens of each of B texts. All numbers are fp32 but for the weights of the linear
 * layers, which may be bf16 or int8 and come packed in the order in which they are read here.
 *
 * Every number is computed by one thread, in an order that does not depend on B, T or the number of threads. So the same
 * text gives the same bits alone, in any batch, read at once or in pieces.
 */
#include <math.h>
#include "vectors.h"

enum { ROWS = 4 };              /* a tile of weights: 4 outputs by WIDTH inputs */
enum { AHEAD = 32 };            /* tiles that are fetched in advance; processors do not look that far */
enum { FP32, BF16, INT8 };      /* kinds of weights, numbered as in prepared.py */
enum { STORE, GELU, ADD, RELU2 }; /* what becomes of a product */

const int tile_shape[] = {ROWS, WIDTH};

/* y = x W^T * scale + bias: W is N x K, packed as [N / ROWS][K / WIDTH][ROWS][WIDTH]; its N is padded, its K is not. */
struct linear {
    int64_t kind, N, K;
    const char *weights;
    const float *scale, *bias;
};

struct norm {
    const float *weight, *bias; /* none: the states are divided by their root mean square, and that is all */
};

struct block {
    struct norm ln_1;
    struct linear c_attn, c_proj;
    struct norm ln_2;
    struct linear mlp_c_fc, mlp_c_proj;
    int64_t n_head, qk_norm, relu2;
    const float *turns, *slopes; /* rotary positions: cosine and sine, (positions, H / 2, 2); ALiBi's: (heads); or neither */
};

typedef int16_t words __attribute__((vector_size(2 * WIDTH)));
typedef int8_t bytes __attribute__((vector_size(WIDTH), aligned(1)));

/* WIDTH weights as floats. */
INLINE vec load(const char *w, int kind)
{
    if (kind == BF16) return from_bf16(w);
#ifdef __AVX512F__ /* what the generic line below means; gcc 12 makes slow code of it */
    if (kind == INT8) return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)w)));
#endif
    if (kind == INT8)
        return __builtin_convertvector(__builtin_convertvector(__builtin_convertvector(*(const bytes *)w, words), ints), vec);
    return *(const vec *)w;
}

/* GELU in its tanh form; (1 + tanh u) / 2 is 1 / (1 + e^-2u). */
INLINE float gelu(float x)
{
    float u = 0.7978845608f * (x + 0.044715f * x * x * x); /* sqrt(2 / pi) */
    return x / (1 + expf(-2 * u));
}

INLINE float relu2(float x)
{
    float positive = fmaxf(x, 0);
    return positive * positive;
}

/* ROWS outputs of M rows x. `kind` and `M` are constants wherever this is inlined, so the sums stay in registers. */
INLINE void tile(int kind, int M, const float *x, const struct linear *l, int64_t n, float *y, int then)
{
    const int size = kind == FP32 ? 4 : kind == BF16 ? 2 : 1, bytes_a_tile = ROWS * WIDTH * size;
    const int64_t N = l->N, K = l->K;
    const char *w = l->weights + n * K * size;
    vec sum[4][ROWS];
    for (int m = 0; m < M; m++)
        for (int r = 0; r < ROWS; r++) sum[m][r] = (vec){0};
    for (int64_t k = 0; k < K; k += WIDTH, w += bytes_a_tile) {
        for (int b = 0; b < bytes_a_tile; b += 64) __builtin_prefetch(w + AHEAD * bytes_a_tile + b);
        for (int r = 0; r < ROWS; r++) {
            vec v = load(w + r * WIDTH * size, kind);
            for (int m = 0; m < M; m++) sum[m][r] += *(const vec *)(x + m * K + k) * v;
        }
    }
    for (int m = 0; m < M; m++)
        for (int r = 0; r < ROWS && n + r < N; r++) {
            float *out = y + m * N + n + r, value = total(sum[m][r]) * l->scale[n + r] + l->bias[n + r];
            *out = then == GELU ? gelu(value) : then == RELU2 ? relu2(value) : then == ADD ? *out + value : value;
        }
}

INLINE void product(int kind, const struct linear *l, const float *x, float *y, int64_t M, int then)
{
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < l->N; n += ROWS) {
        int64_t m = 0;
        for (; m + 4 <= M; m += 4) tile(kind, 4, x + m * l->K, l, n, y + m * l->N, then);
        for (; m + 2 <= M; m += 2) tile(kind, 2, x + m * l->K, l, n, y + m * l->N, then);
        for (; m < M; m++) tile(kind, 1, x + m * l->K, l, n, y + m * l->N, then);
    }
}

/* x (M, K) -> y (M, N): y = x W^T + b, or a function of it, or y += it. */
void linear(const struct linear *l, const float *x, float *y, int64_t M, int then)
{
    switch (l->kind) {
    case FP32: product(FP32, l, x, y, M, then); break;
    case BF16: product(BF16, l, x, y, M, then); break;
    case INT8: product(INT8, l, x, y, M, then); break;
    }
}

/* What a row x (n) is multiplied by for a root mean square of 1. */
INLINE float unit(const float *x, int64_t n)
{
    float square = 0;
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < n; i++) square += x[i] * x[i];
    return 1 / sqrtf(square / n + 1e-5f);
}

/* Layer normalization, or that by the root mean square alone, of each row of x (M, C) into y. */
static void normalize(const struct norm *norm, const float *x, float *y, int64_t M, int64_t C)
{
    for (int64_t m = 0; m < M; m++, x += C, y += C) {
        if (!norm->weight) {
            const float by = unit(x, C);
            for (int64_t c = 0; c < C; c++) y[c] = x[c] * by;
            continue;
        }
        float mean = 0, variance = 0;
#pragma omp simd reduction(+ : mean)
        for (int64_t c = 0; c < C; c++) mean += x[c];
        mean /= C;
#pragma omp simd reduction(+ : variance)
        for (int64_t c = 0; c < C; c++) variance += (x[c] - mean) * (x[c] - mean);
        const float scale = 1 / sqrtf(variance / C + 1e-5f);
        for (int64_t c = 0; c < C; c++) y[c] = (x[c] - mean) * scale * norm->weight[c] + norm->bias[c];
    }
}

/* A query or key x (H) at a position, into y: where the model does so, with a root mean square of 1, and each pair of numbers
 * turned, as `rotate` in position.py does. */
static void place(const struct block *block, const float *x, float *y, int64_t position, int64_t H)
{
    const float by = block->qk_norm ? unit(x, H) : 1;
    for (int64_t h = 0; h < H; h++) y[h] = x[h] * by;
    if (!block->turns) return;
    const float *turns = block->turns + position * H;
    for (int64_t h = 0; h < H; h += 2) {
        const float a = y[h], b = y[h + 1];
        y[h] = a * turns[h] - b * turns[h + 1];
        y[h + 1] = a * turns[h + 1] + b * turns[h];
    }
}

/* Attention of T new tokens of each of B texts. qkv (B, T, 3, heads, H); keys and values (B, heads, capacity, H) hold
 * starts[b] positions of text b and get the new ones behind them; y (B, T, heads, H). A token sees what stands before it
 * and itself. */
static void attend(
    const struct block *block, const float *qkv, float *keys, float *values, const int64_t *starts, float *y, int64_t B,
    int64_t T, int64_t capacity)
{
    const int64_t heads = block->n_head, C = block->c_attn.K, H = C / heads;
    const float scale = 1 / sqrtf(H);
#pragma omp parallel for schedule(static)
    for (int64_t bn = 0; bn < B * heads; bn++) {
        const int64_t b = bn / heads, n = bn % heads, start = starts[b];
        float *k = keys + bn * capacity * H, *v = values + bn * capacity * H;
        const float slope = block->slopes ? block->slopes[n] : 0;
        float weight[start + T], q[H];
        for (int64_t t = 0; t < T; t++) {
            const float *x = qkv + (b * T + t) * 3 * C + n * H;
            const int64_t seen = start + t + 1;
            place(block, x, q, seen - 1, H);
            place(block, x + C, k + (seen - 1) * H, seen - 1, H);
            memcpy(v + (seen - 1) * H, x + 2 * C, H * sizeof *x);
            float highest = -INFINITY, sum = 0;
            for (int64_t i = 0; i < seen; i++) {
                float score = 0;
#pragma omp simd reduction(+ : score)
                for (int64_t h = 0; h < H; h++) score += q[h] * k[i * H + h];
                weight[i] = score * scale - slope * (seen - 1 - i);
                highest = fmaxf(highest, weight[i]);
            }
            for (int64_t i = 0; i < seen; i++) sum += weight[i] = expf(weight[i] - highest);
            float *out = y + (b * T + t) * C + n * H;
            for (int64_t h = 0; h < H; h++) out[h] = 0;
            for (int64_t i = 0; i < seen; i++)
#pragma omp simd
                for (int64_t h = 0; h < H; h++) out[h] += weight[i] / sum * v[i * H + h];
        }
    }
}

/* The block itself: x (B, T, C) changes into its output. `scratch` is room for B * T * 6 * C floats. */
void block(
    const struct block *b, float *x, float *keys, float *values, const int64_t *starts, int64_t B, int64_t T, int64_t capacity,
    float *scratch)
{
    const int64_t M = B * T, C = b->c_attn.K;
    float *normed = scratch, *attended = scratch + M * C, *wide = scratch + 2 * M * C;
    normalize(&b->ln_1, x, normed, M, C);
    linear(&b->c_attn, normed, wide, M, STORE);
    attend(b, wide, keys, values, starts, attended, B, T, capacity);
    linear(&b->c_proj, attended, x, M, ADD);
    normalize(&b->ln_2, x, normed, M, C);
    linear(&b->mlp_c_fc, normed, wide, M, b->relu2 ? RELU2 : GELU);
    linear(&b->mlp_c_proj, wide, x, M, ADD);
}
