// One warp multiplies 16 x K by K x 8 with the fragments of ptx.cuh.
#include "lib/ptx.cuh"

// d = a b^T + c; a (16, 16) and b (8, 16) bf16, c and d (16, 8). Through shared memory and
// ldmatrix.
extern "C" __global__ void mma_bf16(float* d, const unsigned short* a, const unsigned short* b,
                                    const float* c) {
    __shared__ __align__(16) unsigned short As[16][16];
    __shared__ __align__(16) unsigned short Bs[8][16];
    const int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) As[i / 16][i % 16] = a[i];
    for (int i = lane; i < 128; i += 32) Bs[i / 16][i % 16] = b[i];
    __syncwarp();
    unsigned fa[4], fb[2];
    ldmatrix_x4(fa, &As[lane % 16][lane / 16 * 8]);
    ldmatrix_x2(fb, &Bs[lane % 8][lane / 8 % 2 * 8]);
    float fd[4];
    for (int r = 0; r < 4; r++) fd[r] = c[(lane / 4 + r / 2 * 8) * 8 + lane % 4 * 2 + r % 2];
    mma_m16n8k16_bf16(fd, fa, fb, fd);
    for (int r = 0; r < 4; r++) d[(lane / 4 + r / 2 * 8) * 8 + lane % 4 * 2 + r % 2] = fd[r];
}

// d = a b^T + c; a (16, 8), b (8, 8), c and d (16, 8), all float32; operands rounded to tf32.
extern "C" __global__ void mma_tf32(float* d, const float* a, const float* b, const float* c) {
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    unsigned fa[4], fb[2];
    for (int r = 0; r < 4; r++) fa[r] = tf32_round(a[(g + r % 2 * 8) * 8 + t + r / 2 * 4]);
    for (int r = 0; r < 2; r++) fb[r] = tf32_round(b[g * 8 + t + r * 4]);
    float fd[4];
    for (int r = 0; r < 4; r++) fd[r] = c[(g + r / 2 * 8) * 8 + t * 2 + r % 2];
    mma_m16n8k8_tf32(fd, fa, fb, fd);
    for (int r = 0; r < 4; r++) d[(g + r / 2 * 8) * 8 + t * 2 + r % 2] = fd[r];
}

// As mma_tf32 without rounding the operands: what does the hardware do with the low 13 bits?
extern "C" __global__ void mma_tf32_unrounded(float* d, const float* a, const float* b,
                                              const float* c) {
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    unsigned fa[4], fb[2];
    for (int r = 0; r < 4; r++) fa[r] = __float_as_uint(a[(g + r % 2 * 8) * 8 + t + r / 2 * 4]);
    for (int r = 0; r < 2; r++) fb[r] = __float_as_uint(b[g * 8 + t + r * 4]);
    float fd[4];
    for (int r = 0; r < 4; r++) fd[r] = c[(g + r / 2 * 8) * 8 + t * 2 + r % 2];
    mma_m16n8k8_tf32(fd, fa, fb, fd);
    for (int r = 0; r < 4; r++) d[(g + r / 2 * 8) * 8 + t * 2 + r % 2] = fd[r];
}

// out[r][lane], raw registers of the four ldmatrix forms over tile (32, 8) 16-bit elements:
// rows 0-3 x4, 4-7 x4 trans, 8-9 x2, 10-11 x2 trans.
extern "C" __global__ void ldmatrix_all(unsigned* out, const unsigned short* tile) {
    __shared__ __align__(16) unsigned short rows[32][8];
    const int lane = threadIdx.x;
    for (int i = 0; i < 8; i++) rows[lane][i] = tile[lane * 8 + i];
    __syncwarp();
    unsigned four[4], two[2];
    ldmatrix_x4(four, rows[lane]);
    for (int r = 0; r < 4; r++) out[r * 32 + lane] = four[r];
    ldmatrix_x4_trans(four, rows[lane]);
    for (int r = 0; r < 4; r++) out[(4 + r) * 32 + lane] = four[r];
    ldmatrix_x2(two, rows[lane % 16]);
    for (int r = 0; r < 2; r++) out[(8 + r) * 32 + lane] = two[r];
    ldmatrix_x2_trans(two, rows[lane % 16]);
    for (int r = 0; r < 2; r++) out[(10 + r) * 32 + lane] = two[r];
}

// out[i] = the bits of inp[i] rounded to tf32.
extern "C" __global__ void round_tf32(unsigned* out, const float* inp, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = tf32_round(inp[i]);
}
