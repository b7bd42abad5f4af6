// Conversions between float and the 16-bit formats.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// floatX is chosen by a compiler option, as in the kernels of cuda/.
extern "C" __global__ void to_floatX(floatX* out, const float* inp, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = (floatX)inp[i];
}
extern "C" __global__ void from_floatX(float* out, const floatX* inp, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = (float)inp[i];
}

// Eight bf16 at a time, in a 128-bit pack; n a multiple of 8.
extern "C" __global__ void double_packed(__nv_bfloat16* out, const __nv_bfloat16* inp, int n) {
    const int i = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (i >= n) return;
    uint4 pack = __ldcs((const uint4*)(inp + i));
    unsigned words[4] = {pack.x, pack.y, pack.z, pack.w};
    for (int w = 0; w < 4; w++) {
        __nv_bfloat162 pair = *(__nv_bfloat162*)&words[w];
        const float2 f = __bfloat1622float2(pair);
        pair = __floats2bfloat162_rn(2.0f * f.x, 2.0f * f.y);
        words[w] = *(unsigned*)&pair;
    }
    __stcs((uint4*)(out + i), make_uint4(words[0], words[1], words[2], words[3]));
}

extern "C" __global__ void half_round_trip(__half* out, const float* inp, float* back, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const __half h = __float2half_rn(inp[i]);
    out[i] = h;
    back[i] = __half2float(h);
}
