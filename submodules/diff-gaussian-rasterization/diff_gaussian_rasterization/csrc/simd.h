// Sixteen floats at a time, one row of a tile: as one AVX-512 register, as several registers through the vector
// extensions of GCC and Clang (AVX2, SSE, NEON), or one by one. Lanes outside a mask may hold garbage; select() drops
// it, and no lane traps.
#pragma once

#include <cstdint>
#include <cstring>

// Number of parts that make up sixteen floats. DGR_NO_VECTOR_EXTENSIONS is for tests.
#if !defined(__GNUC__) || defined(DGR_NO_VECTOR_EXTENSIONS)
#define DGR_PARTS 16
#elif defined(__AVX512F__)
#define DGR_PARTS 1
#elif defined(__AVX__)
#define DGR_PARTS 2
#else
#define DGR_PARTS 4
#endif

#if DGR_PARTS == 1
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC bug 105593: its own header warns when inlined
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace dgr {

#if DGR_PARTS == 1

using F16 = __m512;
using M16 = __mmask16;

inline F16 broadcast(float x) {
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
// out[i] = sum(x[i]) for eight vectors, with a third of the shuffles of eight sums.
inline void sum8(const F16* x, float* out) {
    const auto four = [](const F16* v) {  // in each quarter: partial sums of v[0], v[1], v[2], v[3]
        const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(v[0], v[1]) + _mm512_unpackhi_ps(v[0], v[1]));
        const __m512d b = _mm512_castps_pd(_mm512_unpacklo_ps(v[2], v[3]) + _mm512_unpackhi_ps(v[2], v[3]));
        return _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)) + _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    };
    const F16 low = four(x), high = four(x + 4);
    const F16 halves = _mm512_shuffle_f32x4(low, high, 0x88) + _mm512_shuffle_f32x4(low, high, 0xdd);
    const F16 whole = halves + _mm512_shuffle_f32x4(halves, halves, 0xb1);  // quarters: low, low, high, high
    const F16 packed = _mm512_shuffle_f32x4(whole, whole, 0x08);
    _mm256_storeu_ps(out, _mm512_castps512_ps256(packed));
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

#else

// A part is one register of the machine; map(f, x, y ...) applies f to every part.
#if DGR_PARTS < 16
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"  // everything is inlined, so it does not matter how vectors are passed
#endif
#if DGR_PARTS == 2
typedef float Part __attribute__((vector_size(32)));
typedef int32_t Bits __attribute__((vector_size(32)));
#else
typedef float Part __attribute__((vector_size(16)));
typedef int32_t Bits __attribute__((vector_size(16)));
#endif
inline Part fill_part(float x) {
    return Part{} + x;
}
inline Bits bits(Part x) {
    return reinterpret_cast<Bits>(x);
}
inline Part part(Bits x) {
    return reinterpret_cast<Part>(x);
}
inline Bits all_ones_if(Bits comparison) {
    return comparison;
}
#else
typedef float Part;
typedef int32_t Bits;
inline Part fill_part(float x) {
    return x;
}
inline Bits bits(Part x) {
    Bits y;
    std::memcpy(&y, &x, sizeof y);
    return y;
}
inline Part part(Bits x) {
    Part y;
    std::memcpy(&y, &x, sizeof y);
    return y;
}
inline Bits all_ones_if(bool comparison) {
    return -static_cast<Bits>(comparison);
}
#endif

// Named members if parts are few: GCC keeps those in registers, but not an array.
template <typename T>
struct Parts {
#if DGR_PARTS == 2
    T a, b;
#elif DGR_PARTS == 4
    T a, b, c, d;
#else
    T v[16];
#endif
};
using F16 = Parts<Part>;
using M16 = Parts<Bits>;

template <typename F, typename... X>
inline auto map(F f, const X&... x) {
#if DGR_PARTS == 2
    return Parts<decltype(f(x.a...))>{f(x.a...), f(x.b...)};
#elif DGR_PARTS == 4
    return Parts<decltype(f(x.a...))>{f(x.a...), f(x.b...), f(x.c...), f(x.d...)};
#else
    Parts<decltype(f(x.v[0]...))> r;
    for (int i = 0; i < 16; ++i) r.v[i] = f(x.v[i]...);
    return r;
#endif
}

template <typename F, typename T>
inline T fold(F f, const Parts<T>& x) {
#if DGR_PARTS == 2
    return f(x.a, x.b);
#elif DGR_PARTS == 4
    return f(f(x.a, x.b), f(x.c, x.d));
#else
    T r = x.v[0];
    for (int i = 1; i < 16; ++i) r = f(r, x.v[i]);
    return r;
#endif
}

inline F16 broadcast(float x) {
    return map([x](Part) { return fill_part(x); }, F16{});
}
// Part by part: copied as a whole, GCC moves the struct through memory in pieces that stall the next load.
inline F16 load(const float* p) {
    constexpr int kLanes = sizeof(Part) / sizeof(float);
    const auto next = [&p](Part) {
        Part x;
        std::memcpy(&x, p, sizeof x);
        p += kLanes;
        return x;
    };
    return map(next, F16{});
}
inline void store(float* p, F16 x) {
    constexpr int kLanes = sizeof(Part) / sizeof(float);
    const auto next = [&p](Part y) {
        std::memcpy(p, &y, sizeof y);
        p += kLanes;
        return y;
    };
    map(next, x);
}
inline F16 operator+(F16 a, F16 b) {
    return map([](Part x, Part y) { return x + y; }, a, b);
}
inline F16 operator-(F16 a, F16 b) {
    return map([](Part x, Part y) { return x - y; }, a, b);
}
inline F16 operator*(F16 a, F16 b) {
    return map([](Part x, Part y) { return x * y; }, a, b);
}
inline F16& operator+=(F16& a, F16 b) {
    return a = a + b;
}
inline F16 fma(F16 a, F16 b, F16 c) {
    return map([](Part x, Part y, Part z) { return x * y + z; }, a, b, c);
}
inline F16 min(F16 a, F16 b) {
    return map([](Part x, Part y) { return x < y ? x : y; }, a, b);
}
inline M16 greater_equal(F16 a, F16 b) {
    return map([](Part x, Part y) { return all_ones_if(x >= y); }, a, b);
}
inline M16 both(M16 a, M16 b) {
    return map([](Bits x, Bits y) { return x & y; }, a, b);
}
inline F16 select(M16 m, F16 a, F16 b) {
    return map([](Bits n, Part x, Part y) { return part((n & bits(x)) | (~n & bits(y))); }, m, a, b);
}
inline F16 zero_unless(M16 m, F16 a) {
    return map([](Bits n, Part x) { return part(n & bits(x)); }, m, a);
}
inline F16 negative_abs(F16 a) {
    return map([](Part x) { return part(bits(x) | INT32_MIN); }, a);
}
inline F16 reciprocal(F16 a) {
    return map([](Part x) { return 1.0f / x; }, a);
}
inline F16 power_of_two(F16 shifted) {
    return map([](Part x) { return part(bits(x) << 23); }, shifted);
}
inline bool any(M16 m) {
    const Bits together = fold([](Bits x, Bits y) { return x | y; }, m);
    uint32_t words[sizeof(Bits) / 4], found = 0;
    std::memcpy(words, &together, sizeof words);
    for (uint32_t word : words) found |= word;
    return found != 0;
}
inline float sum(F16 a) {
    const Part together = fold([](Part x, Part y) { return x + y; }, a);
    float lanes[sizeof(Part) / 4], total = 0;
    std::memcpy(lanes, &together, sizeof lanes);
    for (float lane : lanes) total += lane;
    return total;
}
inline void sum8(const F16* x, float* out) {
    for (int i = 0; i < 8; ++i) out[i] = sum(x[i]);
}

#endif

// Prefetch memory that will be read soon.
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
    const F16 magic = broadcast(12583039.0f);  // 1.5 * 2^23 + 127: the sum's low bits are the biased exponent
    const F16 shifted = x + magic;
    const F16 r = x - (shifted - magic);
    F16 p = broadcast(1.5403530393e-4f);
    p = fma(p, r, broadcast(1.3333558146e-3f));
    p = fma(p, r, broadcast(9.6181291076e-3f));
    p = fma(p, r, broadcast(5.5504108665e-2f));
    p = fma(p, r, broadcast(2.4022650696e-1f));
    p = fma(p, r, broadcast(6.9314718056e-1f));
    p = fma(p, r, broadcast(1.0f));
    return p * power_of_two(shifted);
}

}  // namespace dgr
