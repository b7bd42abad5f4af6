// out[i] = inp[i] + inp[i mirrored in its tile of 256]; n is a multiple of 4. A block copies its
// tiles to two buffers in turn by cp.async: the next tile arrives while this one is computed.
#include "lib/ptx.cuh"
#ifndef BUG
#define BUG none
#endif
#define none 0
#define no_wait 1
#define wait_for_too_few 2
#define no_sync_after_wait 3
#define no_sync_before_refill 4
#define misaligned_copy 5
#define copy_left_behind 6
#define PLANTED(name) (BUG == name)

constexpr int TILE = 256;

__device__ __forceinline__ void fetch(float* buffer, const float* inp, int tile, int n) {
    const int i = threadIdx.x * 4, at = tile * TILE + i;
    const int bytes = at < n ? 16 : 0;
    const float* from = inp + (bytes ? at : 0) + (PLANTED(misaligned_copy) ? 1 : 0);
    cp_async16_zfill(buffer + i, from, bytes);  // BUG: misaligned_copy copy_left_behind
    cp_async_commit();
}

extern "C" __global__ void __launch_bounds__(TILE / 4)
    add_mirrored(float* out, const float* inp, int n) {
    __shared__ __align__(16) float buffer[2][TILE];
    const int tiles = (n + TILE - 1) / TILE, step = gridDim.x;
    int tile = blockIdx.x;
    if (tile < tiles) fetch(buffer[0], inp, tile, n);
    for (int turn = 0; tile < tiles; tile += step, turn ^= 1) {
        if (tile + step < tiles) fetch(buffer[turn ^ 1], inp, tile + step, n);
#if PLANTED(no_wait)
#elif PLANTED(wait_for_too_few)
        cp_async_wait<1>();
#else
        if (tile + step < tiles)
            cp_async_wait<1>();
        else
            cp_async_wait<0>();
#endif
#if !PLANTED(no_sync_after_wait)
        __syncthreads();
#endif
        for (int i = threadIdx.x; i < TILE; i += blockDim.x) {
            const float* b = buffer[turn];
            const float m = b[TILE - 1 - i];  // BUG: no_wait no_sync_after_wait wait_for_too_few
            if (tile * TILE + i < n) out[tile * TILE + i] = b[i] + m;  // BUG: no_sync_before_refill
        }
#if !PLANTED(no_sync_before_refill)
        __syncthreads();
#endif
    }
#if PLANTED(copy_left_behind)
    fetch(buffer[0], inp, 0, n);
#endif
}
