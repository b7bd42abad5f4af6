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
            // Not to drive out of the cache the rows of wte that more tokens will need.
            store_streaming(out + (long long)row * C + column, x);
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

constexpr int GROUPS = 32;       // also the sorted positions that a block looks after
constexpr int GROUP_LANES = 16;  // they read 64 neighbouring elements
constexpr int WIDTH = LANES / 4;  // such pieces of a row per thread
constexpr int BLOCK_COLUMNS = 4 * GROUP_LANES * WIDTH;
constexpr int ROUNDS = 3;          // of so many columns per block: what it looks up is worth it
constexpr int SHORT_RUN = GROUPS;  // rows of one token that a group adds up alone
constexpr int AHEAD = 4;  // rows in flight per thread: they are scattered, latency decides

// Four elements as they lie in memory. Not a whole pack: the gradients of four fill 16 bytes, so
// that a warp writes its own without gaps.
struct alignas(4 * sizeof(floatX)) Quad {
    unsigned words[sizeof(floatX)];
};
__device__ __forceinline__ Floats<4> unpack(const Quad& quad) {
    Floats<4> values;
#pragma unroll
    for (int i = 0; i < int(sizeof(floatX)); i++) {
        if constexpr (LANES == 4)
            values[i] = __uint_as_float(quad.words[i]);
        else
            unpack_bfloat16(values[2 * i], values[2 * i + 1], quad.words[i]);
    }
    return values;
}

// What a thread adds up: its columns of some rows of dout.
struct RowSum {
    Floats<4> sum[WIDTH];
    const floatX* columns;  // of row 0
    int C, num_quads;       // quads that are inside the row

    __device__ __forceinline__ RowSum(const floatX* dout, int first_column, int C)
        : columns(dout + first_column), C(C), num_quads(0) {
#pragma unroll
        for (int w = 0; w < WIDTH; w++) {
            sum[w] = filled<4>(0.0f);
            if (first_column + w * (4 * GROUP_LANES) < C) num_quads++;
        }
    }
    // Rows below 0 are left out.
    __device__ __forceinline__ void add(const int (&rows)[AHEAD]) {
        Quad loaded[AHEAD][WIDTH];
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
#pragma unroll
            for (int w = 0; w < WIDTH; w++)
                if (rows[i] >= 0 && w < num_quads)
                    loaded[i][w] = *reinterpret_cast<const Quad*>(
                        columns + (long long)rows[i] * C + w * (4 * GROUP_LANES));
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
#pragma unroll
            for (int w = 0; w < WIDTH; w++) {
                if (rows[i] < 0 || w >= num_quads) continue;
                const Floats<4> x = unpack(loaded[i][w]);
#pragma unroll
                for (int k = 0; k < 4; k++) sum[w][k] += x[k];
            }
    }
};

// dwte[token, :] += sum of dout[n, :] over the rows n of that token; order (N) sorts the rows by
// token, so each token's rows are one run of neighbours, added in that order without atomics.
// A block of 512 threads has the runs that begin at 32 sorted positions, in ROUNDS * BLOCK_COLUMNS
// columns; neighbouring blocks have the same rows' next columns, so that whole rows are read at a
// time. A group of 16 lanes adds up one short run alone; a longer run reaches over the end of the
// block's positions, so that a block has at most one: all groups share it.
// Grid: ceil(N / 32) * ceil(C / (ROUNDS * BLOCK_COLUMNS)).
extern "C" __global__ void __launch_bounds__(GROUPS * GROUP_LANES, 2)
wte_backward(float* dwte, const floatX* dout, const int* tokens, const int* order, int N, int C) {
    // Of the block's positions and as many behind; ids also of the one before, -1 outside.
    __shared__ int rows[GROUPS + SHORT_RUN], ids[1 + GROUPS + SHORT_RUN];
    __shared__ __align__(16) float sums[GROUPS][BLOCK_COLUMNS];
    __shared__ int long_run;  // its first position, or -1
    const int lane = threadIdx.x % GROUP_LANES, group = threadIdx.x / GROUP_LANES;
    constexpr int STEP = ROUNDS * BLOCK_COLUMNS;
    const int column_blocks = (C + STEP - 1) / STEP;
    const int first = blockIdx.x / column_blocks * GROUPS;
    const int first_column = blockIdx.x % column_blocks * STEP;
    const int last_column = min(first_column + STEP, C);
    if (threadIdx.x <= GROUPS + SHORT_RUN) {
        const int i = threadIdx.x, at = first - 1 + i;
        const bool inside = at >= 0 && at < N;
        const int row = inside ? order[at] : 0;
        ids[i] = inside ? tokens[row] : -1;
        if (i > 0) rows[i - 1] = row;
    }
    if (threadIdx.x == 0) long_run = -1;
    __syncthreads();

    const int token = ids[1 + group];
    int length = 0;  // of the short run that begins at this group's position
    if (token >= 0 && ids[group] != token) {
        length = 1;
        while (length < SHORT_RUN && ids[1 + group + length] == token) length++;
        if (ids[1 + group + length] == token) {
            length = 0;
            if (lane == 0) long_run = group;
        }
    }
    for (int column = first_column + 4 * lane; length > 0 && column < last_column;
         column += BLOCK_COLUMNS) {
        RowSum own(dout, column, C);
        float* address = dwte + (long long)token * C + column;
        Floats<4> total[WIDTH];
#pragma unroll
        for (int w = 0; w < WIDTH; w++)
            if (w < own.num_quads) total[w] = load<4>(address + w * (4 * GROUP_LANES));
        for (int start = 0; start < length; start += AHEAD) {
            int some[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++)
                some[i] = start + i < length ? rows[group + start + i] : -1;
            own.add(some);
        }
#pragma unroll
        for (int w = 0; w < WIDTH; w++) {
            if (w >= own.num_quads) continue;
#pragma unroll
            for (int k = 0; k < 4; k++) total[w][k] += own.sum[w][k];
            store(address + w * (4 * GROUP_LANES), total[w]);
        }
    }
    __syncthreads();
    if (long_run < 0) return;  // the same in all threads

    const int long_token = ids[1 + long_run];
    // This group's rows at sorted positions from `at` on, -1 where the run has ended.
    auto rows_at = [&](int (&some)[AHEAD], long long at) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) some[i] = at + i * GROUPS < N ? order[at + i * GROUPS] : -1;
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (some[i] >= 0 && tokens[some[i]] != long_token) some[i] = -1;
    };
    for (int left = first_column; left < last_column; left += BLOCK_COLUMNS) {
        RowSum shared(dout, left + 4 * lane, C);
        int some[AHEAD], next[AHEAD];
        long long at = (long long)first + long_run + group;
        rows_at(some, at);
        while (some[0] >= 0) {
            at += GROUPS * AHEAD;
            rows_at(next, at);  // under way while these rows are added
            shared.add(some);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) some[i] = next[i];
        }
#pragma unroll
        for (int w = 0; w < WIDTH; w++)
            store(sums[group] + 4 * (w * GROUP_LANES + lane), shared.sum[w]);
        __syncthreads();
        const int column = left + threadIdx.x;
        if (threadIdx.x < BLOCK_COLUMNS && column < C) {
            float total = 0.0f;
#pragma unroll 8
            for (int row = 0; row < GROUPS; row++) total += sums[row][threadIdx.x];
            dwte[(long long)long_token * C + column] += total;
        }
        __syncthreads();  // the sums have been read
    }
}
