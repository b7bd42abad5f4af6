// Token plus position embedding and its gradients; contract in ops/encoder.py.
#include "common.cuh"

constexpr int ROWS = 4;  // of one thread: their tokens, then their packs, are loaded together

// out[n, :] = wte[tokens[n], :] + wpe[n % T, :]; out (N, C), tokens (N). Threads (x, y): pack x of
// rows y, y + blockDim.y, ... of the block's ROWS * blockDim.y, in strides.
extern "C" __global__ void encoder_forward(floatX* out, const int* tokens, const floatX* wte,
                                           const floatX* wpe, int N, int T, int C) {
    const int first = blockIdx.x * blockDim.y * ROWS + threadIdx.y;
    int token[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        int row = first + i * blockDim.y;
        token[i] = row < N ? tokens[row] : 0;
    }
    for (int column = threadIdx.x * LANES; column < C; column += blockDim.x * LANES) {
        RawPack of_token[ROWS], of_position[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            int row = first + i * blockDim.y;
            if (row >= N) continue;
            of_token[i] = load_raw(wte + (long long)token[i] * C + column);
            of_position[i] = load_raw(wpe + (long long)(row % T) * C + column);
        }
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            int row = first + i * blockDim.y;
            if (row >= N) continue;
            Pack x = unpack(of_token[i]), p = unpack(of_position[i]);
#pragma unroll
            for (int k = 0; k < LANES; k++) x[k] += p[k];
            store(out + (long long)row * C + column, x);
        }
    }
}

// dwpe[t, :] += sum over b of dout[b, t, :]; dout (B, T, C). One thread per pack of a position.
extern "C" __global__ void wpe_backward(float* dwpe, const floatX* dout, int B, int T, int C) {
    long long offset = global_thread() * LANES, stride = (long long)T * C;
    if (offset >= stride) return;
    Pack sum = filled<LANES>(0.0f);
#pragma unroll 8
    for (int b = 0; b < B; b++) {
        Pack x = load_pack(dout + b * stride + offset);
#pragma unroll
        for (int k = 0; k < LANES; k++) sum[k] += x[k];
    }
    Pack total = load<LANES>(dwpe + offset);
#pragma unroll
    for (int k = 0; k < LANES; k++) total[k] += sum[k];
    store(dwpe + offset, total);
}

constexpr int PACKS = 8;      // of one block's columns: 8 lanes read 128 neighbouring bytes
constexpr int GROUPS = 64;    // of 8 lanes; also the sorted positions that a block looks after
constexpr int SHORT_RUN = 64;  // rows of one token that a group adds up alone
constexpr int AHEAD = 8;      // rows in flight per thread: they are scattered, latency decides

// Adds the rows of `token` at sorted positions first, first + step, ... below `limit` to `sum`.
// True if the run ended there, false if it goes on at `limit`.
__device__ __forceinline__ bool add_run(Pack& sum, const floatX* columns, const int* tokens,
                                        const int* order, int token, long long first, int step,
                                        long long limit, int C) {
    for (long long position = first; position < limit; position += (long long)step * AHEAD) {
        int row[AHEAD];
        bool ours[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            long long at = position + (long long)i * step;
            row[i] = at < limit ? order[at] : -1;
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) ours[i] = row[i] >= 0 && tokens[row[i]] == token;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (!ours[i]) continue;
            Pack x = load_pack(columns + (long long)row[i] * C);
#pragma unroll
            for (int k = 0; k < LANES; k++) sum[k] += x[k];
        }
        if (!ours[AHEAD - 1]) return true;
    }
    return false;
}

// dwte[token, :] += sum of dout[n, :] over the rows n of that token; order (N) sorts the rows by
// token, so each token's rows are one run of neighbours, added in that order without atomics.
// Block (x, y) of 512 threads: the runs that begin at the 64 sorted positions from 64 x, in the 8
// packs of columns from 8 y. A group of 8 lanes adds up one short run alone; a longer run reaches
// over the end of the block's positions, so that a block has at most one: all groups share it.
extern "C" __global__ void __launch_bounds__(512)
wte_backward(float* dwte, const floatX* dout, const int* tokens, const int* order, int N, int C) {
    __shared__ float sums[GROUPS][PACKS * LANES];
    __shared__ int long_run;  // its first position, or -1
    int lane = threadIdx.x % PACKS, group = threadIdx.x / PACKS;
    int first_column = blockIdx.y * PACKS * LANES, column = first_column + lane * LANES;
    if (threadIdx.x == 0) long_run = -1;
    __syncthreads();

    long long position = (long long)blockIdx.x * GROUPS + group;
    int token = position < N ? tokens[order[position]] : -1;
    bool begins = position < N && (position == 0 || tokens[order[position - 1]] != token);
    if (begins) {
        Pack sum = filled<LANES>(0.0f);
        long long limit = min(position + SHORT_RUN, (long long)N);
        const floatX* columns = dout + min(column, C - LANES);
        bool ended = add_run(sum, columns, tokens, order, token, position, 1, limit, C);
        if (!ended && limit < N && tokens[order[limit]] == token) {
            if (lane == 0) long_run = (int)position;
        } else if (column < C) {
            float* address = dwte + (long long)token * C + column;
            Pack total = load<LANES>(address);
#pragma unroll
            for (int k = 0; k < LANES; k++) total[k] += sum[k];
            store(address, total);
        }
    }
    __syncthreads();
    if (long_run < 0) return;  // the same in all threads

    token = tokens[order[long_run]];
    Pack sum = filled<LANES>(0.0f);
    if (column < C)
        add_run(sum, dout + column, tokens, order, token, (long long)long_run + group, GROUPS, N, C);
#pragma unroll
    for (int k = 0; k < LANES; k++) sums[group][lane * LANES + k] = sum[k];
    __syncthreads();
    int mine = threadIdx.x;
    if (mine < PACKS * LANES && first_column + mine < C) {
        float total = 0.0f;
        for (int row = 0; row < GROUPS; row++) total += sums[row][mine];
        dwte[(long long)token * C + first_column + mine] += total;
    }
}
