// Built-in vector types with CUDA's alignment: a misaligned 128-bit access is reported.
#pragma once
#include "emulator_abi.h"

#define EMU_VECTOR2(T, NAME)                   \
    struct alignas(2 * sizeof(T)) NAME##2 {    \
        T x, y;                                \
    };                                         \
    inline NAME##2 make_##NAME##2(T x, T y) {  \
        return {x, y};                         \
    }
// CUDA aligns four doubles to 16 bytes, not to 32.
#define EMU_VECTOR4(T, NAME)                                                   \
    struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) NAME##4 {          \
        T x, y, z, w;                                                          \
    };                                                                         \
    inline NAME##4 make_##NAME##4(T x, T y, T z, T w) {                        \
        return {x, y, z, w};                                                   \
    }
#define EMU_VECTOR3(T, NAME)                        \
    struct NAME##3 {                                \
        T x, y, z;                                  \
    };                                              \
    inline NAME##3 make_##NAME##3(T x, T y, T z) {  \
        return {x, y, z};                           \
    }

EMU_VECTOR2(signed char, char) EMU_VECTOR4(signed char, char)
EMU_VECTOR2(unsigned char, uchar) EMU_VECTOR4(unsigned char, uchar)
EMU_VECTOR2(short, short) EMU_VECTOR4(short, short)
EMU_VECTOR2(unsigned short, ushort) EMU_VECTOR4(unsigned short, ushort)
EMU_VECTOR2(int, int) EMU_VECTOR3(int, int) EMU_VECTOR4(int, int)
EMU_VECTOR2(unsigned, uint) EMU_VECTOR4(unsigned, uint)
EMU_VECTOR2(float, float) EMU_VECTOR3(float, float) EMU_VECTOR4(float, float)
EMU_VECTOR2(double, double)
EMU_VECTOR2(long long, longlong)
EMU_VECTOR2(unsigned long long, ulonglong)

inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) {
    return {x, y, z};
}
