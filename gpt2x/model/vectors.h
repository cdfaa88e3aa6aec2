/* Vectors of sixteen floats, of which block.c and train.c are made. */
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

enum { WIDTH = 16 }; /* numbers in a vector */

typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef float half __attribute__((vector_size(2 * WIDTH)));
typedef float quarter __attribute__((vector_size(WIDTH)));
typedef uint32_t bits __attribute__((vector_size(4 * WIDTH)));
typedef int32_t ints __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t shorts __attribute__((vector_size(2 * WIDTH), aligned(2)));

#define INLINE static inline __attribute__((always_inline)) /* so that constants given to it are constants in it */

/* WIDTH numbers of bf16, which is the upper half of a float. */
INLINE vec from_bf16(const void *p)
{
#ifdef __AVX512F__ /* what the generic line means; gcc 12 makes slow code of it */
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16);
#else
    return (vec)(__builtin_convertvector(*(const shorts *)p, bits) << 16);
#endif
}

INLINE float total(vec v)
{
    half h[2];
    quarter q[2];
    memcpy(h, &v, sizeof v);
    half s = h[0] + h[1];
    memcpy(q, &s, sizeof s);
    quarter t = q[0] + q[1];
    return (t[0] + t[1]) + (t[2] + t[3]);
}
