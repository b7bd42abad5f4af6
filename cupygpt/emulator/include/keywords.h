// CUDA's keywords for g++.
#pragma once

// The loader finds the entry points by this attribute in the preprocessed text. The caller of a
// kernel is not instrumented, so a kernel that was inlined there would not be checked: noinline.
#define __global__ __attribute__((noinline, emulated_kernel))
#define __device__
#define __host__
// In a function thread_local implies static, and it may follow `extern`, which `static` may not.
// Blocks run one after another on one thread, so there is one copy, as of shared memory.
// constinit keeps g++ from asking, at each use of an array of bfloat16, whether it is initialised.
#define __shared__ __constinit thread_local
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __inline__ inline
#define __noinline__ __attribute__((noinline))
// The loader reads it too: on a GPU, a launch with more threads than promised fails.
#define __launch_bounds__(...) __attribute__((emulated_bounds(EMU_TEXT(__VA_ARGS__))))
#define EMU_TEXT(...) EMU_TEXT_OF_EXPANSION(__VA_ARGS__)
#define EMU_TEXT_OF_EXPANSION(...) #__VA_ARGS__
#define __maxnreg__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __attribute__((aligned(n)))
