// Conversions between float and bfloat16; contract in ops/cast.py. One thread per 8 elements.
#include "lib/packs.cuh"

extern "C" __global__ void to_bfloat16(__nv_bfloat16* out, const float* inp, long long num_packs) {
    long long pack = global_thread();
    if (pack >= num_packs) return;
    store(out + pack * 8, load<8>(inp + pack * 8));
}

extern "C" __global__ void to_float32(float* out, const __nv_bfloat16* inp, long long num_packs) {
    long long pack = global_thread();
    if (pack >= num_packs) return;
    store(out + pack * 8, load<8>(inp + pack * 8));
}
