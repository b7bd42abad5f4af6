// Token plus position embedding and its gradients; contract in ops/encoder.py.
//
// Rows of wte, of dwte and of dout are wanted more than once, in no order that helps. So the blocks go
// through the matrices in slices of columns that the second-level cache holds: what the first of them
// has read from memory, the others find there.
#include "common.cuh"

constexpr int WARPS = 8;  // of a block

constexpr int ROWS = 2;  // of one thread, one position in as many texts: they are loaded together
constexpr int FORWARD_COLUMNS = LANES * WARP;  // of a slice: a pack for each lane

// out[b, t, :] = wte[tokens[b, t], :] + wpe[t, :]; out (B, T, C), tokens (B, T). A warp has a position
// t in ROWS texts. Grid: ceil(C / FORWARD_COLUMNS) * ceil(B / ROWS) * ceil(T / WARPS).
extern "C" __global__ void encoder_forward(floatX* out, const int* tokens, const floatX* wte,
                                           const floatX* wpe, int B, int T, int C) {
    const int position_blocks = (T + WARPS - 1) / WARPS, text_blocks = (B + ROWS - 1) / ROWS;
    const int t = blockIdx.x % position_blocks * WARPS + threadIdx.x / WARP;
    const int first = blockIdx.x / position_blocks % text_blocks * ROWS;
    const int slice = blockIdx.x / (position_blocks * text_blocks);
    const int column = slice * FORWARD_COLUMNS + threadIdx.x % WARP * LANES;
    if (t >= T || column >= C) return;
    auto row = [&](int i) { return (long long)(first + i) * T + t; };
    int token[ROWS];
    RawPack of_token[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) token[i] = first + i < B ? tokens[row(i)] : -1;
#pragma unroll
    for (int i = 0; i < ROWS; i++)
        if (token[i] >= 0) of_token[i] = load_raw(wte + (long long)token[i] * C + column);
    const Pack p = load_pack(wpe + (long long)t * C + column);
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        if (token[i] < 0) continue;
        Pack x = unpack(of_token[i]);
#pragma unroll
        for (int k = 0; k < LANES; k++) x[k] += p[k];
        store_streaming(out + row(i) * C + column, x);  // not to drive out rows of wte
    }
}

// ---- gradients --------------------------------------------------------------------------------

constexpr int COLUMNS = 4 * WARP;  // of a slice: four for each lane
constexpr int POSITIONS = WARP;    // in sorted order, that a warp looks after
constexpr int AHEAD = 16 / sizeof(floatX);  // rows of dout that are loaded together

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
__device__ __forceinline__ void add(Floats<4>& sum, const Floats<4>& x) {
#pragma unroll
    for (int k = 0; k < 4; k++) sum[k] += x[k];
}

// A lane's columns of all matrices; what lies beyond C is neither read nor written.
struct Lane {
    float *dwte, *dwpe;  // row 0, from this lane's first column on
    const floatX* dout;
    int C;
    bool inside;

    __device__ __forceinline__ Quad row(long long n) const {
        return *reinterpret_cast<const Quad*>(dout + n * C);
    }
    __device__ __forceinline__ void add_to(float* gradient, const Floats<4>& sum) const {
        Floats<4> total = load<4>(gradient);
        add(total, sum);
        store(gradient, total);
    }
};

// dwpe[t, :] += sum over b of dout[b, t, :].
__device__ __forceinline__ void add_position(const Lane& lane, int t, int B, int T) {
    if (t >= T || !lane.inside) return;
    Floats<4> sum = filled<4>(0.0f);
#pragma unroll 8
    for (int b = 0; b < B; b++) add(sum, unpack(lane.row((long long)b * T + t)));
    lane.add_to(lane.dwpe + (long long)t * lane.C, sum);
}

// The row of dout at a sorted position, and its token; both -1 outside.
struct Sorted {
    int row, token;
    __device__ __forceinline__ Sorted(const int* order, const int* tokens, long long at, int N)
        : row(at >= 0 && at < N ? order[at] : -1), token(row < 0 ? -1 : tokens[row]) {}
};

// A warp has the runs of equal tokens that begin at its positions. It adds up short ones alone, each
// lane for its columns, looking for their rows at as many positions again behind its own. Returns
// where a run begins that ends beyond those, or -1: there can be but one.
__device__ __forceinline__ int add_short_runs(const Lane& lane, const int* order,
                                              const int* tokens, long long first, int N) {
    const int number = threadIdx.x % WARP;
    const Sorted own(order, tokens, first + number, N);
    const Sorted behind(order, tokens, first + POSITIONS + number, N);
    int before = __shfl_up_sync(FULL_WARP, own.token, 1);
    if (number == 0) before = Sorted(order, tokens, first - 1, N).token;
    const unsigned begins = __ballot_sync(FULL_WARP, own.token != before && own.token >= 0);
    const int last = __shfl_sync(FULL_WARP, own.token, WARP - 1);
    const unsigned others = __ballot_sync(FULL_WARP, behind.token != last);
    const int num_positions = __popc(__ballot_sync(FULL_WARP, own.token >= 0));
    if (begins == 0) return -1;  // the one run here began earlier, or there are no positions

    int stop = num_positions, long_run = -1;
    if (last >= 0) {
        stop += others != 0 ? __ffs(others) - 1 : 0;
        if (others == 0) long_run = stop = WARP - 1 - __clz(begins);
    }
    Floats<4> sum = filled<4>(0.0f);
    for (int start = __ffs(begins) - 1; start < stop; start += AHEAD) {
        Quad loaded[AHEAD];
        Floats<4> totals[AHEAD];
        int ended[AHEAD];  // the token whose run ends here, or -1
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int at = start + i;  // the same in all lanes
            const int row = __shfl_sync(FULL_WARP, at < WARP ? own.row : behind.row, at % WARP);
            const int token = __shfl_sync(FULL_WARP, own.token, min(at, WARP - 1));
            const bool ends = at + 1 == stop || (at + 1 < WARP && begins >> (at + 1) & 1);
            ended[i] = ends ? token : -1;
            if (at >= stop || !lane.inside) continue;
            loaded[i] = lane.row(row);
            if (ends) totals[i] = load<4>(lane.dwte + (long long)token * lane.C);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (start + i >= stop || !lane.inside) continue;
            add(sum, unpack(loaded[i]));
            if (ended[i] < 0) continue;
            add(totals[i], sum);
            // Not to drive out rows of dout.
            store_streaming(lane.dwte + (long long)ended[i] * lane.C, totals[i]);
            sum = filled<4>(0.0f);
        }
    }
    return long_run;
}

// The sum of this warp's share of a run's rows, from a sorted position on.
__device__ __forceinline__ Floats<4> share_of_run(const Lane& lane, const int* order,
                                                  const int* tokens, int token, long long first,
                                                  int N) {
    const int number = threadIdx.x % WARP;
    Floats<4> sum = filled<4>(0.0f);
    Sorted here(order, tokens, first + number, N);
    while (true) {
        const int num_rows = __popc(__ballot_sync(FULL_WARP, here.token == token));
        if (num_rows == 0) return sum;
        const int rows = here.row;
        first += WARPS * WARP;
        here = Sorted(order, tokens, first + number, N);  // under way while rows are added
        for (int start = 0; start < num_rows; start += 2 * AHEAD) {
            Quad loaded[2 * AHEAD];
#pragma unroll
            for (int i = 0; i < 2 * AHEAD; i++) {
                const int row = __shfl_sync(FULL_WARP, rows, (start + i) % WARP);
                if (start + i < num_rows && lane.inside) loaded[i] = lane.row(row);
            }
#pragma unroll
            for (int i = 0; i < 2 * AHEAD; i++)
                if (start + i < num_rows && lane.inside) add(sum, unpack(loaded[i]));
        }
    }
}

// dwte[token, :] += sum of dout[n, :] over the rows n of that token, dwpe[t, :] += sum over b of
// dout[b, t, :]; dout (B, T, C). `order` (B * T) sorts the rows by token, so each token's rows are
// one run of neighbours, added in that order without atomics. Both sums need all of dout, its rows in
// two orders. A warp has one position t or POSITIONS sorted ones; those of a slice come first.
// Grid: ceil(C / COLUMNS) * (ceil(T / WARPS) + ceil(B * T / (WARPS * POSITIONS))).
extern "C" __global__ void __launch_bounds__(WARPS* WARP, 3)
encoder_backward(float* dwte, float* dwpe, const floatX* dout, const int* tokens, const int* order,
                 int B, int T, int C) {
    __shared__ long long long_runs[WARPS];  // where those begin that no warp adds up alone, or -1
    __shared__ __align__(16) float sums[WARPS][COLUMNS];
    const int warp = threadIdx.x / WARP, number = threadIdx.x % WARP, N = B * T;
    const int position_blocks = (T + WARPS - 1) / WARPS;
    const int sorted_blocks = (N + WARPS * POSITIONS - 1) / (WARPS * POSITIONS);
    const int block = blockIdx.x % (position_blocks + sorted_blocks);
    const int column = blockIdx.x / (position_blocks + sorted_blocks) * COLUMNS + 4 * number;
    const Lane lane{dwte + column, dwpe + column, dout + column, C, column < C};
    if (block < position_blocks) {
        add_position(lane, block * WARPS + warp, B, T);
        return;
    }

    const long long first = ((long long)(block - position_blocks) * WARPS + warp) * POSITIONS;
    const int long_run = add_short_runs(lane, order, tokens, first, N);
    if (number == 0) long_runs[warp] = long_run < 0 ? -1 : first + long_run;
    __syncthreads();
    for (int owner = 0; owner < WARPS; owner++) {
        const long long begin = long_runs[owner];
        if (begin < 0) continue;  // the same in all threads
        const int token = tokens[order[begin]];
        const Floats<4> share = share_of_run(lane, order, tokens, token, begin + warp * WARP, N);
        store(sums[warp] + 4 * number, share);
        __syncthreads();
        if (warp == 0 && lane.inside) {
            Floats<4> sum = load<4>(sums[0] + 4 * number);
#pragma unroll
            for (int other = 1; other < WARPS; other++)
                add(sum, load<4>(sums[other] + 4 * number));
            lane.add_to(lane.dwte + (long long)token * C, sum);
        }
        __syncthreads();  // the sums have been read
    }
}
