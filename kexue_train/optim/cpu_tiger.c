/* One pass over memory for each half of Tiger's rule. cpu_tiger.py compiles this file, and says what each line means.

   Every operation rounds as PyTorch's own does (fmaf where its add with a factor fuses the two), so the results are the
   same bits. The compiler must not fuse or reorder anything by itself: -ffp-contract=off and no -ffast-math. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t bits_of(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }
static inline float float_of(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
static inline float wide(uint16_t half) { return float_of((uint32_t)half << 16); }
static inline float sign(float value) { return (float)((value > 0) - (value < 0)); }

static inline uint32_t finalise(uint32_t word) {
    word = (word ^ (word >> 16)) * MULTIPLIER_0;
    word = (word ^ (word >> 15)) * MULTIPLIER_1;
    return word ^ (word >> 15);
}

/* value, rounded to one of its two bf16 neighbours by the 16 random bits of its place in a stream. */
static inline uint16_t rounded(float value, uint64_t place, uint32_t key_0, uint32_t key_1) {
    uint32_t pair = finalise(finalise((uint32_t)(place >> 1) ^ key_0) ^ key_1);
    uint32_t random = place & 1 ? pair >> 16 : pair & 0xFFFF;
    uint32_t kept = (value != value) ? bits_of(value) | 0x400000 : bits_of(value) + random;
    return (uint16_t)(kept >> 16);
}

void fold_float32(float *restrict m, const float *restrict g, size_t n, float decay, float weight) {
    for (size_t i = 0; i < n; i++) m[i] = fmaf(weight, g[i], decay * m[i]);
}

void fold_bfloat16(uint16_t *restrict m, const uint16_t *restrict g, size_t n, float decay, float weight,
                   uint64_t first, uint32_t key_0, uint32_t key_1) {
    for (size_t i = 0; i < n; i++)
        m[i] = rounded(fmaf(weight, wide(g[i]), decay * wide(m[i])), first + i, key_0, key_1);
}

/* [rows, width], with a step and a decay for each row. */
void move_rows_float32(float *restrict p, const float *restrict m, size_t rows, size_t width,
                       const float *restrict step, const float *restrict decay) {
    for (size_t row = 0; row < rows; row++, p += width, m += width)
        for (size_t i = 0; i < width; i++) p[i] -= fmaf(decay[row], p[i], sign(m[i]) * step[row]);
}

void move_rows_bfloat16(uint16_t *restrict p, const uint16_t *restrict m, size_t rows, size_t width,
                        const float *restrict step, const float *restrict decay,
                        uint64_t first, uint32_t key_0, uint32_t key_1) {
    for (size_t row = 0; row < rows; row++, p += width, m += width, first += width)
        for (size_t i = 0; i < width; i++) {
            float value = wide(p[i]);
            p[i] = rounded(value - fmaf(decay[row], value, sign(wide(m[i])) * step[row]), first + i, key_0, key_1);
        }
}
