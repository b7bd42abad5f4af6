// The inline PTX of Hopper's tensor cores (wgmma, "warpgroup matrix multiply-accumulate"), by the
// rules of ptx.cuh: generic pointers, and a host version for the emulator.
//
// A warpgroup is four neighbouring warps, the first a multiple of four. One wgmma computes 64 rows;
// each warp gets 16 of them, in the fragments of mma.m16n8 (ptx.cuh): d[n] holds columns
// [8 n, 8 n + 8). The right operand lies in shared memory, the left one there or in registers.
//
// Products run asynchronously: fence, start products, commit them as a group, wait for the group.
// Until then nobody may touch their registers and shared memory.
//
// These instructions exist on sm_90a and nowhere else, not even on later GPUs: elsewhere the
// wrappers trap.
#pragma once

#include "lib/ptx.cuh"

// 1 where wgmma exists. The one place that knows.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define PTX_HAS_WGMMA 1
#else
#define PTX_HAS_WGMMA 0
#endif

// A matrix in shared memory as wgmma wants it named; wgmma.cuh makes them.
using MatrixDescriptor = unsigned long long;

#ifdef CUPYGPT_EMULATOR
#include "ptx_hopper_emulated.h"
#else

// The registers of an accumulator, as operands of asm.
#define PTX_D8(n)                                                                  \
    "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3]), "+f"(d[n + 1][0]), \
        "+f"(d[n + 1][1]), "+f"(d[n + 1][2]), "+f"(d[n + 1][3])
#define PTX_D32 PTX_D8(0), PTX_D8(2), PTX_D8(4), PTX_D8(6)
#define PTX_D64 PTX_D32, PTX_D8(8), PTX_D8(10), PTX_D8(12), PTX_D8(14)
#define PTX_NAMES32                                                                         \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
    "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PTX_NAMES64                                                                           \
    PTX_NAMES32                                                                               \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, " \
    "%49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// A value that is in flight must not be moved, and one that is awaited not be used before: the
// compiler does not know what wgmma does behind its back. This makes it believe that the registers
// change here.
template <int N>
__device__ __forceinline__ void touch_registers(float (&d)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int r = 0; r < 4; r++) asm volatile("" : "+f"(d[n][r])::"memory");
}
template <int N>
__device__ __forceinline__ void touch_registers(unsigned (&a)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int r = 0; r < 4; r++) asm volatile("" : "+r"(a[n][r])::"memory");
}

// Before the first product of a group: what was written to the accumulator d and to left operands
// is seen by the products that follow.
template <int N>
__device__ __forceinline__ void wgmma_fence(float (&d)[N][4]) {
#if PTX_HAS_WGMMA
    touch_registers(d);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
    __trap();
#endif
}

// Closes the group of products started since the last commit.
__device__ __forceinline__ void wgmma_commit() {
#if PTX_HAS_WGMMA
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Waits until at most the newest GROUPS_LEFT groups are in flight; d belongs to one that is not.
template <int GROUPS_LEFT, int N>
__device__ __forceinline__ void wgmma_wait(float (&d)[N][4]) {
#if PTX_HAS_WGMMA
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS_LEFT) : "memory");
    touch_registers(d);
#endif
}

// d = a b, or d += a b if `accumulate`, for 64 x 16 times 16 x 8 N, bf16 with float32 sums. b's
// rows of memory run along the contraction, or along the columns of b if B_IS_ROWS.
template <bool B_IS_ROWS, int N>
__device__ __forceinline__ void wgmma_bf16(float (&d)[N][4], const unsigned (&a)[4],
                                           MatrixDescriptor b, bool accumulate) {
    static_assert(N == 8 || N == 16, "64 or 128 columns");
#if PTX_HAS_WGMMA
    if constexpr (N == 8)
        asm volatile(
            "{ .reg .pred p; setp.ne.b32 p, %37, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" PTX_NAMES32
            "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38; }"
            : PTX_D32
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)),
              "n"(int(B_IS_ROWS)));
    else
        asm volatile(
            "{ .reg .pred p; setp.ne.b32 p, %69, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" PTX_NAMES64
            "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70; }"
            : PTX_D64
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)),
              "n"(int(B_IS_ROWS)));
#endif
}

// The same with a in shared memory, its rows along the contraction.
template <bool B_IS_ROWS, int N>
__device__ __forceinline__ void wgmma_bf16(float (&d)[N][4], MatrixDescriptor a, MatrixDescriptor b,
                                           bool accumulate) {
    static_assert(N == 8 || N == 16, "64 or 128 columns");
#if PTX_HAS_WGMMA
    if constexpr (N == 8)
        asm volatile(
            "{ .reg .pred p; setp.ne.b32 p, %34, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" PTX_NAMES32
            "}, %32, %33, p, 1, 1, 0, %35; }"
            : PTX_D32
            : "l"(a), "l"(b), "r"(int(accumulate)), "n"(int(B_IS_ROWS)));
    else
        asm volatile(
            "{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" PTX_NAMES64
            "}, %64, %65, p, 1, 1, 0, %67; }"
            : PTX_D64
            : "l"(a), "l"(b), "r"(int(accumulate)), "n"(int(B_IS_ROWS)));
#endif
}

// What this thread wrote to shared memory, by stores or by finished cp.async, becomes visible to
// wgmma, which reads by another path. Before the barrier that others wait at.
__device__ __forceinline__ void fence_for_wgmma() {
#if PTX_HAS_WGMMA
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

#undef PTX_D8
#undef PTX_D32
#undef PTX_D64
#undef PTX_NAMES32
#undef PTX_NAMES64

#endif  // CUPYGPT_EMULATOR
