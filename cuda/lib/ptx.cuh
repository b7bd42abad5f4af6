// Inline PTX; Hopper's own instructions are in ptx_hopper.cuh, and no other file holds any. The
// wrappers take generic pointers, so that the emulator can replace this header by a host version.
//
// Fragments of mma.m16n8 (lane = threadIdx.x % 32, g = lane / 4, t = lane % 4), C and D:
//   c[0] (g, 2t)  c[1] (g, 2t + 1)  c[2] (g + 8, 2t)  c[3] (g + 8, 2t + 1)
// bf16, k = 16, two values per register, the lower half first:
//   a[0] (g, 2t..)  a[1] (g + 8, 2t..)  a[2] (g, 2t + 8..)  a[3] (g + 8, 2t + 8..)
//   b[0] (k = 2t.., n = g)  b[1] (k = 2t + 8.., n = g)
// tf32, k = 8:
//   a[0] (g, t)  a[1] (g + 8, t)  a[2] (g, t + 4)  a[3] (g + 8, t + 4)
//   b[0] (k = t, n = g)  b[1] (k = t + 4, n = g)
//
// The tensor-core wrappers need sm_80 and trap below it; cp.async becomes a plain copy there.
#pragma once

// 1 where mma for bf16 and tf32, and cp.async, exist. The one place that knows.
#if __CUDA_ARCH__ >= 800
#define PTX_HAS_SM80 1
#else
#define PTX_HAS_SM80 0
#endif

#ifdef CUPYGPT_EMULATOR
#include "ptx_emulated.h"
#else

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// __syncthreads for one of up to 15 groups of THREADS neighbouring threads, whole warps.
template <int THREADS>
__device__ __forceinline__ void sync_group(int group) {
    asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(THREADS) : "memory");
}

// d = a b + c for 16 x 16 times 16 x 8; products of bf16, sums in float32. d may be c.
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4],
                                                  const unsigned (&b)[2], const float (&c)[4]) {
#if PTX_HAS_SM80
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
#else
    __trap();
#endif
}

// d = a b + c for 16 x 8 times 8 x 8; operands are float32 bits of which tf32's 10 bits of fraction
// count (see tf32_round), sums in float32. d may be c.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4],
                                                 const unsigned (&b)[2], const float (&c)[4]) {
#if PTX_HAS_SM80
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]),
          "f"(c[2]), "f"(c[3]));
#else
    __trap();
#endif
}

// The bits of a float32 rounded to tf32: to nearest, ties away from zero.
__device__ __forceinline__ unsigned tf32_round(float value) {
    unsigned bits;
#if PTX_HAS_SM80
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#else
    bits = __float_as_uint(value);
    __trap();
#endif
    return bits;
}

// 2^x to about 2 ulp in one instruction; results below 2^-126 become 0.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 8 x 8 matrices of 16-bit elements from shared memory. Lane 8 m + i gives the address of row i
// (16 bytes, aligned) of matrix m. Without trans, lane 4 i + j receives elements 2 j and 2 j + 1 of
// row i; with it, of column i. ldmatrix exists from sm_75 on, the oldest architecture supported.
__device__ __forceinline__ void ldmatrix_x2(unsigned (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(unsigned (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Asynchronous copies from global to shared memory, both sides aligned to their size. The data is
// there for the copying thread after cp_async_wait, for other threads after a barrier behind that.
// The _zfill forms read only source_bytes of the source (0 reads nothing: the address may then be
// anything) and fill the rest with zeros.
#if PTX_HAS_SM80

// 16 bytes go around the L1 cache (.cg); smaller copies have no such form.
__device__ __forceinline__ void cp_async16(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
                 "l"(global)
                 : "memory");
}
__device__ __forceinline__ void cp_async16_zfill(void* shared, const void* global,
                                                 int source_bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(source_bytes)
                 : "memory");
}
__device__ __forceinline__ void cp_async4_zfill(void* shared, const void* global,
                                                int source_bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(source_bytes)
                 : "memory");
}

// Closes the group of copies issued since the last commit.
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most the newest GROUPS_LEFT committed groups of this thread are in flight.
template <int GROUPS_LEFT>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS_LEFT) : "memory");
}

#else

__device__ __forceinline__ void cp_async16(void* shared, const void* global) {
    *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
}

// Element by element: source_bytes may end at any one of 16 bits.
template <int BYTES>
__device__ __forceinline__ void copy_zfill(void* shared, const void* global, int source_bytes) {
    const auto* source = static_cast<const unsigned short*>(global);
    for (int i = 0; i < BYTES / 2; i++)
        static_cast<unsigned short*>(shared)[i] = 2 * i + 2 <= source_bytes ? source[i] : 0;
}
__device__ __forceinline__ void cp_async16_zfill(void* shared, const void* global,
                                                 int source_bytes) {
    copy_zfill<16>(shared, global, source_bytes);
}
__device__ __forceinline__ void cp_async4_zfill(void* shared, const void* global,
                                                int source_bytes) {
    copy_zfill<4>(shared, global, source_bytes);
}
__device__ __forceinline__ void cp_async_commit() {}
template <int GROUPS_LEFT>
__device__ __forceinline__ void cp_async_wait() {}

#endif

#endif  // CUPYGPT_EMULATOR
