#error "cuda_fp8.h is not emulated: fp8 is outside the supported set"
