// Half precision: storage and conversion. cuda_bf16.h says why there is no arithmetic.
#pragma once
#include "math_functions.h"
#include "vector_types.h"

namespace emu {

// Round to nearest even, in integers: not every supported g++ has _Float16.
inline unsigned short half_bits(float value) {
    unsigned u = bits<unsigned>(value), sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fff;
    if (magnitude >= 0x477ff000u) return (unsigned short)(sign | 0x7c00u);
    if (magnitude < 0x38800000u) {
        // Subnormal: after adding 0.5, the last bit of the float is the last bit of the half, so
        // the addition rounds.
        float shifted = bits<float>(magnitude) + 0.5f;
        return (unsigned short)(sign | (bits<unsigned>(shifted) - bits<unsigned>(0.5f)));
    }
    unsigned rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return (unsigned short)(sign | ((rounded - 0x38000000u) >> 13));
}

inline float half_value(unsigned short raw) {
    unsigned sign = unsigned(raw & 0x8000u) << 16;
    unsigned exponent = raw >> 10 & 31u, fraction = raw & 1023u;
    if (exponent == 31) return bits<float>(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * float(fraction) * 0x1p-24f;
    return bits<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

}  // namespace emu

struct __half {
    unsigned short raw;
    __half() = default;
    __half(float value) : raw(emu::half_bits(value)) {}
    operator float() const { return emu::half_value(raw); }
};
struct alignas(4) __half2 {
    __half x, y;
};
typedef __half half;
typedef __half2 half2;

inline __half __float2half(float value) { return __half(value); }
inline __half __float2half_rn(float value) { return __half(value); }
inline float __half2float(__half value) { return value; }
inline unsigned short __half_as_ushort(__half value) { return value.raw; }
inline __half __ushort_as_half(unsigned short raw) {
    __half value;
    value.raw = raw;
    return value;
}
inline __half2 __floats2half2_rn(float low, float high) { return {low, high}; }
inline float2 __half22float2(__half2 pair) { return {float(pair.x), float(pair.y)}; }
inline float __low2float(__half2 pair) { return pair.x; }
inline float __high2float(__half2 pair) { return pair.y; }
