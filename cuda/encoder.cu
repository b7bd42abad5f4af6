// Token plus position embedding, and its gradients; contract in ops/encoder.py.
//
// Forward reads rows of wte, and backward rows of dout, more than once and in no useful order. So
// the blocks work on one slice of columns after the other. A slice usually fits in the second-level
// cache: what one block has read from memory, other blocks find there. (A GPU starts blocks roughly
// in the order of their index. Only the speed depends on that.)
//
//    columns of the matrices:   |  slice 0  |  slice 1  |  slice 2  |
//    index of the block:         0, 1, 2, ..  then those of slice 1, then those of slice 2
//
// Forward. A warp has one position t in FORWARD_SEQUENCES sequences, so it reads wpe[t] once.
// Blocks of a slice for T = 16, B = 4, with 8 warps in a block and 2 sequences:
//
//                  t = 0 ... 7    t = 8 ... 15
//    b = 0, 1        block 0         block 1
//    b = 2, 3        block 2         block 3
//
// Backward. dwpe[t] is the sum over b of dout[b, t]: a warp has one t. dwte[token] is the sum of
// the rows of dout with that token, which may be anywhere. `order` lists the row numbers sorted
// by token: the entries of one token are neighbours in it, a token group. A warp has a window of
// 32 entries (only the tokens of the entries are drawn):
//
//    window     0                   1                   2                   3
//    entry      0 .......... 31     32 ......... 63     64 ......... 95     96 ........ 127
//    token      A A A A .... A A    A A B C C D .. D    D D D D D .. D D    D D E E E .. F F
//
//    warp 0     A, which it follows into window 1                           -> added to dwte
//    warp 1                         B; C; its part of D                     -> added to dwte
//    warp 2                                             its part of D       -> sums[2]
//    warp 3                                                                 D -> sums[3]
//                                                                           E; F -> added to dwte
//
// A token group belongs to the warp in whose window it begins. It is long if it fills the whole
// window after that one. D is long. A is short: it fills window 0, in which it begins, but not
// window 1. A short group is added up by its warp alone. Of a long group each warp adds up its own
// part; the first adds it to dwte, the others leave it in their row of `sums`, and
// encoder_backward_finish adds sums[2] + sums[3] to dwte[D]. So no sum needs atomics, and the order
// of additions is fixed.
//
// -D constants, from ops/encoder.py:
//   WARPS              warps of a block
//   FORWARD_SEQUENCES  sequences of a warp in forward
//   BACKWARD_COLUMNS   columns of a slice in backward
//   WINDOW             entries of a window
#include "lib/packs.cuh"

// ---- forward ------------------------------------------------------------------------------------

constexpr int FORWARD_COLUMNS = PACK_SIZE * WARP;  // of a slice: a pack for each lane

// out[b, t, :] = wte[tokens[b, t], :] + wpe[t, :]. Written: out (B, T, C). Read: tokens (B, T), wte
// (Vp, C), wpe (maxT, C). Block: WARPS warps.
// Grid: ceil(C / FORWARD_COLUMNS) * ceil(B / FORWARD_SEQUENCES) * ceil(T / WARPS).
extern "C" __global__ void encoder_forward(floatX* out, const int* tokens, const floatX* wte,
                                           const floatX* wpe, int B, int T, int C) {
    const int position_blocks = (T + WARPS - 1) / WARPS;
    const int sequence_blocks = (B + FORWARD_SEQUENCES - 1) / FORWARD_SEQUENCES;
    const int t = blockIdx.x % position_blocks * WARPS + threadIdx.x / WARP;
    const int first = blockIdx.x / position_blocks % sequence_blocks * FORWARD_SEQUENCES;
    const int slice = blockIdx.x / (position_blocks * sequence_blocks);
    const int column = slice * FORWARD_COLUMNS + threadIdx.x % WARP * PACK_SIZE;
    if (t >= T || column >= C) return;
    auto row = [&](int i) { return (long long)(first + i) * T + t; };
    // Step 1: load the rows of wte; all loads start before the first is used.
    int token[FORWARD_SEQUENCES];
    RawPack of_token[FORWARD_SEQUENCES];
#pragma unroll
    for (int i = 0; i < FORWARD_SEQUENCES; i++) token[i] = first + i < B ? tokens[row(i)] : -1;
#pragma unroll
    for (int i = 0; i < FORWARD_SEQUENCES; i++)
        if (token[i] >= 0) of_token[i] = load_raw(wte + (long long)token[i] * C + column);
    // Step 2: add the row of wpe to each.
    const Pack p = load_pack(wpe + (long long)t * C + column);
#pragma unroll
    for (int i = 0; i < FORWARD_SEQUENCES; i++) {
        if (token[i] < 0) continue;
        Pack x = unpack(of_token[i]);
#pragma unroll
        for (int k = 0; k < PACK_SIZE; k++) x[k] += p[k];
        store_streaming(out + row(i) * C + column, x);  // rows of wte stay in the cache
    }
}

// The same for tokens at any positions: out[n, :] = wte[tokens[n], :] + wpe[positions[n], :], for
// text generation. Written: out (N, C). Read: tokens, positions (N). One thread per pack.
extern "C" __global__ void encoder_decode(floatX* out, const int* tokens, const int* positions,
                                          const floatX* wte, const floatX* wpe, int C,
                                          long long num_packs) {
    const long long pack = global_thread();
    if (pack >= num_packs) return;
    const int n = int(pack * PACK_SIZE / C), column = int(pack * PACK_SIZE % C);
    Pack x = load_pack(wte + (long long)tokens[n] * C + column);
    const Pack p = load_pack(wpe + (long long)positions[n] * C + column);
#pragma unroll
    for (int k = 0; k < PACK_SIZE; k++) x[k] += p[k];
    store(out + pack * PACK_SIZE, x);
}

// ---- four columns of a row ----------------------------------------------------------------------

constexpr int LANE_COLUMNS = 4;  // of a lane in backward
// Rows of dout that are loaded together: 4 of float, or 8 of bfloat16 in as many registers.
constexpr int ROWS_IN_FLIGHT = 16 / sizeof(floatX);

static_assert(BACKWARD_COLUMNS == LANE_COLUMNS * WARP, "each lane has four columns of a slice");
static_assert(WINDOW == WARP, "each lane looks at one entry of a window");

// Four elements as they lie in memory. A pack of bfloat16 has 8, but the float gradients of 8
// columns are 32 bytes: a lane would write them by two stores, each with gaps between the lanes.
// With 4 columns it is one store of 16 bytes, without gaps.
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

// This lane's columns of all matrices; beyond C nothing is read or written.
struct LaneColumns {
    float *dwte, *dwpe;  // row 0, from this lane's first column on
    const floatX* dout;
    int C;
    bool inside;

    __device__ __forceinline__ Quad dout_row(long long n) const {
        return *reinterpret_cast<const Quad*>(dout + n * C);
    }
};

// ---- backward: the gradient of wpe --------------------------------------------------------------

// dwpe[t, :] += sum over b of dout[b, t, :].
__device__ __forceinline__ void add_position(const LaneColumns& columns, int t, int B, int T) {
    if (t >= T || !columns.inside) return;
    Floats<4> sum = filled<4>(0.0f);
#pragma unroll 8
    for (int b = 0; b < B; b++) add(sum, unpack(columns.dout_row((long long)b * T + t)));
    add_to(columns.dwpe + (long long)t * columns.C, sum);
}

// ---- backward: the gradient of wte --------------------------------------------------------------

// Entry i of `order`: a row of dout, and its token; both -1 outside.
struct Entry {
    int row, token;
    __device__ __forceinline__ Entry(const int* order, const int* tokens, long long i, int N)
        : row(i >= 0 && i < N ? order[i] : -1), token(row < 0 ? -1 : tokens[row]) {}
};

// Which sums a warp computes, over which entries; these are counted from the window's first. The
// sums are neighbours, from the first bit of `begins` to `stop`, and only the last one may reach
// into the next window.
struct WindowPlan {
    Entry own, next;    // this lane's entry of this window, and of the next window
    unsigned begins;    // bit i: a sum begins at entry i. From here on the same in all lanes.
    int stop;           // the entry after the last sum
    int num_continued;  // entries at the front whose token group began in an earlier window

    __device__ __forceinline__ int start() const {  // stop if there are no sums
        return begins != 0 ? __ffs(begins) - 1 : stop;
    }
    __device__ __forceinline__ int row(int entry) const {
        return __shfl_sync(FULL_WARP, entry < WARP ? own.row : next.row, entry % WARP);
    }
    __device__ __forceinline__ int token(int entry) const {
        return __shfl_sync(FULL_WARP, own.token, min(entry, WARP - 1));
    }
};

// Step 1: look at the tokens around the window whose first entry is `first`, and plan the sums.
__device__ __forceinline__ WindowPlan plan_sums(const int* order, const int* tokens,
                                                long long first, int N) {
    const int lane = threadIdx.x % WARP;
    WindowPlan plan = {Entry(order, tokens, first + lane, N),
                       Entry(order, tokens, first + WINDOW + lane, N)};
    const int token = plan.own.token;
    // The last tokens of the two windows before.
    const int last_tokens =
        lane < 2 ? Entry(order, tokens, first - 1 - lane * WINDOW, N).token : -1;
    const int before = __shfl_sync(FULL_WARP, last_tokens, 0);
    const int earlier = __shfl_sync(FULL_WARP, last_tokens, 1);
    const int last = __shfl_sync(FULL_WARP, token, WINDOW - 1);
    const int num_entries = __popc(__ballot_sync(FULL_WARP, token >= 0));
    // A token group begins where the token is not that of the entry before.
    const int neighbour = __shfl_up_sync(FULL_WARP, token, 1);
    plan.begins = __ballot_sync(FULL_WARP, token >= 0 && token != (lane == 0 ? before : neighbour));
    // If the last group begins in this window, it is followed into the next one, up to the first
    // other token. If there is none, the group is long and is not followed, or `order` ends here.
    const unsigned others = __ballot_sync(FULL_WARP, plan.next.token != last);
    plan.stop = num_entries;
    if (plan.begins != 0 && others != 0) plan.stop += __ffs(others) - 1;
    // A group from an earlier window is long if it fills this window, or if it began before the
    // previous window: then it has filled that one. The warp adds up its part of a long group only.
    plan.num_continued = plan.begins != 0 ? __ffs(plan.begins) - 1 : num_entries;
    const bool is_long = plan.num_continued == WINDOW || earlier == before;
    if (plan.num_continued > 0 && is_long) plan.begins |= 1;
    return plan;
}

// Whether a sum ends with this entry.
__device__ __forceinline__ bool is_last(unsigned begins, int stop, int entry) {
    return entry + 1 == stop || (entry + 1 < WARP && begins >> (entry + 1) & 1);
}

// Step 2: compute the sums. The sum of a long group from an earlier window goes to `continued`,
// this window's row of `sums`; all others are added to dwte.
__device__ __forceinline__ void add_sums(const LaneColumns& columns, float* continued,
                                         const WindowPlan& plan) {
    Floats<4> sum = filled<4>(0.0f);
    for (int start = plan.start(); start < plan.stop; start += ROWS_IN_FLIGHT) {
        Quad loaded[ROWS_IN_FLIGHT];
        Floats<4> totals[ROWS_IN_FLIGHT];
        int ended[ROWS_IN_FLIGHT];  // the token whose sum ends here, or -1
#pragma unroll
        for (int i = 0; i < ROWS_IN_FLIGHT; i++) {
            const int entry = start + i;  // the same in all lanes
            const int row = plan.row(entry), token = plan.token(entry);
            const bool ends = is_last(plan.begins, plan.stop, entry);
            ended[i] = ends ? token : -1;
            if (entry >= plan.stop || !columns.inside) continue;
            loaded[i] = columns.dout_row(row);
            if (ends && entry >= plan.num_continued)
                totals[i] = load<4>(columns.dwte + (long long)token * columns.C);
        }
#pragma unroll
        for (int i = 0; i < ROWS_IN_FLIGHT; i++) {
            const int entry = start + i;
            if (entry >= plan.stop || !columns.inside) continue;
            add(sum, unpack(loaded[i]));
            if (ended[i] < 0) continue;
            if (entry < plan.num_continued) {
                store(continued, sum);
            } else {
                add(totals[i], sum);
                // Rows of dout stay in the cache.
                store_streaming(columns.dwte + (long long)ended[i] * columns.C, totals[i]);
            }
            sum = filled<4>(0.0f);
        }
    }
}

// dwte[token, :] += sum of dout[n, :] over the rows n with that token, except for what is left in
// `sums`; dwpe[t, :] += sum over b of dout[b, t, :]. Accumulated: dwte (Vp, C), dwpe (maxT, C).
// Written: sums (ceil(N / WINDOW), C), but only the rows of windows that continue a long group;
// N = B * T. Read: dout (B, T, C), tokens (B, T), order (N), the row numbers sorted by token. Both
// gradients need all of dout, so they share a kernel: in each slice the blocks for dwpe come first,
// then those for dwte. Block: WARPS warps, each with a position t or a window; three blocks on a
// multiprocessor leave a thread 80 registers.
// Grid: ceil(C / BACKWARD_COLUMNS) * (ceil(T / WARPS) + ceil(N / (WARPS * WINDOW))).
extern "C" __global__ void __launch_bounds__(WARPS* WARP, 3)
    encoder_backward(float* dwte, float* dwpe, float* sums, const floatX* dout, const int* tokens,
                     const int* order, int B, int T, int C) {
    const int warp = threadIdx.x / WARP, N = B * T;
    const int position_blocks = (T + WARPS - 1) / WARPS;
    const int window_blocks = (N + WARPS * WINDOW - 1) / (WARPS * WINDOW);
    const int block = blockIdx.x % (position_blocks + window_blocks);
    const int slice = blockIdx.x / (position_blocks + window_blocks);
    const int column = slice * BACKWARD_COLUMNS + threadIdx.x % WARP * LANE_COLUMNS;
    const LaneColumns columns{dwte + column, dwpe + column, dout + column, C, column < C};
    if (block < position_blocks) {
        add_position(columns, block * WARPS + warp, B, T);
    } else {
        const long long index = (long long)(block - position_blocks) * WARPS + warp;
        const WindowPlan plan = plan_sums(order, tokens, index * WINDOW, N);
        add_sums(columns, sums + index * C + column, plan);
    }
}

// ---- backward: the rest of long token groups ----------------------------------------------------

constexpr int SUMS_IN_FLIGHT = 16;  // rows of `sums` that are loaded together

// Adds up this lane's columns of sums[first], sums[first + 1], ... as long as the windows begin
// with `token`. token_at(window, i) is the token of entry i of a window.
template <class TokenAt>
__device__ __forceinline__ Floats<4> sum_of_windows(const float* sums, const TokenAt& token_at,
                                                    int token, int first, int column, int C) {
    Floats<4> sum = filled<4>(0.0f);
    int count = WARP;
    for (int window = first; count == WARP; window += WARP) {  // each lane looks at one window
        const bool continues = token_at(window + int(threadIdx.x) % WARP, 0) == token;
        count = __popc(__ballot_sync(FULL_WARP, continues));
        if (column >= C) continue;
        const float* rows = sums + (long long)window * C + column;
        for (int start = 0; start < count; start += SUMS_IN_FLIGHT) {
            Floats<4> loaded[SUMS_IN_FLIGHT];
#pragma unroll
            for (int n = 0; n < SUMS_IN_FLIGHT; n++)
                if (start + n < count) loaded[n] = load<4>(rows + (long long)(start + n) * C);
#pragma unroll
            for (int n = 0; n < SUMS_IN_FLIGHT; n++)
                if (start + n < count) add(sum, loaded[n]);
        }
    }
    return sum;
}

// dwte[token, :] += what the windows after the first of a long token group have left.
// Accumulated: dwte (Vp, C). Read: sums, tokens, order as in encoder_backward. Each warp looks
// whether its window is the second one of a long group. Then all warps of the block add up the
// groups that were found, each warp other columns. Block: WARPS warps. Grid: ceil(number of
// windows / WARPS).
extern "C" __global__ void __launch_bounds__(WARPS* WARP)
    encoder_backward_finish(float* dwte, const float* sums, const int* tokens, const int* order,
                            int N, int C) {
    __shared__ int found[WARPS];  // the token of the long group, or -1, for each warp's window
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    auto token_at = [&](int window, int i) {
        return Entry(order, tokens, (long long)window * WINDOW + i, N).token;
    };
    // Step 1: find long groups. The window is the second one of a long group if the group fills it
    // and began in the window before: the last tokens of these two windows are equal, and that of
    // the window before them is another.
    const int window = blockIdx.x * WARPS + warp;
    const int last_tokens = lane < 3 ? token_at(window - lane, WINDOW - 1) : -1;
    const int last = __shfl_sync(FULL_WARP, last_tokens, 0);
    const int before = __shfl_sync(FULL_WARP, last_tokens, 1);
    const int earlier = __shfl_sync(FULL_WARP, last_tokens, 2);
    if (lane == 0) found[warp] = last == before && before != earlier ? last : -1;
    __syncthreads();

    // Step 2: add up what their windows have left.
    for (int i = 0; i < WARPS; i++) {
        if (found[i] < 0) continue;
        for (int slice = warp * BACKWARD_COLUMNS; slice < C; slice += WARPS * BACKWARD_COLUMNS) {
            const int column = slice + lane * LANE_COLUMNS;
            const Floats<4> sum =
                sum_of_windows(sums, token_at, found[i], blockIdx.x * WARPS + i, column, C);
            if (column < C) add_to(dwte + (long long)found[i] * C + column, sum);
        }
    }
}
