// GELU, rung 3: a thread takes a pack, 16 bytes, with one load and one store.
//
// A warp now asks for 512 bytes at once instead of 128 (float) or 64 (bfloat16). The bytes are the
// same; the requests, and the instructions around them, are a quarter or an eighth.
// lab: grid = ceil_div(N, 256 * PACK_SIZE), block = 256
#include "lib/packs.cuh"

extern "C" __global__ void gelu_3(floatX* out, const floatX* inp, long long N) {
    const long long i = global_thread() * PACK_SIZE;
    if (i >= N) return;
    Pack x = load_pack(inp + i);
#pragma unroll
    for (int k = 0; k < PACK_SIZE; k++) {
        const float twice_u = 1.5957691216057308f * x[k] * (1.0f + 0.044715f * x[k] * x[k]);
        x[k] = __fdividef(x[k], 1.0f + __expf(-twice_u));
    }
    store(out + i, x);
}
