// Dropout. The mask is a function of (seed, step, site, element) and is never stored: forward and
// backward compute the same mask. Contract in ops/dropout.py.
#include "lib/packs.cuh"
#include "lib/philox.cuh"

// out = inp * scale where the element's random word is at least `threshold`, else 0; out may be
// inp. state: seed low, seed high, step. inp[0] is element rng_offset of a larger array, a multiple
// of 4. Elements 4i to 4i + 3 of that array take the four words of counter i. One thread per pack.
extern "C" __global__ void dropout(floatX* out, const floatX* inp, const unsigned* state,
                                   long long rng_offset, long long num_packs, unsigned site,
                                   unsigned threshold, float scale) {
    long long pack = global_thread();
    if (pack >= num_packs) return;
    Pack x = load_pack(inp + pack * PACK_SIZE);
    unsigned key0 = state[0], key1 = state[1], step = state[2];
#pragma unroll
    for (int k = 0; k < PACK_SIZE; k += 4) {
        unsigned long long index = (unsigned long long)(rng_offset + pack * PACK_SIZE + k) / 4;
        uint4 counter = make_uint4((unsigned)index, (unsigned)(index >> 32), step, site);
        uint4 words = philox(counter, key0, key1);
        x[k] = words.x >= threshold ? x[k] * scale : 0.0f;
        x[k + 1] = words.y >= threshold ? x[k + 1] * scale : 0.0f;
        x[k + 2] = words.z >= threshold ? x[k + 2] * scale : 0.0f;
        x[k + 3] = words.w >= threshold ? x[k + 3] * scale : 0.0f;
    }
    store(out + pack * PACK_SIZE, x);
}
