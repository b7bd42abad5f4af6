// Gradients of LayerNorm over rows of C channels; contract in ops/layernorm.py.
//
// A thread stays in the same columns for all rows of its block. So it keeps three sums over rows
// for each of its columns in registers while it loops over the rows: the gradients of weight and
// bias, and the sum of the rows of the new dinp (dsum), which is the gradient of the bias of the
// linear layer before.
//
// A pass: the block computes ROWS_PER_PASS rows, each by THREADS_PER_ROW threads, which have
// PACKS_PER_THREAD packs each. Drawn small, for 3 rows, 4 threads, 2 packs:
//
//    pack of the row      0    1    2    3  |  4    5    6    7
//                         p = 0             |  p = 1
//    row n               t0   t1   t2   t3  | t0   t1   t2   t3
//    row n + 1           t4   t5   t6   t7  | t4   t5   t6   t7
//    row n + 2           t8   t9  t10  t11  | t8   t9  t10  t11
//
//    next pass: rows n + stride ..., where stride = ROWS_PER_PASS * number of blocks
//
// Stages: the rows of later passes are copied into shared memory (cp.async) while a pass is
// computed. With STAGES = 2:
//
//    time ------------------------------------------------------>
//    pass       |        |    0   |    1   |    2   |    3   |
//    stage 0    | copy 0 | read 0 | copy 2 | read 2 | copy 4 |
//    stage 1    |     copy 1      | read 1 | copy 3 | read 3 |
//
// A thread copies exactly what it reads itself, so the copies need no barrier.
//
// Registers of a thread: the weights of its columns, and the three sums. Shared memory: STAGES x
// (dout, inp, dinp) x PACKS_PER_THREAD packs for each thread. After the last row it is used
// again, to add up the sums of the threads that have the same columns.
//
// -D constants, from backward_launch in ops/layernorm.py:
//   THREADS_PER_ROW   threads that share a row: 1, 2, 4, 8 or 16, or whole warps
//   ROWS_PER_PASS     rows that the block computes at the same time
//   PACKS_PER_THREAD  packs of a row that one thread has
//   STAGES            passes whose rows are in shared memory or on their way to it; 0 if shared
//                     memory is too small for one: then threads read global memory when they need
//                     the data
#include "lib/column_sums.cuh"
#include "lib/ptx.cuh"

constexpr int BLOCK_THREADS = THREADS_PER_ROW * ROWS_PER_PASS;
constexpr int WARPS_PER_ROW = THREADS_PER_ROW > WARP ? THREADS_PER_ROW / WARP : 1;
constexpr int LANES_PER_ROW = THREADS_PER_ROW > WARP ? WARP : THREADS_PER_ROW;

static_assert(WARPS_PER_ROW == 1 || ROWS_PER_PASS <= 15, "barriers 1 to 15: 0 is __syncthreads");

// ---- a row and its threads ----------------------------------------------------------------------

// First column of this thread's pack p.
__device__ __forceinline__ int pack_column(int p) {
    return (p * THREADS_PER_ROW + (int)threadIdx.x % THREADS_PER_ROW) * PACK_SIZE;
}

// Adds up both values along a row, over its threads, in a fixed order; each thread of the row gets
// the sums. Only the threads of this row wait for each other, so one row can load while another
// adds. Two successive calls must differ in `slot`: a fast warp may be in the second while a slow
// one still reads.
__device__ __forceinline__ void sum_along_row(float& first, float& second, int slot) {
#pragma unroll
    for (int distance = LANES_PER_ROW / 2; distance > 0; distance /= 2) {
        first += __shfl_xor_sync(FULL_WARP, first, distance);
        second += __shfl_xor_sync(FULL_WARP, second, distance);
    }
    if constexpr (WARPS_PER_ROW > 1) {
        __shared__ float2 of_warp[2][ROWS_PER_PASS * WARPS_PER_ROW];
        if (threadIdx.x % WARP == 0) of_warp[slot][threadIdx.x / WARP] = make_float2(first, second);
        sync_group<THREADS_PER_ROW>(threadIdx.x / THREADS_PER_ROW);
        const float2* of_row = of_warp[slot] + threadIdx.x / THREADS_PER_ROW * WARPS_PER_ROW;
        first = of_row[0].x, second = of_row[0].y;
#pragma unroll
        for (int warp = 1; warp < WARPS_PER_ROW; warp++) {
            first += of_row[warp].x;
            second += of_row[warp].y;
        }
    }
}

enum Matrix { DOUT, INP, DINP };

// This thread's packs of one row of the three matrices, in global memory and in its stage.
struct Row {
    const floatX *dout, *inp, *dinp;
    uint4* copies;  // [matrix][p][thread]

    __device__ __forceinline__ uint4* copy(int matrix, int p) const {
        return copies + (matrix * PACKS_PER_THREAD + p) * BLOCK_THREADS + threadIdx.x;
    }
    __device__ __forceinline__ void start_copy(int p) const {
        cp_async16(copy(DOUT, p), dout + pack_column(p));
        cp_async16(copy(INP, p), inp + pack_column(p));
        cp_async16(copy(DINP, p), dinp + pack_column(p));
    }
    __device__ __forceinline__ Pack read(int matrix, int p) const {
        if constexpr (STAGES > 0) return unpack(RawPack{*copy(matrix, p)});
        const floatX* row = matrix == DOUT ? dout : matrix == INP ? inp : dinp;
        return load_pack(row + pack_column(p));
    }
};

// What a thread keeps in registers for its columns through all rows.
struct ColumnSums {
    RawPack weight[PACKS_PER_THREAD];
    Pack dweight[PACKS_PER_THREAD], dbias[PACKS_PER_THREAD], dsum[PACKS_PER_THREAD];

    __device__ __forceinline__ ColumnSums(const floatX* weights, int C) {
#pragma unroll
        for (int p = 0; p < PACKS_PER_THREAD; p++) {
            weight[p] = RawPack{};
            if (pack_column(p) < C) weight[p] = load_raw(weights + pack_column(p));
            dweight[p] = dbias[p] = dsum[p] = filled<PACK_SIZE>(0.0f);
        }
    }
};

// normed = (inp - mean) * rstd, computed as inp * rstd + offset.
struct Normalization {
    float rstd, offset;
    __device__ __forceinline__ float of(float x) const { return x * rstd + offset; }
};

// ---- the steps ----------------------------------------------------------------------------------

// Step 1: adds a pack of the row to dweight and dbias, and its share to two sums along the row: of
// dnormed = dout * weight, and of dnormed * normed.
__device__ __forceinline__ void add_to_sums(ColumnSums& columns, float& sum, float& projection,
                                            const Row& row, const Normalization& norm, int p) {
    const Pack g = row.read(DOUT, p), x = row.read(INP, p), w = unpack(columns.weight[p]);
#pragma unroll
    for (int k = 0; k < PACK_SIZE; k++) {
        const float normed = norm.of(x[k]), dnormed = g[k] * w[k];
        columns.dweight[p][k] += g[k] * normed;
        columns.dbias[p][k] += g[k];
        sum += dnormed;
        projection += dnormed * normed;
    }
}

// Step 2: dinp += (dnormed - mean(dnormed) - normed * mean(dnormed * normed)) * rstd for a pack
// of the row, and dsum += the new dinp.
__device__ __forceinline__ void update_dinp(floatX* dinp, ColumnSums& columns, const Row& row,
                                            const Normalization& norm, float mean_dnormed,
                                            float mean_projection, int p) {
    const Pack g = row.read(DOUT, p), x = row.read(INP, p), w = unpack(columns.weight[p]);
    Pack out = row.read(DINP, p);
#pragma unroll
    for (int k = 0; k < PACK_SIZE; k++) {
        const float normed = norm.of(x[k]);
        out[k] += (g[k] * w[k] - mean_dnormed - normed * mean_projection) * norm.rstd;
        columns.dsum[p][k] += out[k];
    }
    store(dinp + pack_column(p), out);
}

// Step 3, after the last row: writes the three sums of the block's rows. If a pass has one row, the
// thread's sums are complete; if it has more, those of the threads with the same columns are added
// up in shared memory.
__device__ __forceinline__ void write_partials(float* partials, const ColumnSums& columns,
                                               float* smem, int row_of_pass, int C) {
    constexpr bool MUST_ADD = ROWS_PER_PASS > 1;
    float* sums = MUST_ADD ? smem + 3 * row_of_pass * C : partials + (long long)blockIdx.x * C;
    const long long to_next_sum = MUST_ADD ? C : (long long)gridDim.x * C;
    if constexpr (MUST_ADD) __syncthreads();  // all threads have read their stages
#pragma unroll
    for (int p = 0; p < PACKS_PER_THREAD; p++) {
        if (pack_column(p) >= C) continue;
        store(sums + pack_column(p), columns.dweight[p]);
        store(sums + to_next_sum + pack_column(p), columns.dbias[p]);
        store(sums + 2 * to_next_sum + pack_column(p), columns.dsum[p]);
    }
    if constexpr (MUST_ADD) {
        __syncthreads();
        for (int i = threadIdx.x; i < 3 * C; i += BLOCK_THREADS) {
            float total = smem[i];
#pragma unroll 8
            for (int other = 1; other < ROWS_PER_PASS; other++) total += smem[3 * other * C + i];
            partials[((long long)(i / C) * gridDim.x + blockIdx.x) * C + i % C] = total;
        }
    }
}

// ---- the kernels --------------------------------------------------------------------------------

// Adds the gradient of LayerNorm's input to dinp, and writes the sums of each row group, which
// are the rows of one block. Accumulated: dinp (N, C). Written: partials (3, number of blocks, C)
// for the gradient of weight, that of bias, and the sum of the rows of the new dinp before it is
// rounded. Read: dout, inp (N, C), weight (C), mean, rstd (N). Grid: any number of blocks that
// `partials` has room for. It decides which rows a block has, so the last bits of the sums depend
// on the number of multiprocessors. Block: BLOCK_THREADS. Dynamic shared memory: 3 * STAGES *
// PACKS_PER_THREAD * BLOCK_THREADS packs, and no less than 3 * ROWS_PER_PASS * C floats if
// ROWS_PER_PASS > 1.
extern "C" __global__ void __launch_bounds__(BLOCK_THREADS)
    layernorm_backward(floatX* dinp, float* partials, const floatX* dout, const floatX* inp,
                       const floatX* weight, const float* mean, const float* rstd, int N, int C) {
    extern __shared__ __align__(16) float smem[];
    const int row_of_pass = threadIdx.x / THREADS_PER_ROW;  // that this thread works on
    const float inverse_C = 1.0f / C;
    ColumnSums columns(weight, C);

    auto row_at = [&](long long n, int stage) {
        constexpr int STAGE_PACKS = 3 * PACKS_PER_THREAD * BLOCK_THREADS;
        return Row{dout + n * C, inp + n * C, dinp + n * C,
                   reinterpret_cast<uint4*>(smem) + stage * STAGE_PACKS};
    };
    auto start_copies = [&](long long n, int stage) {
#pragma unroll
        for (int p = 0; p < PACKS_PER_THREAD; p++)
            if (n < N && pack_column(p) < C) row_at(n, stage).start_copy(p);
        cp_async_commit();  // one group for each pass, even an empty one: groups are counted
    };
    const long long stride = (long long)gridDim.x * ROWS_PER_PASS;
    const long long first = (long long)blockIdx.x * ROWS_PER_PASS;
#pragma unroll
    for (int i = 0; i < STAGES; i++) start_copies(first + row_of_pass + i * stride, i);
    float next_mean = 0.0f, next_rstd = 0.0f;
    if (first + row_of_pass < N)
        next_mean = mean[first + row_of_pass], next_rstd = rstd[first + row_of_pass];

    int stage = 0, slot = 0;
    for (long long pass = first; pass < N;
         pass += stride) {  // all threads make the same number of passes: they meet at barriers
        const long long n = pass + row_of_pass;
        const Row row = row_at(n, stage);
        const Normalization norm = {next_rstd, -next_mean * next_rstd};
        if (n + stride < N) next_mean = mean[n + stride], next_rstd = rstd[n + stride];
        if constexpr (STAGES > 0) cp_async_wait<STAGES - 1>();

        float sum = 0.0f, projection = 0.0f;  // of dnormed, and of dnormed * normed
#pragma unroll
        for (int p = 0; p < PACKS_PER_THREAD; p++)
            if (n < N && pack_column(p) < C) add_to_sums(columns, sum, projection, row, norm, p);
        sum_along_row(sum, projection, slot);
        slot ^= 1;
        sum *= inverse_C, projection *= inverse_C;

#pragma unroll
        for (int p = 0; p < PACKS_PER_THREAD; p++)
            if (n < N && pack_column(p) < C)
                update_dinp(dinp + n * C, columns, row, norm, sum, projection, p);
        if constexpr (STAGES > 0) {  // this stage has been read
            start_copies(n + STAGES * stride, stage);
            stage = stage + 1 < STAGES ? stage + 1 : 0;
        }
    }
    write_partials(partials, columns, smem, row_of_pass, C);
}

// dweight, dbias and dsum += the sums of all row groups. Accumulated: dweight, dbias, dsum (C);
// dsum may be null. Read: partials (3, num_row_groups, C). Grid: (ceil(C / WARP), 2, or 3 with
// dsum); block SQUARE_THREADS: see add_column_sums.
extern "C" __global__ void __launch_bounds__(SQUARE_THREADS)
    layernorm_backward_finish(float* dweight, float* dbias, float* dsum, const float* partials,
                              int num_row_groups, int C) {
    float* out = blockIdx.y == 0 ? dweight : blockIdx.y == 1 ? dbias : dsum;
    add_column_sums(out, partials + (long long)blockIdx.y * num_row_groups * C, num_row_groups, C);
}
