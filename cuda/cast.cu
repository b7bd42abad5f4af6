// Rounds float to bfloat16, to nearest and ties to even; contract in ops/cast.py.
#include "lib/packs.cuh"

// out = inp; both num_packs * 8 elements. One thread per 8 elements.
extern "C" __global__ void to_bfloat16(__nv_bfloat16* out, const float* inp, long long num_packs) {
    long long pack = global_thread();
    if (pack >= num_packs) return;
    store(out + pack * 8, load<8>(inp + pack * 8));
}
