#error "mma.h (wmma) is not emulated: use the mma wrappers of cuda/lib/ptx.cuh"
