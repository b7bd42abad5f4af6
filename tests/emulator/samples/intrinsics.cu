// One result per device function, for comparison with NumPy.

extern "C" __global__ void float_functions(float* out, const float* inp, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float x = __ldg(inp + i);
    float* o = out + i;
    o[0 * n] = __expf(x);
    o[1 * n] = rsqrtf(x);
    o[2 * n] = tanhf(x);
    o[3 * n] = __fdividef(1.0f, x);
    o[4 * n] = exp2f(x);
    o[5 * n] = __logf(x);
    o[6 * n] = fmaxf(x, 1.0f);
    o[7 * n] = __saturatef(x);
    o[8 * n] = erff(x);
    __stcs(o + 9 * n, min(x, 1.0f));
}

extern "C" __global__ void integer_functions(unsigned* out, const unsigned* inp, int n) {
    const int i = threadIdx.x;
    if (i >= n) return;
    const unsigned x = inp[i];
    out[0 * n + i] = __umulhi(x, 0xCD9E8D57u);
    out[1 * n + i] = __popc(x);
    out[2 * n + i] = __clz(x);
    out[3 * n + i] = __brev(x);
    out[4 * n + i] = __float_as_uint(__uint_as_float(x & 0x7f7fffffu));
    out[5 * n + i] = __funnelshift_l(x, x, 8);
    out[6 * n + i] = __byte_perm(x, 0, 0x0123);
}

extern "C" __global__ void warp_functions(unsigned* out) {
    const unsigned lane = threadIdx.x;
    unsigned* o = out + lane;
    o[0] = __shfl_sync(0xffffffffu, lane * 10, 3);
    o[32] = __shfl_up_sync(0xffffffffu, lane, 2);
    o[64] = __shfl_down_sync(0xffffffffu, lane, 2);
    o[96] = __shfl_xor_sync(0xffffffffu, lane, 5);
    o[128] = __shfl_down_sync(0xffffffffu, lane, 1, 8);
    o[160] = __ballot_sync(0xffffffffu, lane % 3 == 0);
    o[192] = __any_sync(0xffffffffu, lane == 31) + 2 * __all_sync(0xffffffffu, lane < 31);
    o[224] = __reduce_add_sync(0xffffffffu, lane);
    o[256] = __reduce_max_sync(0xffffffffu, lane ^ 7);
}

// results[0..5]: the result of each atomic after all threads of all blocks have called it.
extern "C" __global__ void atomic_functions(int* ints, unsigned* uints, unsigned long long* longs,
                                            float* floats) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(&ints[0], i);
    atomicMax(&ints[1], i);
    atomicMin(&ints[2], -i);
    atomicAdd(&uints[0], 1u);
    atomicCAS(&uints[1], 5u, 9u);
    atomicExch(&uints[2], 4u);
    atomicAdd(&longs[0], 1ull << 33);
    atomicMax(&longs[1], (unsigned long long)i << 40);
    atomicAdd(&floats[0], 0.5f);
}

// where[linear thread over the grid] = its coordinates, six of them.
extern "C" __global__ void coordinates(int* where) {
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    int* o = where + 6ll * (block * (blockDim.x * blockDim.y * blockDim.z) + thread);
    o[0] = threadIdx.x, o[1] = threadIdx.y, o[2] = threadIdx.z;
    o[3] = blockIdx.x, o[4] = blockIdx.y, o[5] = blockIdx.z;
}

__constant__ float table[4] = {1.0f, 10.0f, 100.0f, 1000.0f};

extern "C" __global__ void all_scalars(double* out, int i, unsigned u, long long l,
                                       unsigned long long ul, float f, double d, bool b,
                                       const float* nothing) {
    out[0] = i, out[1] = u, out[2] = l, out[3] = ul, out[4] = f, out[5] = d, out[6] = b;
    out[7] = nothing == nullptr;
    out[8] = table[i & 3];
}
