// bfloat16: storage and conversion. It has no arithmetic, on purpose: kernels compute in float, and
// the compiler's message names the operator that is missing.
#pragma once
#include "math_functions.h"
#include "vector_types.h"

namespace emu {
// Round to nearest even; every NaN becomes the canonical one, as cvt.rn.bf16.f32 does.
inline unsigned short bfloat16_bits(float value) {
    unsigned u = bits<unsigned>(value);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (unsigned short)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}
}  // namespace emu

struct __nv_bfloat16 {
    unsigned short raw;
    __nv_bfloat16() = default;
    __nv_bfloat16(float value) : raw(emu::bfloat16_bits(value)) {}
    operator float() const { return emu::bits<float>(unsigned(raw) << 16); }
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;

inline __nv_bfloat16 __float2bfloat16(float value) { return __nv_bfloat16(value); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return __nv_bfloat16(value); }
inline float __bfloat162float(__nv_bfloat16 value) { return value; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.raw; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short raw) {
    __nv_bfloat16 value;
    value.raw = raw;
    return value;
}
inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high) { return {low, high}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 pair) { return {pair.x, pair.y}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) {
    return {low, high};
}
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) { return {low, high}; }
inline float2 __bfloat1622float2(__nv_bfloat162 pair) { return {float(pair.x), float(pair.y)}; }
inline float __low2float(__nv_bfloat162 pair) { return pair.x; }
inline float __high2float(__nv_bfloat162 pair) { return pair.y; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 pair) { return pair.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 pair) { return pair.y; }
