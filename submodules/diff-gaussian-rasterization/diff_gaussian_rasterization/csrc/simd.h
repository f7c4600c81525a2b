// Sixteen floats at a time, one tile row. Three implementations: AVX-512, the vector extensions of GCC and Clang
// (AVX2, NEON, anything), and plain loops. Lanes beyond a mask may hold garbage; select() drops it, no lane traps.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC bug 105593: its own header warns when inlined
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace dgr {

#if defined(__AVX512F__) && defined(__GNUC__)

using F16 = __m512;
using M16 = __mmask16;

inline F16 splat(float x) {
    return _mm512_set1_ps(x);
}
inline F16 load(const float* p) {
    return _mm512_loadu_ps(p);
}
inline void store(float* p, F16 x) {
    _mm512_storeu_ps(p, x);
}
inline F16 fma(F16 a, F16 b, F16 c) {
    return _mm512_fmadd_ps(a, b, c);
}
inline F16 min(F16 a, F16 b) {
    return _mm512_min_ps(a, b);
}
inline F16 max(F16 a, F16 b) {
    return _mm512_max_ps(a, b);
}
inline M16 greater_equal(F16 a, F16 b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ);
}
inline M16 both(M16 a, M16 b) {
    return a & b;
}
inline bool any(M16 m) {
    return m != 0;
}
inline F16 select(M16 m, F16 a, F16 b) {
    return _mm512_mask_blend_ps(m, b, a);
}
inline F16 zero_unless(M16 m, F16 a) {
    return _mm512_maskz_mov_ps(m, a);
}
inline F16 negative_abs(F16 a) {
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(a), _mm512_set1_epi32(INT32_MIN)));
}
inline float sum(F16 a) {
    return _mm512_reduce_add_ps(a);
}
// Estimate and one Newton step: 2 units in the last place, a third of the time of a division.
inline F16 reciprocal(F16 a) {
    const F16 estimate = _mm512_rcp14_ps(a);
    return _mm512_fmadd_ps(estimate, _mm512_fnmadd_ps(a, estimate, _mm512_set1_ps(1.0f)), estimate);
}
// 2^n, where `shifted` holds n + 127 in its lowest bits.
inline F16 power_of_two(F16 shifted) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(shifted), 23));
}

#elif defined(__GNUC__)

typedef float F16 __attribute__((vector_size(64)));
typedef std::int32_t M16 __attribute__((vector_size(64)));

inline F16 splat(float x) {
    return F16{} + x;
}
inline F16 load(const float* p) {
    F16 x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
inline void store(float* p, F16 x) {
    std::memcpy(p, &x, sizeof x);
}
inline F16 fma(F16 a, F16 b, F16 c) {
    return a * b + c;
}
inline F16 min(F16 a, F16 b) {
    return a < b ? a : b;
}
inline F16 max(F16 a, F16 b) {
    return a > b ? a : b;
}
inline M16 greater_equal(F16 a, F16 b) {
    return a >= b;
}
inline M16 both(M16 a, M16 b) {
    return a & b;
}
inline bool any(M16 m) {
    std::int64_t words[8];
    std::memcpy(words, &m, sizeof words);
    return ((words[0] | words[1]) | (words[2] | words[3]) | (words[4] | words[5]) | (words[6] | words[7])) != 0;
}
inline F16 select(M16 m, F16 a, F16 b) {
    return m ? a : b;
}
inline F16 zero_unless(M16 m, F16 a) {
    return reinterpret_cast<F16>(m & reinterpret_cast<M16>(a));
}
inline F16 negative_abs(F16 a) {
    return reinterpret_cast<F16>(reinterpret_cast<M16>(a) | INT32_MIN);
}
inline F16 power_of_two(F16 shifted) {
    return reinterpret_cast<F16>(reinterpret_cast<M16>(shifted) << 23);
}
inline float sum(F16 a) {
    float half[8];
    for (int i = 0; i < 8; ++i) half[i] = a[i] + a[i + 8];
    for (int i = 0; i < 4; ++i) half[i] += half[i + 4];
    return (half[0] + half[2]) + (half[1] + half[3]);
}

#else

struct F16 {
    float v[16];
};
using M16 = std::uint32_t;

#define DGR_LANES(expression)                         \
    F16 r;                                            \
    for (int i = 0; i < 16; ++i) r.v[i] = expression; \
    return r
inline F16 splat(float x) {
    DGR_LANES(x);
}
inline F16 load(const float* p) {
    DGR_LANES(p[i]);
}
inline void store(float* p, const F16& x) {
    std::memcpy(p, x.v, sizeof x.v);
}
inline F16 operator+(const F16& a, const F16& b) {
    DGR_LANES(a.v[i] + b.v[i]);
}
inline F16 operator-(const F16& a, const F16& b) {
    DGR_LANES(a.v[i] - b.v[i]);
}
inline F16 operator*(const F16& a, const F16& b) {
    DGR_LANES(a.v[i] * b.v[i]);
}
inline F16 operator/(const F16& a, const F16& b) {
    DGR_LANES(a.v[i] / b.v[i]);
}
inline F16& operator+=(F16& a, const F16& b) {
    return a = a + b;
}
inline F16 fma(const F16& a, const F16& b, const F16& c) {
    DGR_LANES(a.v[i] * b.v[i] + c.v[i]);
}
inline F16 min(const F16& a, const F16& b) {
    DGR_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]);
}
inline F16 max(const F16& a, const F16& b) {
    DGR_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]);
}
inline M16 greater_equal(const F16& a, const F16& b) {
    M16 m = 0;
    for (int i = 0; i < 16; ++i) m |= static_cast<M16>(a.v[i] >= b.v[i]) << i;
    return m;
}
inline M16 both(M16 a, M16 b) {
    return a & b;
}
inline bool any(M16 m) {
    return m != 0;
}
inline F16 select(M16 m, const F16& a, const F16& b) {
    DGR_LANES((m >> i & 1) ? a.v[i] : b.v[i]);
}
inline F16 zero_unless(M16 m, const F16& a) {
    DGR_LANES((m >> i & 1) ? a.v[i] : 0.0f);
}
inline F16 negative_abs(const F16& a) {
    DGR_LANES(a.v[i] < 0 ? a.v[i] : -a.v[i]);
}
inline F16 reciprocal(const F16& a) {
    DGR_LANES(1.0f / a.v[i]);
}
inline F16 power_of_two(const F16& shifted) {
    F16 r;
    for (int i = 0; i < 16; ++i) {
        std::uint32_t bits;
        std::memcpy(&bits, &shifted.v[i], 4);
        bits <<= 23;
        std::memcpy(&r.v[i], &bits, 4);
    }
    return r;
}
inline float sum(const F16& a) {
    float half[8];
    for (int i = 0; i < 8; ++i) half[i] = a.v[i] + a.v[i + 8];
    for (int i = 0; i < 4; ++i) half[i] += half[i + 4];
    return (half[0] + half[2]) + (half[1] + half[3]);
}
#undef DGR_LANES

#endif

// Ask for memory that will be read soon.
inline void prefetch(const void* address) {
#if defined(__GNUC__)
    __builtin_prefetch(address);
#else
    (void)address;
#endif
}

// 2^x to 2 units in the last place for -126 <= x <= 126. The Taylor series of 2^r on [-1/2, 1/2], where six terms after
// the first leave a relative error of 1e-8, less than float32 resolves.
inline F16 exp2(F16 x) {
    const F16 magic = splat(12583039.0f);  // 1.5 * 2^23 + 127: the sum's low bits are the biased exponent
    const F16 shifted = x + magic;
    const F16 r = x - (shifted - magic);
    F16 p = splat(1.5403530393e-4f);
    p = fma(p, r, splat(1.3333558146e-3f));
    p = fma(p, r, splat(9.6181291076e-3f));
    p = fma(p, r, splat(5.5504108665e-2f));
    p = fma(p, r, splat(2.4022650696e-1f));
    p = fma(p, r, splat(6.9314718056e-1f));
    p = fma(p, r, splat(1.0f));
    return p * power_of_two(shifted);
}

}  // namespace dgr
