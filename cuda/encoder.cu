// Token plus position embedding and its gradients; contract in ops/encoder.py.
//
// Rows of wte and of dout are wanted more than once, in no order that helps. So the blocks go through
// the matrices in slices of columns that the second-level cache holds: what the first of them has read
// from memory, the others find there.
#include "lib/packs.cuh"

constexpr int WARPS = 8;  // of a block

constexpr int ROWS = 2;  // of one thread, one position in as many texts: they are loaded together
constexpr int FORWARD_COLUMNS = PACK_SIZE * WARP;  // of a slice: a pack for each lane

// out[b, t, :] = wte[tokens[b, t], :] + wpe[t, :]; out (B, T, C), tokens (B, T). A warp has a position
// t in ROWS texts. Grid: ceil(C / FORWARD_COLUMNS) * ceil(B / ROWS) * ceil(T / WARPS).
extern "C" __global__ void encoder_forward(floatX* out, const int* tokens, const floatX* wte,
                                           const floatX* wpe, int B, int T, int C) {
    const int position_blocks = (T + WARPS - 1) / WARPS, text_blocks = (B + ROWS - 1) / ROWS;
    const int t = blockIdx.x % position_blocks * WARPS + threadIdx.x / WARP;
    const int first = blockIdx.x / position_blocks % text_blocks * ROWS;
    const int slice = blockIdx.x / (position_blocks * text_blocks);
    const int column = slice * FORWARD_COLUMNS + threadIdx.x % WARP * PACK_SIZE;
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
        for (int k = 0; k < PACK_SIZE; k++) x[k] += p[k];
        store_streaming(out + row(i) * C + column, x);  // not to drive out rows of wte
    }
}

// ---- gradients --------------------------------------------------------------------------------

constexpr int COLUMNS = 4 * WARP;           // of a slice: four for each lane
constexpr int WINDOW = WARP;                // positions in sorted order that a warp looks after
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
        if constexpr (PACK_SIZE == 4)
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
__device__ __forceinline__ void add_to(float* gradient, const Floats<4>& sum) {
    Floats<4> total = load<4>(gradient);
    add(total, sum);
    store(gradient, total);
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
};

// dwpe[t, :] += sum over b of dout[b, t, :].
__device__ __forceinline__ void add_position(const Lane& lane, int t, int B, int T) {
    if (t >= T || !lane.inside) return;
    Floats<4> sum = filled<4>(0.0f);
#pragma unroll 8
    for (int b = 0; b < B; b++) add(sum, unpack(lane.row((long long)b * T + t)));
    add_to(lane.dwpe + (long long)t * lane.C, sum);
}

// The row of dout at a sorted position, and its token; both -1 outside.
struct Sorted {
    int row, token;
    __device__ __forceinline__ Sorted(const int* order, const int* tokens, long long at, int N)
        : row(at >= 0 && at < N ? order[at] : -1), token(row < 0 ? -1 : tokens[row]) {}
};

// A warp has a window of sorted positions, from `first` on. A run that begins there it
// follows into the next window; if that has nothing else, the run is long. Then each window adds up
// its own rows: the first adds them to dwte, the others leave them in `continued`, this window's row
// of sums, for encoder_backward_finish.
__device__ __forceinline__ void add_window(const Lane& lane, float* continued, const int* order,
                                           const int* tokens, long long first, int N) {
    const int number = threadIdx.x % WARP;
    const Sorted own(order, tokens, first + number, N);
    const Sorted next(order, tokens, first + WINDOW + number, N);
    // The last tokens of the two windows before.
    const int ends = number < 2 ? Sorted(order, tokens, first - 1 - number * WINDOW, N).token : -1;
    const int before = __shfl_sync(FULL_WARP, ends, 0), earlier = __shfl_sync(FULL_WARP, ends, 1);
    const int last = __shfl_sync(FULL_WARP, own.token, WINDOW - 1);
    const int num_positions = __popc(__ballot_sync(FULL_WARP, own.token >= 0));
    const int neighbour = __shfl_up_sync(FULL_WARP, own.token, 1);
    // Bit i: at position i begins what the warp adds up.
    unsigned begins =
        __ballot_sync(FULL_WARP, own.token >= 0 && own.token != (number == 0 ? before : neighbour));
    const unsigned others = __ballot_sync(FULL_WARP, next.token != last);
    int stop = num_positions;
    if (begins != 0 && others != 0) stop += __ffs(others) - 1;
    // A run from an earlier window is long if it fills this one or has filled the one before.
    const int num_continued = begins != 0 ? __ffs(begins) - 1 : num_positions;
    const bool is_long = num_continued == WINDOW || earlier == before;
    if (num_continued > 0 && is_long) begins |= 1;

    Floats<4> sum = filled<4>(0.0f);
    for (int start = begins != 0 ? __ffs(begins) - 1 : stop; start < stop; start += AHEAD) {
        Quad loaded[AHEAD];
        Floats<4> totals[AHEAD];
        int ended[AHEAD];  // the token whose run ends here, or -1
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int at = start + i;  // the same in all lanes
            const int row = __shfl_sync(FULL_WARP, at < WARP ? own.row : next.row, at % WARP);
            const int token = __shfl_sync(FULL_WARP, own.token, min(at, WARP - 1));
            const bool is_end = at + 1 == stop || (at + 1 < WARP && begins >> (at + 1) & 1);
            ended[i] = is_end ? token : -1;
            if (at >= stop || !lane.inside) continue;
            loaded[i] = lane.row(row);
            if (is_end && at >= num_continued)
                totals[i] = load<4>(lane.dwte + (long long)token * lane.C);
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (start + i >= stop || !lane.inside) continue;
            add(sum, unpack(loaded[i]));
            if (ended[i] < 0) continue;
            if (start + i < num_continued) {
                store(continued, sum);
            } else {
                add(totals[i], sum);
                // Not to drive out rows of dout.
                store_streaming(lane.dwte + (long long)ended[i] * lane.C, totals[i]);
            }
            sum = filled<4>(0.0f);
        }
    }
}

// dwte[token, :] += sum of dout[n, :] over the rows n of that token, but for what is left in `sums`;
// dwpe[t, :] += sum over b of dout[b, t, :]. dout (B, T, C), sums (ceil(B * T / WINDOW), C).
// `order` (B * T) sorts the rows by token, so each token's rows are one run of neighbours, added in
// that order without atomics. Both sums need all of dout, its rows in two orders. A warp has one
// position t or one window; in each slice the positions come first.
// Grid: ceil(C / COLUMNS) * (ceil(T / WARPS) + ceil(B * T / (WARPS * WINDOW))).
extern "C" __global__ void __launch_bounds__(WARPS* WARP, 3)
    encoder_backward(float* dwte, float* dwpe, float* sums, const floatX* dout, const int* tokens,
                     const int* order, int B, int T, int C) {
    const int warp = threadIdx.x / WARP, N = B * T;
    const int position_blocks = (T + WARPS - 1) / WARPS;
    const int window_blocks = (N + WARPS * WINDOW - 1) / (WARPS * WINDOW);
    const int block = blockIdx.x % (position_blocks + window_blocks);
    const int slice = blockIdx.x / (position_blocks + window_blocks);
    const int column = slice * COLUMNS + threadIdx.x % WARP * 4;
    const Lane lane{dwte + column, dwpe + column, dout + column, C, column < C};
    if (block < position_blocks) {
        add_position(lane, block * WARPS + warp, B, T);
    } else {
        const long long window = (long long)(block - position_blocks) * WARPS + warp;
        add_window(lane, sums + window * C + column, order, tokens, window * WINDOW, N);
    }
}

constexpr int SUMS_AHEAD = 16;  // that are loaded together

// dwte[token, :] += the sums that the windows behind a long run's first have left. A warp looks whether
// its window is the second of such a run; those that the block has found, all its warps add up.
// Grid: ceil(number of windows / WARPS).
extern "C" __global__ void __launch_bounds__(WARPS* WARP)
    encoder_backward_finish(float* dwte, const float* sums, const int* tokens, const int* order,
                            int N, int C) {
    __shared__ int found[WARPS];  // the token of each warp's run, or -1
    const int warp = threadIdx.x / WARP, number = threadIdx.x % WARP;
    auto token_at = [&](int window, int position) {
        return Sorted(order, tokens, (long long)window * WINDOW + position, N).token;
    };
    const int own = blockIdx.x * WARPS + warp;
    // The last tokens of the window and of the two before.
    const int ends = number < 3 ? token_at(own - number, WINDOW - 1) : -1;
    const int last = __shfl_sync(FULL_WARP, ends, 0), before = __shfl_sync(FULL_WARP, ends, 1);
    const int earlier = __shfl_sync(FULL_WARP, ends, 2);
    if (number == 0) found[warp] = last == before && before != earlier ? last : -1;
    __syncthreads();

    for (int i = 0; i < WARPS; i++) {
        if (found[i] < 0) continue;
        for (int slice = warp * COLUMNS; slice < C; slice += WARPS * COLUMNS) {
            const int column = slice + number * 4;
            Floats<4> sum = filled<4>(0.0f);
            int count = WARP;
            for (int window = blockIdx.x * WARPS + i; count == WARP; window += WARP) {
                const bool continues = token_at(window + number, 0) == found[i];
                count = __popc(__ballot_sync(FULL_WARP, continues));
                if (column >= C) continue;
                const float* rows = sums + (long long)window * C + column;
                for (int start = 0; start < count; start += SUMS_AHEAD) {
                    Floats<4> loaded[SUMS_AHEAD];
#pragma unroll
                    for (int n = 0; n < SUMS_AHEAD; n++)
                        if (start + n < count)
                            loaded[n] = load<4>(rows + (long long)(start + n) * C);
#pragma unroll
                    for (int n = 0; n < SUMS_AHEAD; n++)
                        if (start + n < count) add(sum, loaded[n]);
                }
            }
            if (column < C) add_to(dwte + (long long)found[i] * C + column, sum);
        }
    }
}
