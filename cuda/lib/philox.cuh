// Philox4x32-10, the random numbers of dropout and of stochastic rounding.
#pragma once

// Four random words that follow from a 128-bit counter and a 64-bit key: no state is kept, so each
// thread computes its own. Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3",
// section 4.2, with the constants from there. `philox` in ops/dropout.py computes the same.
__device__ __forceinline__ uint4 philox(uint4 counter, unsigned key0, unsigned key1) {
    constexpr unsigned MULTIPLIER0 = 0xD2511F53u, MULTIPLIER1 = 0xCD9E8D57u;
    constexpr unsigned STEP0 = 0x9E3779B9u, STEP1 = 0xBB67AE85u;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        unsigned high0 = __umulhi(MULTIPLIER0, counter.x), low0 = MULTIPLIER0 * counter.x;
        unsigned high1 = __umulhi(MULTIPLIER1, counter.z), low1 = MULTIPLIER1 * counter.z;
        counter = make_uint4(high1 ^ counter.y ^ key0, low1, high0 ^ counter.w ^ key1, low0);
        key0 += STEP0, key1 += STEP1;
    }
    return counter;
}
