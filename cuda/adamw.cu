// One AdamW update of all parameters (Loshchilov and Hutter 2019, arXiv:1711.05101), with clipping
// of the gradients; contract in ops/adamw.py.
//
// All parameters of the model lie one after the other in one flat vector. A thread updates one pack
// of it. Weight decay applies to matrices only, so it is on in some stretches of the vector and off
// in others. The launch passes the elements at which it changes; a thread counts the changes up to
// its own element. If the count is odd, decay is on:
//
//    flat vector    | wte   wpe | ln1w   ln1b | qkvw | qkvb | attprojw | attprojb   ln2w   ...
//    decay          |    on     |     off     |  on  | off  |    on    |    off            ...
//                   ^           ^             ^  .   ^      ^          ^
//    changes.at    [0]         [1]           [2] .  [3]    [4]        [5]                  ...
//                                                .
//                                a thread here counts 3: decay is on
//
// MAX_CHANGES comes from the launch.
#include "lib/packs.cuh"
#include "lib/philox.cuh"

// Ascending; unused ones at the end are larger than any element's index.
struct DecayChanges {
    long long at[MAX_CHANGES];
};

__device__ __forceinline__ bool decays(const DecayChanges& changes, long long element) {
    int passed = 0;
#pragma unroll
    for (int i = 0; i < MAX_CHANGES; i++) passed += element >= changes.at[i];
    return passed % 2 == 1;
}

// ---- stochastic rounding ------------------------------------------------------------------------

// bfloat16 parameters without a float copy are rounded up or down at random, such that the expected
// value is the exact one. Rounding to nearest would lose every update that is smaller than half the
// distance to the next bfloat16. rng: seed low, seed high, optimizer step. The random number of an
// element follows from rng_index, its index in the flat vector of the whole model.
constexpr unsigned ROUNDING_SITE = 0xffffffffu;  // the sites of dropout are smaller

__device__ __forceinline__ void store_stochastic(float* address, const Pack& pack, const unsigned*,
                                                 long long) {
    store(address, pack);
}
__device__ __forceinline__ void store_stochastic(__nv_bfloat16* address, const Pack& pack,
                                                 const unsigned* rng, long long rng_index) {
    unsigned long long counter = (unsigned long long)rng_index / PACK_SIZE;
    uint4 random =
        philox(make_uint4((unsigned)counter, (unsigned)(counter >> 32), rng[2], ROUNDING_SITE),
               rng[0], rng[1]);
    const unsigned words[4] = {random.x, random.y, random.z, random.w};
    unsigned halves[PACK_SIZE];
#pragma unroll
    for (int k = 0; k < PACK_SIZE; k++) {
        // A bfloat16 is the upper half of a float. A random number of 16 bits, added to the lower
        // half, carries into the upper half with a probability of lower half / 2^16.
        unsigned noise = words[k / 2] >> (k % 2 * 16) & 0xffffu;
        halves[k] = (__float_as_uint(pack[k]) + noise) >> 16;
    }
    *reinterpret_cast<uint4*>(address) =
        make_uint4(halves[0] | halves[1] << 16, halves[2] | halves[3] << 16,
                   halves[4] | halves[5] << 16, halves[6] | halves[7] << 16);
}

// ---- the update ---------------------------------------------------------------------------------

// Updated: params floatX; master (null if there is none), m, v float. Read: grads float; all of
// num_packs * PACK_SIZE elements. grad_norm (1): the norm of all gradients. controls (3): learning
// rate, 1 - beta1^t, 1 - beta2^t. rng (3, may be null with a master or float params): see above.
// params[0] is element rng_offset of the flat vector of the whole model, of which a rank may hold a
// part; `changes` counts from params[0]. One thread per pack.
extern "C" __global__ void adamw(floatX* params, float* master, float* m, float* v,
                                 const float* grads, const float* grad_norm, const float* controls,
                                 const unsigned* rng, long long rng_offset, long long num_packs,
                                 float beta1, float one_minus_beta1, float beta2,
                                 float one_minus_beta2, float epsilon, float weight_decay,
                                 float grad_clip, DecayChanges changes) {
    long long index = global_thread() * PACK_SIZE;
    if (index >= num_packs * PACK_SIZE) return;

    float lr = controls[0], norm = grad_norm[0];
    float clip = 0.0f < grad_clip && grad_clip < norm ? grad_clip / norm : 1.0f;
    float keep = decays(changes, index) ? 1.0f - lr * weight_decay : 1.0f;
    float step = lr / controls[1];
    float rescale = 1.0f / sqrtf(controls[2]);
    Pack p = master ? load<PACK_SIZE>(master + index) : load_pack(params + index);
    Pack g = load<PACK_SIZE>(grads + index);
    Pack m_pack = load<PACK_SIZE>(m + index), v_pack = load<PACK_SIZE>(v + index);
#pragma unroll
    for (int k = 0; k < PACK_SIZE; k++) {
        float gradient = clip * g[k];
        m_pack[k] = beta1 * m_pack[k] + one_minus_beta1 * gradient;
        v_pack[k] = beta2 * v_pack[k] + one_minus_beta2 * gradient * gradient;
        float denominator = sqrtf(v_pack[k]) * rescale + epsilon;
        p[k] = keep * p[k] - step * m_pack[k] / denominator;
    }
    if (master) {
        store(master + index, p);
        store(params + index, p);
    } else {
        store_stochastic(params + index, p, rng, rng_offset + index);
    }
    store(m + index, m_pack);
    store(v + index, v_pack);
}
