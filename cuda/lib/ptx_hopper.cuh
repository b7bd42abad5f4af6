// Wrappers of the instructions that only Hopper (sm_90a) has: wgmma, "warpgroup matrix
// multiply-accumulate", its fences and its waits. All other inline PTX is in lib/ptx.cuh, whose
// rules hold here too: generic pointers, and a host version for the emulator.
//
// A warpgroup is four neighbouring warps; the number of the first is a multiple of four. One wgmma
// multiplies a 64 x 16 matrix by a 16 x (8 N) matrix, N = 8 or 16, and adds the product to an
// accumulator in registers. Each warp gets 16 of the 64 rows, in the fragments of mma.m16n8
// (lib/ptx.cuh): d[n] holds columns [8 n, 8 n + 8). The right operand lies in shared memory, the
// left one there or in registers. lib/wgmma_tiles.cuh has pictures of both layouts.
//
// Products run asynchronously, in four steps:
//
//    wgmma_fence     registers that were written are ready to be used by products
//    wgmma_bf16      starts a product; several may follow one another
//    wgmma_commit    closes the group of products started so far
//    wgmma_wait      waits until a group is complete
//
// Between the fence and the end of the wait nobody may touch the registers of the products, and
// nobody may write to their tiles in shared memory.
//
// Neither older nor newer GPUs have these instructions: on all others than sm_90a, wgmma_fence
// traps.
//
// Source: PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions". Two
// idioms are those of CUTLASS: the list of operands with a predicate for `accumulate` in
// wgmma_bf16, and the empty asm of touch_registers.
#pragma once

#include "lib/ptx.cuh"

// 1 where wgmma exists. The one place that knows.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define PTX_HAS_WGMMA 1
#else
#define PTX_HAS_WGMMA 0
#endif

// Where a matrix lies in shared memory, and in which layout; lib/wgmma_tiles.cuh makes these.
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

// The compiler does not know that a started product still uses its registers. It might move them,
// or use them before the wait. This makes it believe that they change here, so that it does
// neither.
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

// Before the first product of a group: the products that follow see what was written to the
// accumulator d and to left operands.
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

// Waits until at most the newest GROUPS_LEFT groups are in flight. d is the accumulator of a group
// that is then complete.
template <int GROUPS_LEFT, int N>
__device__ __forceinline__ void wgmma_wait(float (&d)[N][4]) {
#if PTX_HAS_WGMMA
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS_LEFT) : "memory");
    touch_registers(d);
#endif
}

// d = a b, or d += a b if `accumulate`, for 64 x 16 times 16 x (8 N), bf16 with float32 sums. A row
// of b's tile holds a column of b, or with B_IS_ROWS a row of b (imm-trans-b of the PTX ISA).
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

// The same with a in shared memory; a row of its tile holds a row of a.
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

// Makes visible to wgmma what this thread wrote to shared memory, by stores or by finished
// cp.async: wgmma reads by another path (the async proxy). It comes before the barrier at which
// other threads wait for the data.
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
