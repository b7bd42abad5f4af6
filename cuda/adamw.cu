// One AdamW update (Loshchilov and Hutter 2019, arXiv:1711.05101); contract in ops/adamw.py.
#include "lib/packs.cuh"
#include "lib/philox.cuh"

constexpr float EPSILON = 1e-8f;
constexpr int MAX_TOGGLES = 16;

// Where a pack of parameters is stored without a float copy, bfloat16 is rounded up or down at
// random, in expectation to the value itself: an update smaller than half the distance to the next
// bfloat16 would otherwise always be lost. rng: seed low, seed high, optimizer step.
constexpr unsigned ROUNDING_SITE = 0xffffffffu;  // dropout's sites lie below

__device__ __forceinline__ void store_at_random(float* address, const Pack& pack, const unsigned*,
                                                long long) {
    store(address, pack);
}
__device__ __forceinline__ void store_at_random(__nv_bfloat16* address, const Pack& pack,
                                                const unsigned* rng, long long index) {
    unsigned long long number = (unsigned long long)index / PACK_SIZE;
    uint4 random =
        philox(make_uint4((unsigned)number, (unsigned)(number >> 32), rng[2], ROUNDING_SITE),
               rng[0], rng[1]);
    const unsigned words[4] = {random.x, random.y, random.z, random.w};
    unsigned halves[PACK_SIZE];
#pragma unroll
    for (int k = 0; k < PACK_SIZE; k++) {
        unsigned noise = words[k / 2] >> (k % 2 * 16) & 0xffffu;
        halves[k] = (__float_as_uint(pack[k]) + noise) >> 16;
    }
    *reinterpret_cast<uint4*>(address) =
        make_uint4(halves[0] | halves[1] << 16, halves[2] | halves[3] << 16,
                   halves[4] | halves[5] << 16, halves[6] | halves[7] << 16);
}

// params floatX; master (null without), m, v, grads float; num_packs * PACK_SIZE of each. norm (1):
// norm of all gradients; controls (3): learning rate, 1 - beta1^t, 1 - beta2^t; params begins at
// element `origin` of the flat vector, for the random numbers. Weight decay
// applies from toggle0 to toggle1, from toggle2 to toggle3, and so on; unused toggles lie behind
// the last element. One thread per pack.
extern "C" __global__ void adamw(
    floatX* params, float* master, float* m, float* v, const float* grads, const float* norm,
    const float* controls, const unsigned* rng, long long origin, long long num_packs, float beta1,
    float one_minus_beta1, float beta2, float one_minus_beta2, float weight_decay, float grad_clip,
    long long toggle0, long long toggle1, long long toggle2, long long toggle3, long long toggle4,
    long long toggle5, long long toggle6, long long toggle7, long long toggle8, long long toggle9,
    long long toggle10, long long toggle11, long long toggle12, long long toggle13,
    long long toggle14, long long toggle15) {
    long long index = global_thread() * PACK_SIZE;
    if (index >= num_packs * PACK_SIZE) return;
    const long long toggles[MAX_TOGGLES] = {
        toggle0, toggle1, toggle2,  toggle3,  toggle4,  toggle5,  toggle6,  toggle7,
        toggle8, toggle9, toggle10, toggle11, toggle12, toggle13, toggle14, toggle15};
    int passed = 0;
#pragma unroll
    for (int i = 0; i < MAX_TOGGLES; i++) passed += index >= toggles[i];

    float rate = controls[0], total_norm = norm[0];
    float clip = 0.0f < grad_clip && grad_clip < total_norm ? grad_clip / total_norm : 1.0f;
    float keep = passed % 2 == 1 ? 1.0f - rate * weight_decay : 1.0f;
    float step = rate / controls[1];
    float rescale = 1.0f / sqrtf(controls[2]);
    Pack p = master ? load<PACK_SIZE>(master + index) : load_pack(params + index);
    Pack g = load<PACK_SIZE>(grads + index);
    Pack first = load<PACK_SIZE>(m + index), second = load<PACK_SIZE>(v + index);
#pragma unroll
    for (int k = 0; k < PACK_SIZE; k++) {
        float gradient = clip * g[k];
        first[k] = beta1 * first[k] + one_minus_beta1 * gradient;
        second[k] = beta2 * second[k] + one_minus_beta2 * gradient * gradient;
        float denominator = sqrtf(second[k]) * rescale + EPSILON;
        p[k] = keep * p[k] - step * first[k] / denominator;
    }
    if (master) {
        store(master + index, p);
        store(params + index, p);
    } else {
        store_at_random(params + index, p, rng, origin + index);
    }
    store(m + index, first);
    store(v + index, second);
}
