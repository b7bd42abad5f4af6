// CUDA's keywords in terms of g++.
#pragma once

// The loader finds the entry points by this attribute in the preprocessed text. An inlined kernel
// would lose its instrumentation to its uninstrumented caller, hence noinline.
#define __global__ __attribute__((noinline, emulated_kernel))
#define __device__
#define __host__
// In a function thread_local implies static, and unlike `static` it may follow `extern`. Blocks run
// one after another on one thread, so there is one copy, which is what shared memory is.
#define __shared__ thread_local
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __inline__ inline
#define __noinline__ __attribute__((noinline))
// Read by the loader too: launching more threads than promised fails on a GPU.
#define __launch_bounds__(...) __attribute__((emulated_bounds(EMU_TEXT(__VA_ARGS__))))
#define EMU_TEXT(...) EMU_TEXT_OF_EXPANSION(__VA_ARGS__)
#define EMU_TEXT_OF_EXPANSION(...) #__VA_ARGS__
#define __maxnreg__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __attribute__((aligned(n)))
