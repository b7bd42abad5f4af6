#error "cuda_pipeline.h is not emulated: use the cp.async wrappers of cuda/lib/ptx.cuh"
