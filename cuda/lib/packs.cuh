// Packs: 128-bit accesses to floatX and float, and the index of a thread.
//
// floatX is the type of parameters, activations and gradients of activations: float or
// __nv_bfloat16, by -DfloatX. Gradients of parameters are float, and so is all arithmetic.
//
//    16 bytes of memory, a pack:   bfloat16  | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 |
//                                  float     |   0   |   1   |   2   |   3   |
//
// A thread loads a pack with one instruction, computes with its elements, and stores a pack with
// one instruction. Neighbouring threads take neighbouring packs. The type Pack holds the same
// elements as floats in registers; RawPack holds them as they lie in memory.
#pragma once
#include <cuda_bf16.h>

constexpr int WARP = 32;
constexpr unsigned FULL_WARP = 0xffffffffu;

// ---- floatX <-> float -------------------------------------------------------------------------

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16(x);
}

// ---- 128-bit accesses -------------------------------------------------------------------------

// Elements of floatX in one 128-bit access: 4 or 8.
constexpr int PACK_SIZE = 16 / sizeof(floatX);

// N neighbouring elements, as floats in registers.
template <int N>
struct Floats {
    float values[N];
    __device__ __forceinline__ float& operator[](int i) { return values[i]; }
    __device__ __forceinline__ float operator[](int i) const { return values[i]; }
};
using Pack = Floats<PACK_SIZE>;

template <int N>
__device__ __forceinline__ Floats<N> filled(float value) {
    Floats<N> pack;
#pragma unroll
    for (int i = 0; i < N; i++) pack[i] = value;
    return pack;
}

// The two bfloat16 of a 32-bit word, low half first. A bfloat16 is the upper half of a float.
__device__ __forceinline__ void unpack_bfloat16(float& low, float& high, unsigned word) {
    low = __uint_as_float(word << 16);
    high = __uint_as_float(word & 0xffff0000u);
}
__device__ __forceinline__ unsigned pack_bfloat16(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);  // one instruction from sm_80 on
    return *reinterpret_cast<unsigned*>(&pair);
}

// Loads N elements. N is a multiple of the elements in 16 bytes, the address a multiple of 16
// bytes.
template <int N>
__device__ __forceinline__ Floats<N> load(const float* address) {
    static_assert(N % 4 == 0, "whole 128-bit words");
    Floats<N> pack;
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        float4 word = *reinterpret_cast<const float4*>(address + i);
        pack[i] = word.x, pack[i + 1] = word.y, pack[i + 2] = word.z, pack[i + 3] = word.w;
    }
    return pack;
}
template <int N>
__device__ __forceinline__ Floats<N> load(const __nv_bfloat16* address) {
    static_assert(N % 8 == 0, "whole 128-bit words");
    Floats<N> pack;
#pragma unroll
    for (int i = 0; i < N; i += 8) {
        uint4 word = *reinterpret_cast<const uint4*>(address + i);
        unpack_bfloat16(pack[i], pack[i + 1], word.x);
        unpack_bfloat16(pack[i + 2], pack[i + 3], word.y);
        unpack_bfloat16(pack[i + 4], pack[i + 5], word.z);
        unpack_bfloat16(pack[i + 6], pack[i + 7], word.w);
    }
    return pack;
}
__device__ __forceinline__ Pack load_pack(const floatX* address) {
    return load<PACK_SIZE>(address);
}

// For data that is loaded long before it is used: in bfloat16 it takes half the registers of a
// Pack.
struct RawPack {
    uint4 words;
};
__device__ __forceinline__ RawPack load_raw(const floatX* address) {
    return {*reinterpret_cast<const uint4*>(address)};
}
__device__ __forceinline__ Pack unpack(const RawPack& raw) {
    const unsigned words[4] = {raw.words.x, raw.words.y, raw.words.z, raw.words.w};
    Pack pack;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if constexpr (PACK_SIZE == 4)
            pack[i] = __uint_as_float(words[i]);
        else
            unpack_bfloat16(pack[2 * i], pack[2 * i + 1], words[i]);
    }
    return pack;
}

// Stores N elements, rounded to nearest; alignment as for load.
template <int N>
__device__ __forceinline__ void store(float* address, const Floats<N>& pack) {
    static_assert(N % 4 == 0, "whole 128-bit words");
#pragma unroll
    for (int i = 0; i < N; i += 4)
        *reinterpret_cast<float4*>(address + i) =
            make_float4(pack[i], pack[i + 1], pack[i + 2], pack[i + 3]);
}
template <int N>
__device__ __forceinline__ void store(__nv_bfloat16* address, const Floats<N>& pack) {
    static_assert(N % 8 == 0, "whole 128-bit words");
#pragma unroll
    for (int i = 0; i < N; i += 8)
        *reinterpret_cast<uint4*>(address + i) = make_uint4(
            pack_bfloat16(pack[i], pack[i + 1]), pack_bfloat16(pack[i + 2], pack[i + 3]),
            pack_bfloat16(pack[i + 4], pack[i + 5]), pack_bfloat16(pack[i + 6], pack[i + 7]));
}

// A Pack rounded to nearest, as it will lie in memory; and its store.
__device__ __forceinline__ RawPack pack_raw(const Pack& pack) {
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if constexpr (PACK_SIZE == 4)
            words[i] = __float_as_uint(pack[i]);
        else
            words[i] = pack_bfloat16(pack[2 * i], pack[2 * i + 1]);
    }
    return {make_uint4(words[0], words[1], words[2], words[3])};
}
__device__ __forceinline__ void store_raw(floatX* address, const RawPack& raw) {
    *reinterpret_cast<uint4*>(address) = raw.words;
}

// As store, for data that is not read again soon: the hint (__stcs) lets a cache evict it first.
template <int N>
__device__ __forceinline__ void store_streaming(float* address, const Floats<N>& pack) {
#pragma unroll
    for (int i = 0; i < N; i += 4)
        __stcs(reinterpret_cast<float4*>(address + i),
               make_float4(pack[i], pack[i + 1], pack[i + 2], pack[i + 3]));
}
template <int N>
__device__ __forceinline__ void store_streaming(__nv_bfloat16* address, const Floats<N>& pack) {
#pragma unroll
    for (int i = 0; i < N; i += 8)
        __stcs(
            reinterpret_cast<uint4*>(address + i),
            make_uint4(pack_bfloat16(pack[i], pack[i + 1]), pack_bfloat16(pack[i + 2], pack[i + 3]),
                       pack_bfloat16(pack[i + 4], pack[i + 5]),
                       pack_bfloat16(pack[i + 6], pack[i + 7])));
}

// ---- indices ----------------------------------------------------------------------------------

// Index of this thread in a one-dimensional grid, and the number of all its threads.
__device__ __forceinline__ long long global_thread() {
    return (long long)blockIdx.x * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ long long global_threads() { return (long long)gridDim.x * blockDim.x; }
