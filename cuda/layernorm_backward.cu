// Gradients of LayerNorm over rows of C; contract in ops/layernorm.py.
//
// A thread stays in the same columns, PACKS packs of them: their sums over rows, which the gradients
// of the parameters are, never leave its registers. TEAM threads make a row, and TEAMS teams a
// block. The rows that come next are on their way into shared memory while one is worked on, STAGES
// at a time; each thread fetches what it alone reads, so that they need no barrier. The constants
// follow from C (ops/layernorm.py, backward_defines). Without STAGES, for rows beyond the size of
// shared memory, threads read where they need.
#include "lib/row_sums.cuh"
#include "lib/ptx.cuh"

constexpr int WARPS = TEAM > WARP ? TEAM / WARP : 1;  // of a team; smaller teams share a warp
constexpr int TEAM_LANES = TEAM > WARP ? WARP : TEAM;

static_assert(WARPS == 1 || TEAMS <= 15, "a barrier of its own for each team");

// Adds up both values over the team, in a fixed order; every thread of it gets the sums. Teams wait
// for nobody else, so that some fetch while others add. Two calls in a row must differ in `slot`: a
// fast warp may be in the second while a slow one still reads.
__device__ __forceinline__ void team_sums(float& first, float& second, int slot) {
#pragma unroll
    for (int distance = TEAM_LANES / 2; distance > 0; distance /= 2) {
        first += __shfl_xor_sync(FULL_WARP, first, distance);
        second += __shfl_xor_sync(FULL_WARP, second, distance);
    }
    if constexpr (WARPS > 1) {
        __shared__ float2 of_warp[2][TEAMS * WARPS];
        if (threadIdx.x % WARP == 0) of_warp[slot][threadIdx.x / WARP] = make_float2(first, second);
        sync_group<TEAM>(threadIdx.x / TEAM);
        const float2* of_team = of_warp[slot] + threadIdx.x / TEAM * WARPS;
        first = of_team[0].x, second = of_team[0].y;
#pragma unroll
        for (int warp = 1; warp < WARPS; warp++) {
            first += of_team[warp].x;
            second += of_team[warp].y;
        }
    }
}

// First column of this thread's pack p.
__device__ __forceinline__ int pack_column(int p) {
    return (p * TEAM + (int)threadIdx.x % TEAM) * PACK_SIZE;
}

// A row's packs of this thread in each of three matrices.
struct Row {
    const floatX *dout, *inp, *dinp;
    uint4* slots;  // of one stage in shared memory

    __device__ __forceinline__ uint4* slot(int matrix, int p) const {
        return slots + (matrix * PACKS + p) * (TEAM * TEAMS) + threadIdx.x;
    }
    __device__ __forceinline__ void fetch(int p) const {
        cp_async16(slot(0, p), dout + pack_column(p));
        cp_async16(slot(1, p), inp + pack_column(p));
        cp_async16(slot(2, p), dinp + pack_column(p));
    }
    __device__ __forceinline__ Pack read(int matrix, int p) const {
        if constexpr (STAGES > 0) return unpack({*slot(matrix, p)});
        const floatX* row = matrix == 0 ? dout : matrix == 1 ? inp : dinp;
        return load_pack(row + pack_column(p));
    }
};

// dinp += gradient of the input, and this block's share of three sums over rows: the gradients of
// weight and bias, and the sum of dinp. partials (3, num blocks, C). The rows of a block are fixed
// by the launch, so are all sums. Dynamic shared memory: the stages, 3 packs of each PACKS and
// thread; in the end the three sums of each of several teams.
extern "C" __global__ void __launch_bounds__(TEAM* TEAMS)
    layernorm_backward(floatX* dinp, float* partials, const floatX* dout, const floatX* inp,
                       const floatX* weight, const float* mean, const float* rstd, int N, int C) {
    extern __shared__ __align__(16) float smem[];
    constexpr int STAGE_SLOTS = 3 * PACKS * TEAM * TEAMS;
    const int team = threadIdx.x / TEAM;
    const float inverse = 1.0f / C;
    RawPack weights[PACKS];
    Pack dweight[PACKS], dbias[PACKS], dsum[PACKS];
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        weights[p] = RawPack{};
        if (pack_column(p) < C) weights[p] = load_raw(weight + pack_column(p));
        dweight[p] = dbias[p] = dsum[p] = filled<PACK_SIZE>(0.0f);
    }

    auto row_at = [&](long long n, int stage) {
        return Row{dout + n * C, inp + n * C, dinp + n * C,
                   reinterpret_cast<uint4*>(smem) + stage * STAGE_SLOTS};
    };
    auto fetch = [&](long long n, int stage) {
#pragma unroll
        for (int p = 0; p < PACKS; p++)
            if (n < N && pack_column(p) < C) row_at(n, stage).fetch(p);
        cp_async_commit();  // an empty group where there is no row: groups are counted
    };
    const long long stride = (long long)gridDim.x * TEAMS;
    const long long first = (long long)blockIdx.x * TEAMS;
#pragma unroll
    for (int stage = 0; stage < STAGES; stage++) fetch(first + team + stage * stride, stage);
    float next_mean = 0.0f, next_rstd = 0.0f;
    if (first + team < N) next_mean = mean[first + team], next_rstd = rstd[first + team];

    int stage = 0, slot = 0;
    for (long long block_row = first; block_row < N;
         block_row += stride) {  // the same in all teams
        const long long n = block_row + team;
        const Row row = row_at(n, stage);
        const float scale = next_rstd,
                    offset = -next_mean * scale;  // normed = inp * scale + offset
        if (n + stride < N) next_mean = mean[n + stride], next_rstd = rstd[n + stride];
        if constexpr (STAGES > 0) cp_async_wait<STAGES - 1>();

        float sum = 0.0f, projection = 0.0f;  // of dnormed, and of its product with normed
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            if (n >= N || pack_column(p) >= C) continue;
            const Pack g = row.read(0, p), x = row.read(1, p), w = unpack(weights[p]);
#pragma unroll
            for (int k = 0; k < PACK_SIZE; k++) {
                const float normed = x[k] * scale + offset, dnormed = g[k] * w[k];
                dweight[p][k] += g[k] * normed;
                dbias[p][k] += g[k];
                sum += dnormed;
                projection += dnormed * normed;
            }
        }
        team_sums(sum, projection, slot);
        slot ^= 1;
        sum *= inverse, projection *= inverse;

#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            if (n >= N || pack_column(p) >= C) continue;
            const Pack g = row.read(0, p), x = row.read(1, p), w = unpack(weights[p]);
            Pack out = row.read(2, p);
#pragma unroll
            for (int k = 0; k < PACK_SIZE; k++) {
                const float normed = x[k] * scale + offset;
                out[k] += (g[k] * w[k] - sum - normed * projection) * scale;
                dsum[p][k] += out[k];
            }
            store(dinp + n * C + pack_column(p), out);
        }
        if constexpr (STAGES > 0) {  // the stage has just been read
            fetch(n + STAGES * stride, stage);
            stage = stage + 1 < STAGES ? stage + 1 : 0;
        }
    }

    // A single team writes its sums; several meet in shared memory before.
    float* parts = TEAMS > 1 ? smem + 3 * team * C : partials + (long long)blockIdx.x * C;
    const long long distance = TEAMS > 1 ? C : (long long)gridDim.x * C;
    if constexpr (TEAMS > 1) __syncthreads();  // all have read their stages
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        if (pack_column(p) >= C) continue;
        store(parts + pack_column(p), dweight[p]);
        store(parts + distance + pack_column(p), dbias[p]);
        store(parts + 2 * distance + pack_column(p), dsum[p]);
    }
    if constexpr (TEAMS > 1) {
        __syncthreads();
        for (int i = threadIdx.x; i < 3 * C; i += TEAM * TEAMS) {
            float total = smem[i];
#pragma unroll 8
            for (int other = 1; other < TEAMS; other++) total += smem[3 * other * C + i];
            partials[((long long)(i / C) * gridDim.x + blockIdx.x) * C + i % C] = total;
        }
    }
}

// dweight +=, dbias += and, unless it is null, dsum += the sums of the blocks' shares; partials
// (3, num_parts, C). Block (x, y) of 1024 threads has 32 columns of sum y.
extern "C" __global__ void __launch_bounds__(SQUARE_THREADS)
    layernorm_backward_finish(float* dweight, float* dbias, float* dsum, const float* partials,
                              int num_parts, int C) {
    float* out = blockIdx.y == 0 ? dweight : blockIdx.y == 1 ? dbias : dsum;
    add_column_sums(out, partials + (long long)blockIdx.y * num_parts * C, num_parts, C);
}
