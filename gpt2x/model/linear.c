/* The product of a linear layer, y = x W^T * scale + bias, for few rows x: what generating text spends its time on.
 *
 * One token needs every weight once, so the speed is that of memory. The weights come packed by prepared.py in the
 * order in which they are read here, a tile after another: [N / ROWS][K / WIDTH][ROWS][WIDTH]. They are fp32, bf16
 * or int8; x, the sums and y are fp32. N is padded with rows that are never written, K with zeros.
 *
 * Each y[m][n] is summed by one thread and in an order that depends on K alone. So a result has the same bits
 * whatever the number of rows and of threads: a text does not depend on its batch.
 */
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

enum { ROWS = 4, WIDTH = 16 };        /* a tile: 4 outputs by 16 inputs */
enum { FP32, BF16, INT8 };            /* kinds of weights, numbered as in prepared.py */
enum { AHEAD = 32 };                  /* tiles that are fetched in advance; processors do not look that far */

const int tile_shape[] = {ROWS, WIDTH};

typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef float half __attribute__((vector_size(2 * WIDTH)));
typedef float quarter __attribute__((vector_size(WIDTH)));
typedef uint32_t bits __attribute__((vector_size(4 * WIDTH)));
typedef int32_t ints __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t shorts __attribute__((vector_size(2 * WIDTH), aligned(2)));
typedef int16_t words __attribute__((vector_size(2 * WIDTH)));
typedef int8_t bytes __attribute__((vector_size(WIDTH), aligned(1)));

/* WIDTH weights as floats. */
static inline __attribute__((always_inline)) vec load(const char *w, int kind)
{
#ifdef __AVX512F__ /* what the generic lines below mean; gcc 12 makes slow code of them */
    if (kind == BF16) return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)w)), 16);
    if (kind == INT8) return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)w)));
#endif
    if (kind == BF16) return (vec)(__builtin_convertvector(*(const shorts *)w, bits) << 16);
    if (kind == INT8)
        return __builtin_convertvector(__builtin_convertvector(__builtin_convertvector(*(const bytes *)w, words), ints), vec);
    return *(const vec *)w;
}

static inline __attribute__((always_inline)) float total(vec v)
{
    half h[2];
    quarter q[2];
    memcpy(h, &v, sizeof v);
    half s = h[0] + h[1];
    memcpy(q, &s, sizeof s);
    quarter t = q[0] + q[1];
    return (t[0] + t[1]) + (t[2] + t[3]);
}

/* ROWS outputs of M rows x: `kind` and `M` are constants wherever this is inlined, so the sums stay in registers. */
static inline __attribute__((always_inline)) void tile(
    int kind, int M, const float *x, const char *w, const float *scale, const float *bias, float *y, int64_t N, int64_t K,
    int wanted)
{
    const int size = kind == FP32 ? 4 : kind == BF16 ? 2 : 1;
    vec sum[4][ROWS];
    for (int m = 0; m < M; m++)
        for (int r = 0; r < ROWS; r++) sum[m][r] = (vec){0};
    for (int64_t k = 0; k < K; k += WIDTH, w += ROWS * WIDTH * size) {
        for (int b = 0; b < ROWS * WIDTH * size; b += 64) __builtin_prefetch(w + AHEAD * ROWS * WIDTH * size + b);
        for (int r = 0; r < ROWS; r++) {
            vec v = load(w + r * WIDTH * size, kind);
            for (int m = 0; m < M; m++) sum[m][r] += *(const vec *)(x + m * K + k) * v;
        }
    }
    for (int m = 0; m < M; m++)
        for (int r = 0; r < wanted; r++) y[m * N + r] = total(sum[m][r]) * scale[r] + bias[r];
}

static inline __attribute__((always_inline)) void product(
    int kind, const float *x, const char *w, const float *scale, const float *bias, float *y, int64_t M, int64_t N, int64_t K)
{
    const int size = kind == FP32 ? 4 : kind == BF16 ? 2 : 1;
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < N; n += ROWS) {
        const char *v = w + n * K * size;
        const float *s = scale + n, *b = bias + n;
        int wanted = N - n < ROWS ? N - n : ROWS;
        int64_t m = 0;
        for (; m + 4 <= M; m += 4) tile(kind, 4, x + m * K, v, s, b, y + m * N + n, N, K, wanted);
        for (; m + 2 <= M; m += 2) tile(kind, 2, x + m * K, v, s, b, y + m * N + n, N, K, wanted);
        for (; m < M; m++) tile(kind, 1, x + m * K, v, s, b, y + m * N + n, N, K, wanted);
    }
}

/* x (M, K), w packed, scale (N), bias (N) -> y (M, N). K is a multiple of WIDTH. */
void linear(
    int kind, const float *x, const char *w, const float *scale, const float *bias, float *y, int64_t M, int64_t N, int64_t K)
{
    switch (kind) {
    case FP32: product(FP32, x, w, scale, bias, y, M, N, K); break;
    case BF16: product(BF16, x, w, scale, bias, y, M, N, K); break;
    case INT8: product(INT8, x, w, scale, bias, y, M, N, K); break;
    }
}
