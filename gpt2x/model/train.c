/* What training a GPT does beside its matrix products, in few passes over memory: norms, attention, activation, dropout,
 * cross-entropy.
 *
 * Called by fused.py, which says what goes with what; the products between are torch's. Numbers are fp32, or bf16 where a
 * pointer is void and `bf16` says so; sums are always fp32. Widths of states and heads are multiples of 16. Each number is
 * computed by one thread, in an order that does not depend on the number of threads.
 */
#include <math.h>
#include <omp.h>
#include "vectors.h"

enum { ROWS = 4, PARTS = 16 };  /* rows of a tile; parts of a sum over rows */
enum { GELU, RELU2 };           /* activations, numbered as in fused.py */
static const float EPS = 1e-5f; /* of all norms */

#define EACH_VEC(i, n) for (int64_t i = 0; i < (n); i += WIDTH)

INLINE vec all(float x)
{
    return x - (vec){0};
}

/* WIDTH numbers, the first of which is number `i` of p. */
INLINE vec load(const void *p, int64_t i, int bf16)
{
    return bf16 ? from_bf16((const uint16_t *)p + i) : *(const vec *)((const float *)p + i);
}

/* The same to memory; bf16 is rounded to even, what is below its normal numbers perhaps to 0. */
INLINE void store(void *p, int64_t i, vec x, int bf16)
{
    if (!bf16) {
        *(vec *)((float *)p + i) = x;
        return;
    }
#ifdef __AVX512BF16__
    const __m256bh rounded = _mm512_cvtneps_pbh((__m512)x);
    memcpy((uint16_t *)p + i, &rounded, sizeof rounded);
#else
    bits b = (bits)x;
    b = (b + 0x7fff + ((b >> 16) & 1)) >> 16 | ((bits)(x != x) & 0x7fc0); /* what is no number stays so */
#ifdef __AVX512F__
    _mm256_storeu_si256((void *)((uint16_t *)p + i), _mm512_cvtepi32_epi16((__m512i)b));
#else
    *(shorts *)((uint16_t *)p + i) = __builtin_convertvector(b, shorts);
#endif
#endif
}

/* WIDTH numbers of p, where there is one. */
INLINE vec given(const float *p, int64_t i, float otherwise)
{
    return p ? load(p, i, 0) : all(otherwise);
}

INLINE vec larger(vec a, vec b)
{
    ints which = a > b;
    return (vec)(((ints)a & which) | ((ints)b & ~which));
}

INLINE float largest(vec v)
{
    float m = v[0];
    for (int i = 1; i < WIDTH; i++) m = v[i] > m ? v[i] : m;
    return m;
}

/* e^x to about one unit in the last place; 0 below the smallest normal number. x is at most 88. The polynomial is that of
 * expf in Moshier's Cephes library. */
INLINE vec exponential(vec x)
{
    const vec round = all(12582912.0f); /* 1.5 * 2^23: adding it leaves no bits for fractions */
    ints under = x < all(-87.0f); /* false for what is no number, which stays so */
    vec z = x * 1.44269504f + round, n = z - round;
    vec r = x - n * 0.693145752f - n * 1.42860677e-6f; /* ln 2 in two parts, of which the first is exact times n */
    vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    vec power = (vec)(((ints)z << 23) + (127 << 23)); /* 2^n: the last bits of z are those of n */
    return (vec)((ints)(p * power) & ~under);
}

/* -- dropout ------------------------------------------------------------------------------------------------------ */

/* Which numbers are dropped is a function of a seed, their row and their column, so that the way back knows it again. */
struct dropout {
    float p; /* the share of numbers that become 0; the others become 1 / (1 - p) times what they were */
    uint64_t seed;
};

/* Every bit of the result depends on every bit of x: Chris Wellons' lowbias32 (2018), in each of 16 numbers. */
INLINE bits mixed(bits x)
{
    x = (x ^ (x >> 16)) * 0x7feb352d;
    x = (x ^ (x >> 15)) * 0x846ca68b;
    return x ^ (x >> 16);
}

/* A row's own seed. */
INLINE uint32_t row_seed(struct dropout drop, int64_t row)
{
    const bits low = mixed((bits){(uint32_t)drop.seed} + (uint32_t)row), high = {(uint32_t)(drop.seed >> 32)};
    return mixed(low ^ high ^ (uint32_t)(row >> 32))[0];
}

/* What WIDTH numbers of a row, from column i on, are multiplied by. */
INLINE vec kept(struct dropout drop, uint32_t row, int64_t i)
{
    const bits column = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const ints draw = (ints)(mixed((column + (uint32_t)i) * 0x9e3779b9 + row) >> 8); /* 24 bits */
    const ints keep = draw >= (int32_t)(drop.p * 16777216.0f);
    return (vec)((ints)all(1 / (1 - drop.p)) & keep);
}

/* out = x without what is dropped; M rows of C numbers, x in fp32. */
void dropped(const float *x, void *out, int64_t M, int64_t C, float p, uint64_t seed, int bf16)
{
    const struct dropout drop = {p, seed};
#pragma omp parallel for schedule(static)
    for (int64_t m = 0; m < M; m++) {
        const uint32_t row = row_seed(drop, m);
        EACH_VEC(c, C) store(out, m * C + c, load(x, m * C + c, 0) * kept(drop, row, c), bf16);
    }
}

/* -- norms -------------------------------------------------------------------------------------------------------- */

/* sum = x + dropout of y + bias (where there is a y), and out = (sum - mean) / deviation * weight + shift (where there is an
 * out), each row of C numbers. What is not `centered` has a mean of 0. */
void norm(
    const float *x, const void *y, const float *bias, const float *weight, const float *shift, float *sum, void *out,
    float *stats, int64_t M, int64_t C, int centered, float p, uint64_t seed, int bf16)
{
    const struct dropout drop = {p, seed};
#pragma omp parallel for schedule(static)
    for (int64_t m = 0; m < M; m++) {
        const float *row = x + m * C;
        const uint32_t own = y && p ? row_seed(drop, m) : 0;
        if (y) {
            EACH_VEC(c, C) {
                vec branch = load(y, m * C + c, bf16) + given(bias, c, 0);
                store(sum, m * C + c, load(row, c, 0) + (p ? branch * kept(drop, own, c) : branch), 0);
            }
            row = sum + m * C;
        }
        if (!out) continue;
        vec a = {0}, b = {0};
        if (centered) EACH_VEC(c, C) a += load(row, c, 0);
        const float mean = total(a) / C;
        EACH_VEC(c, C) b += (load(row, c, 0) - mean) * (load(row, c, 0) - mean);
        const float scale = 1 / sqrtf(total(b) / C + EPS);
        stats[2 * m] = mean, stats[2 * m + 1] = scale;
        EACH_VEC(c, C) store(out, m * C + c, (load(row, c, 0) - mean) * scale * given(weight, c, 1) + given(shift, c, 0), bf16);
    }
}

/* From the gradient dout of a norm: dx, to which that of the shortcut, dsum, is added, and those of weight and shift, where
 * they are wanted. `parts` is room for PARTS * 2 * C. */
void norm_backward(
    const float *x, const float *stats, const float *weight, const void *dout, const float *dsum, float *dx, float *dweight,
    float *dshift, float *parts, int64_t M, int64_t C, int centered, int bf16)
{
#pragma omp parallel for schedule(static)
    for (int part = 0; part < PARTS; part++) {
        float *dw = parts + part * 2 * C, *ds = dw + C;
        memset(dw, 0, 2 * C * sizeof *dw);
        for (int64_t m = M * part / PARTS; m < M * (part + 1) / PARTS; m++) {
            const float mean = stats[2 * m], scale = stats[2 * m + 1];
            vec a = {0}, b = {0};
            EACH_VEC(c, C) {
                vec d = load(dout, m * C + c, bf16), hat = (load(x, m * C + c, 0) - mean) * scale, g = d * given(weight, c, 1);
                a += g;
                b += g * hat;
                if (dweight) store(dw, c, load(dw, c, 0) + d * hat, 0);
                if (dshift) store(ds, c, load(ds, c, 0) + d, 0);
            }
            const float ga = centered ? total(a) / C : 0, gb = total(b) / C;
            EACH_VEC(c, C) {
                vec hat = (load(x, m * C + c, 0) - mean) * scale, g = load(dout, m * C + c, bf16) * given(weight, c, 1);
                store(dx, m * C + c, load(dsum, m * C + c, 0) + scale * (g - ga - hat * gb), 0);
            }
        }
    }
    EACH_VEC(c, C) {
        vec w = {0}, h = {0};
        for (int part = 0; part < PARTS; part++) {
            w += load(parts, part * 2 * C + c, 0);
            h += load(parts, part * 2 * C + C + c, 0);
        }
        if (dweight) store(dweight, c, w, 0);
        if (dshift) store(dshift, c, h, 0);
    }
}

/* A norm's output again, from what was kept of it. */
void normed(
    const float *x, const float *stats, const float *weight, const float *shift, void *out, int64_t M, int64_t C, int bf16)
{
#pragma omp parallel for schedule(static)
    for (int64_t m = 0; m < M; m++)
        EACH_VEC(c, C) {
            vec hat = (load(x, m * C + c, 0) - stats[2 * m]) * stats[2 * m + 1];
            store(out, m * C + c, hat * given(weight, c, 1) + given(shift, c, 0), bf16);
        }
}

/* -- activation --------------------------------------------------------------------------------------------------- */

/* The activation of x, and its slope there. GELU has its tanh form: (1 + tanh u) / 2 is s = 1 / (1 + e^-2u), so gelu(x) = x s
 * and its slope s + x s (1 - s) 2u'. */
INLINE vec activation(vec x, int kind, vec *slope)
{
    if (kind == RELU2) {
        vec p = (vec)((ints)x & ~(ints)(x < all(0)));
        *slope = 2.0f * p;
        return p * p;
    }
    vec u2 = x * (1.5957691216f + 0.0713548163f * x * x); /* 2 sqrt(2 / pi) (x + 0.044715 x^3) */
    ints low = u2 < all(-80.0f);
    u2 = (vec)(((ints)u2 & ~low) | ((ints)all(-80.0f) & low));
    vec s = 1.0f / (1.0f + exponential(-u2));
    *slope = s + x * s * (1.0f - s) * (1.5957691216f + 0.2140644488f * x * x);
    return x * s;
}

INLINE void activate_each(const void *x, const float *bias, void *d, void *out, int64_t M, int64_t C, int kind, int bf16)
{
#pragma omp parallel for schedule(static)
    for (int64_t m = 0; m < M; m++)
        EACH_VEC(c, C) {
            vec slope, y = activation(load(x, m * C + c, bf16) + given(bias, c, 0), kind, &slope);
            if (d) store(d, m * C + c, load(d, m * C + c, bf16) * slope, bf16);
            store(out, m * C + c, y, bf16);
        }
}

/* out = the activation of x + bias; x has M rows of C. Where there is a d, the gradient of that, it becomes the one of x. */
void activate(const void *x, const float *bias, void *d, void *out, int64_t M, int64_t C, int kind, int bf16)
{
    if (kind == GELU && !d) activate_each(x, bias, 0, out, M, C, GELU, bf16);
    else if (kind == GELU) activate_each(x, bias, d, out, M, C, GELU, bf16);
    else activate_each(x, bias, d, out, M, C, RELU2, bf16);
}

/* -- attention ---------------------------------------------------------------------------------------------------- */

/* c = a b of ROWS rows of a by W vectors of columns: a's numbers are `row` and `step` apart, rows of b `ldb`; K is inner. */
INLINE void tile(int W, const float *a, int64_t row, int64_t step, const float *b, int64_t ldb, int64_t K, vec c[ROWS][4])
{
    for (int r = 0; r < ROWS; r++)
        for (int w = 0; w < W; w++) c[r][w] = (vec){0};
    for (int64_t k = 0; k < K; k++) {
        vec v[4];
        for (int w = 0; w < W; w++) v[w] = load(b, k * ldb + w * WIDTH, 0);
        for (int r = 0; r < ROWS; r++)
            for (int w = 0; w < W; w++) c[r][w] += a[r * row + k * step] * v[w];
    }
}

/* ROWS rows of c, `ldc` apart: `columns`, a multiple of WIDTH, of a b. */
INLINE void rows(
    const float *a, int64_t row, int64_t step, const float *b, int64_t ldb, int64_t K, float *c, int64_t ldc, int64_t columns)
{
    vec t[ROWS][4];
    for (int64_t j = 0, W; j < columns; j += W * WIDTH) {
        W = (columns - j) / WIDTH;
        if (W >= 4) tile(4, a, row, step, b + j, ldb, K, t), W = 4;
        else if (W == 3) tile(3, a, row, step, b + j, ldb, K, t);
        else if (W == 2) tile(2, a, row, step, b + j, ldb, K, t);
        else tile(1, a, row, step, b + j, ldb, K, t);
        for (int r = 0; r < ROWS; r++)
            for (int w = 0; w < W; w++) store(c, r * ldc + j + w * WIDTH, t[r][w], 0);
    }
}

struct attention {
    const void *qkv;    /* (B, T, 3, N, H) */
    const float *bias;  /* (3, N, H), added to it; or none */
    const float *turns; /* (T, H / 2, 2): rotary positions, cosine and sine; or none */
    int64_t B, T, N, H;
    int64_t threads;    /* as many as there is scratch for */
    struct dropout drop; /* of the weights; rows are those of (B, N, T) */
    int64_t qk_norm;    /* queries and keys are divided by their root mean squares, before they are turned */
    int64_t bf16;
};

INLINE int64_t up(int64_t n, int64_t to)
{
    return (n + to - 1) / to * to;
}

/* Turn pairs of the numbers of y by the angles of `turns`, forwards (1) or back (-1); see rotate in position.py. */
INLINE void turn(const float *turns, float *y, int64_t H, float way)
{
    for (int64_t h = 0; h < H; h += 2) {
        const float cosine = turns[h], sine = way * turns[h + 1], a = y[h], b = y[h + 1];
        y[h] = a * cosine - b * sine;
        y[h + 1] = a * sine + b * cosine;
    }
}

/* The queries (part 0), keys (1) or values (2) of text b, head n and position t, as the product gave them, into x (H); what a
 * norm multiplies them by is returned. */
INLINE float fetch_one(const struct attention *a, int64_t b, int64_t n, int64_t t, int part, float *x)
{
    const int64_t H = a->H, at = ((b * a->T + t) * 3 + part) * a->N * H + n * H;
    vec squares = {0};
    EACH_VEC(h, H) {
        vec v = load(a->qkv, at + h, a->bf16) + given(a->bias, (part * a->N + n) * H + h, 0);
        squares += v * v;
        store(x, h, v, 0);
    }
    return a->qk_norm && part < 2 ? 1 / sqrtf(total(squares) / H + EPS) : 1;
}

/* Those of all T positions, as they are used, times `scale`; filled up with zeros. */
INLINE void fetch(const struct attention *a, int64_t b, int64_t n, int part, float scale, float *out)
{
    const int64_t T = a->T, H = a->H;
    for (int64_t t = 0; t < T; t++) {
        float *x = out + t * H;
        const float factor = scale * fetch_one(a, b, n, t, part, x);
        if (factor != 1) EACH_VEC(h, H) store(x, h, load(x, h, 0) * factor, 0);
        if (a->turns && part < 2) turn(a->turns + t * H, x, H, 1);
    }
    memset(out + T * H, 0, (up(T, ROWS) - T) * H * sizeof *out);
}

/* From g (H), the gradient of a query, key or value as it was used, that of what the product gave, into dqkv. */
INLINE void give_back(const struct attention *a, int64_t b, int64_t n, int64_t t, int part, float *g, void *dqkv)
{
    const int64_t H = a->H, at = ((b * a->T + t) * 3 + part) * a->N * H + n * H;
    float x[H];
    if (a->turns && part < 2) turn(a->turns + t * H, g, H, -1);
    if (a->qk_norm && part < 2) {
        const float scale = fetch_one(a, b, n, t, part, x);
        vec sum = {0};
        EACH_VEC(h, H) sum += load(g, h, 0) * load(x, h, 0);
        const float mean = total(sum) * scale * scale / H;
        EACH_VEC(h, H) store(g, h, scale * (load(g, h, 0) - load(x, h, 0) * mean), 0);
    }
    EACH_VEC(h, H) store(dqkv, at + h, load(g, h, 0), a->bf16);
}

INLINE void transpose(const float *x, float *y, int64_t T, int64_t H, int64_t ldy)
{
    for (int64_t h = 0; h < H; h++) {
        for (int64_t t = 0; t < T; t++) y[h * ldy + t] = x[t * H + h];
        memset(y + h * ldy + T, 0, (ldy - T) * sizeof *y);
    }
}

/* Numbers of scratch that a thread of attend or attend_backward needs. */
int64_t attention_scratch(int64_t T, int64_t H, int backward)
{
    const int64_t R = up(T, ROWS), L = up(T, WIDTH);
    return backward ? 4 * R * H + 2 * H * L + 2 * R * L : 2 * R * H + H * L + ROWS * L;
}

/* y (B, T, N, H): causal attention. sums (B, N, T) get the logarithm of each row's sum of exponentials. */
void attend(const struct attention *a, void *y, float *sums, float *scratch)
{
    const int64_t T = a->T, N = a->N, H = a->H, R = up(T, ROWS), L = up(T, WIDTH), size = attention_scratch(T, H, 0);
#pragma omp parallel for schedule(static) num_threads(a->threads)
    for (int64_t bn = 0; bn < a->B * N; bn++) {
        const int64_t b = bn / N, n = bn % N;
        float *q = scratch + omp_get_thread_num() * size, *v = q + R * H, *k = v + R * H, *p = k + H * L;
        fetch(a, b, n, 1, 1, v);
        transpose(v, k, T, H, L);
        fetch(a, b, n, 0, 1 / sqrtf(H), q);
        fetch(a, b, n, 2, 1, v);
        for (int64_t t0 = 0; t0 < T; t0 += ROWS) {
            const int64_t seen = t0 + ROWS, wide = up(seen, WIDTH) < L ? up(seen, WIDTH) : L;
            rows(q + t0 * H, H, 1, k, L, H, p, L, wide);
            float scale[ROWS];
            for (int r = 0; r < ROWS; r++) {
                float *w = p + r * L;
                for (int64_t j = t0 + r + 1; j < wide; j++) w[j] = -INFINITY;
                vec m = all(-INFINITY), s = {0};
                EACH_VEC(j, wide) m = larger(m, load(w, j, 0));
                const float most = largest(m);
                EACH_VEC(j, wide) {
                    vec e = exponential(load(w, j, 0) - most);
                    s += e;
                    store(w, j, e, 0);
                }
                scale[r] = 1 / total(s);
                if (a->drop.p) {
                    const uint32_t own = row_seed(a->drop, bn * T + t0 + r);
                    EACH_VEC(j, wide) store(w, j, load(w, j, 0) * kept(a->drop, own, j), 0);
                }
                if (t0 + r < T) sums[bn * T + t0 + r] = most - logf(scale[r]);
            }
            float out[ROWS * H];
            rows(p, L, 1, v, H, seen < T ? seen : T, out, H, H);
            for (int r = 0; r < ROWS && t0 + r < T; r++)
                EACH_VEC(h, H) store(y, ((b * T + t0 + r) * N + n) * H + h, load(out, r * H + h, 0) * scale[r], a->bf16);
        }
    }
}

/* The gradient dqkv of what attend was given, from that of y, which it made with `sums`. */
void attend_backward(const struct attention *a, const void *y, const float *sums, const void *dy, void *dqkv, float *scratch)
{
    const int64_t T = a->T, N = a->N, H = a->H, R = up(T, ROWS), L = up(T, WIDTH), size = attention_scratch(T, H, 1);
    const float scale = 1 / sqrtf(H);
#pragma omp parallel for schedule(static) num_threads(a->threads)
    for (int64_t bn = 0; bn < a->B * N; bn++) {
        const int64_t b = bn / N, n = bn % N;
        float *q = scratch + omp_get_thread_num() * size, *k = q + R * H, *d = k + R * H, *g = d + R * H;
        float *kt = g + R * H, *vt = kt + H * L, *p = vt + H * L, *ds = p + R * L;
        fetch(a, b, n, 2, 1, k);
        transpose(k, vt, T, H, L);
        fetch(a, b, n, 1, 1, k);
        transpose(k, kt, T, H, L);
        fetch(a, b, n, 0, scale, q);
        memset(d + T * H, 0, (R - T) * H * sizeof *d);
        for (int64_t t = 0; t < T; t++)
            EACH_VEC(h, H) store(d, t * H + h, load(dy, ((b * T + t) * N + n) * H + h, a->bf16), 0);
        for (int64_t t0 = 0; t0 < T; t0 += ROWS) {
            const int64_t seen = t0 + ROWS, wide = up(seen, WIDTH) < L ? up(seen, WIDTH) : L;
            rows(q + t0 * H, H, 1, kt, L, H, p + t0 * L, L, wide);
            rows(d + t0 * H, H, 1, vt, L, H, ds + t0 * L, L, wide);
            for (int r = 0; r < ROWS; r++) {
                const int64_t t = t0 + r;
                float *w = p + t * L, *dw = ds + t * L;
                if (t >= T) {
                    memset(w, 0, wide * sizeof *w);
                    memset(dw, 0, wide * sizeof *dw);
                    continue;
                }
                vec s = {0};
                EACH_VEC(h, H) s += load(d, t * H + h, 0) * load(y, ((b * T + t) * N + n) * H + h, a->bf16);
                const float mean = total(s), sum = sums[bn * T + t];
                for (int64_t j = t + 1; j < wide; j++) w[j] = -INFINITY;
                const uint32_t own = a->drop.p ? row_seed(a->drop, bn * T + t) : 0;
                EACH_VEC(j, wide) {
                    vec e = exponential(load(w, j, 0) - sum), keep = a->drop.p ? kept(a->drop, own, j) : all(1);
                    store(w, j, e * keep, 0);
                    store(dw, j, e * (load(dw, j, 0) * keep - mean), 0);
                }
            }
            rows(ds + t0 * L, L, 1, k, H, seen < T ? seen : T, g + t0 * H, H, H);
        }
        for (int part = 0; part < 3; part++) {
            if (part) /* keys and values: a column of ds or p, from where it can be seen on */
                for (int64_t j = 0; j < T; j += ROWS)
                    rows((part == 1 ? ds : p) + j * L + j, 1, L, (part == 1 ? q : d) + j * H, H, T - j, g + j * H, H, H);
            for (int64_t t = 0; t < T; t++) {
                if (!part) EACH_VEC(h, H) store(g, t * H + h, load(g, t * H + h, 0) * scale, 0);
                give_back(a, b, n, t, part, g + t * H, dqkv);
            }
        }
    }
}

/* -- cross-entropy ------------------------------------------------------------------------------------------------ */

/* A logit x, or cap * tanh(x / cap); tanh u is 1 - 2 / (1 + e^2u). */
INLINE vec capped(vec x, float cap)
{
    if (!cap) return x;
    vec u2 = x * (2 / cap);
    ints high = u2 > all(80.0f);
    u2 = (vec)(((ints)u2 & ~high) | ((ints)all(80.0f) & high));
    return cap - 2 * cap / (1.0f + exponential(u2));
}

/* The logits of a row from i to n, fewer than WIDTH, filled up with what adds nothing. */
INLINE vec load_end(const void *p, int64_t i, int64_t n, float cap, int bf16)
{
    vec x = {0};
    for (int64_t k = i; k < n; k++) {
        uint32_t b = bf16 ? (uint32_t)((const uint16_t *)p)[k] << 16 : ((const uint32_t *)p)[k];
        float f;
        memcpy(&f, &b, sizeof f);
        x[k - i] = f;
    }
    x = capped(x, cap);
    for (int64_t k = n - i; k < WIDTH; k++) x[k] = -INFINITY;
    return x;
}

INLINE void entropy_each(void *logits, const int64_t *targets, float *losses, int64_t M, int64_t V, float cap, int bf16)
{
    const int64_t whole = V / WIDTH * WIDTH, size = bf16 ? 2 : 4;
#pragma omp parallel for schedule(static)
    for (int64_t m = 0; m < M; m++) {
        char *row = (char *)logits + m * V * size;
        const int64_t target = targets[m];
        if (target < 0) {
            memset(row, 0, V * size);
            losses[m] = 0;
            continue;
        }
        const vec end = load_end(row, whole, V, cap, bf16);
        const float wanted = load_end(row, target, target + 1, cap, bf16)[0];
        vec high = end;
        EACH_VEC(v, whole) high = larger(high, capped(load(row, v, bf16), cap));
        const float most = largest(high);
        vec sum = exponential(end - most);
        EACH_VEC(v, whole) sum += exponential(capped(load(row, v, bf16), cap) - most);
        const float all = total(sum), scale = 1 / all;
        losses[m] = most + logf(all) - wanted;
        EACH_VEC(v, V) {
            const vec x = v < whole ? capped(load(row, v, bf16), cap) : end;
            vec p = exponential(x - most) * scale;
            if (v <= target && target < v + WIDTH) p[target - v] -= 1;
            if (cap) p *= 1.0f - x * x / (cap * cap);
            if (v < whole) {
                store(row, v, p, bf16);
            } else {
                char last[4 * WIDTH];
                store(last, 0, p, bf16);
                memcpy(row + whole * size, last, (V - whole) * size);
            }
        }
    }
}

/* losses (M): the cross-entropy of each row of logits (M, V), capped where `cap` is not 0, with its target; 0 where that is
 * below 0. The logits become its gradient with respect to them: their softmax, less 1 at the target, times the cap's slope. */
void entropy(void *logits, const int64_t *targets, float *losses, int64_t M, int64_t V, float cap, int bf16)
{
    if (cap) entropy_each(logits, targets, losses, M, V, cap, bf16);
    else if (bf16) entropy_each(logits, targets, losses, M, V, 0, 1);
    else entropy_each(logits, targets, losses, M, V, 0, 0);
}
