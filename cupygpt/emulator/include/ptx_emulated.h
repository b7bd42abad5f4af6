// Host version of cuda/lib/ptx.cuh: the same names and the same fragment layouts (PTX ISA, "Matrix
// fragments for mma.m16n8k8 / m16n8k16"). A golden test compares them with a GPU's answer.
#pragma once
#include "emulator_abi.h"
#include "math_functions.h"

namespace emu {

struct MmaLane {
    float* d;
    const unsigned* a;
    const unsigned* b;
    const float* c;
};

inline float bf16_half(unsigned word, int high) {
    return bits<float>(high ? word & 0xffff0000u : word << 16);
}
// The tensor core ignores the low 13 bits of a tf32 operand.
inline float tf32_operand(unsigned word) { return bits<float>(word & 0xffffe000u); }

// C and D of m16n8: register r of lane holds this row and column.
inline int d_row(int lane, int r) { return lane / 4 + r / 2 * 8; }
inline int d_col(int lane, int r) { return lane % 4 * 2 + r % 2; }

// D = A B + C from one fragment per lane. Load() spreads a lane's A and B registers.
template <int K, class Load>
EMU_UNCHECKED void mma(void** lanes) {
    float A[16][K], B[K][8], D[16][8];
    for (int lane = 0; lane < 32; lane++) {
        auto* data = static_cast<MmaLane*>(lanes[lane]);
        if (!data) emu_fail("warp", "mma needs a full warp", "", 0);
        Load::spread(lane, data->a, data->b, A, B);
        for (int r = 0; r < 4; r++) D[d_row(lane, r)][d_col(lane, r)] = data->c[r];
    }
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < K; k++)
            for (int n = 0; n < 8; n++) D[m][n] += A[m][k] * B[k][n];
    for (int lane = 0; lane < 32; lane++)
        for (int r = 0; r < 4; r++)
            static_cast<MmaLane*>(lanes[lane])->d[r] = D[d_row(lane, r)][d_col(lane, r)];
}

struct Bf16K16 {
    EMU_UNCHECKED static void spread(int lane, const unsigned* a, const unsigned* b,
                                     float (&A)[16][16], float (&B)[16][8]) {
        int group = lane / 4, pair = lane % 4 * 2;
        for (int r = 0; r < 4; r++)
            for (int h = 0; h < 2; h++)
                A[group + r % 2 * 8][pair + r / 2 * 8 + h] = bf16_half(a[r], h);
        for (int r = 0; r < 2; r++)
            for (int h = 0; h < 2; h++) B[pair + r * 8 + h][group] = bf16_half(b[r], h);
    }
};

struct Tf32K8 {
    EMU_UNCHECKED static void spread(int lane, const unsigned* a, const unsigned* b,
                                     float (&A)[16][8], float (&B)[8][8]) {
        int group = lane / 4, member = lane % 4;
        for (int r = 0; r < 4; r++) A[group + r % 2 * 8][member + r / 2 * 4] = tf32_operand(a[r]);
        for (int r = 0; r < 2; r++) B[member + r * 4][group] = tf32_operand(b[r]);
    }
};

struct MatrixLane {
    unsigned* registers;
    const void* row;
    const char* element[4][2];  // the source of this lane's two elements of each matrix
};

// Lane 8 m + i gives row i of matrix m; lane 4 i + j receives elements (i, 2 j) and (i, 2 j + 1),
// or (2 j, i) and (2 j + 1, i) if transposed.
template <int COUNT, bool TRANSPOSED>
EMU_UNCHECKED void load_matrices(void** lanes) {
    for (int lane = 0; lane < 32; lane++)
        if (!lanes[lane]) emu_fail("warp", "ldmatrix needs a full warp", "", 0);
    for (int m = 0; m < COUNT; m++) {
        for (int lane = 0; lane < 32; lane++) {
            auto* mine = static_cast<MatrixLane*>(lanes[lane]);
            mine->registers[m] = 0;
            for (int h = 0; h < 2; h++) {
                const int i = lane / 4, j = lane % 4 * 2 + h;
                const int row = TRANSPOSED ? j : i, column = TRANSPOSED ? i : j;
                const void* start = static_cast<MatrixLane*>(lanes[m * 8 + row])->row;
                mine->element[m][h] = static_cast<const char*>(start) + 2 * column;
                unsigned short value;
                __builtin_memcpy(&value, mine->element[m][h], 2);
                mine->registers[m] |= unsigned(value) << 16 * h;
            }
        }
    }
}

template <int COUNT, bool TRANSPOSED>
inline __attribute__((always_inline)) void ldmatrix(const char* name, unsigned* registers,
                                                    const void* row, const char* file, int line) {
    // Only the first 8 * COUNT lanes' addresses are used.
    if (emu_lane() < 8 * COUNT) {
        if (uintptr_t(row) % 16)
            emu_fail("misaligned", "an ldmatrix row must start at a multiple of 16 bytes", file,
                     line);
        emu_check(row, 16, EMU_READ);
    }
    MatrixLane data{registers, row, {}};
    emu_warp(name, 0xffffffffu, &data, &load_matrices<COUNT, TRANSPOSED>, 0, file, line);
    // A lane also reads what it receives: a row that was written by the lane that gives its
    // address is not ordered before the reads of the other lanes.
    for (int m = 0; m < COUNT; m++)
        for (int h = 0; h < 2; h++) emu_check_only(data.element[m][h], 2, EMU_READ);
}

template <int BYTES>
inline __attribute__((always_inline)) void copy_async(void* shared, const void* global,
                                                      int source_bytes, const char* file,
                                                      int line) {
    if (uintptr_t(shared) % BYTES || uintptr_t(global) % BYTES)
        emu_fail("misaligned", "both sides of a cp.async must be multiples of its size", file,
                 line);
    if (source_bytes < 0 || source_bytes > BYTES)
        emu_fail("async_copy", "cp.async: the source size is outside 0 .. size", file, line);
    emu_async_copy(shared, global, BYTES, size_t(source_bytes));
}

}  // namespace emu

inline void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                              const float (&c)[4], EMU_CALL_SITE) {
    emu::MmaLane data{d, a, b, c};
    emu_warp("mma_m16n8k16_bf16", 0xffffffffu, &data, &emu::mma<16, emu::Bf16K16>, 0, file, line);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                             const float (&c)[4], EMU_CALL_SITE) {
    emu::MmaLane data{d, a, b, c};
    emu_warp("mma_m16n8k8_tf32", 0xffffffffu, &data, &emu::mma<8, emu::Tf32K8>, 0, file, line);
}

#define EMU_LDMATRIX(NAME, COUNT, TRANSPOSED)                                                      \
    inline __attribute__((always_inline)) void NAME(unsigned (&registers)[COUNT], const void* row, \
                                                    EMU_CALL_SITE) {                               \
        emu::ldmatrix<COUNT, TRANSPOSED>(#NAME, registers, row, file, line);                       \
    }
EMU_LDMATRIX(ldmatrix_x2, 2, false)
EMU_LDMATRIX(ldmatrix_x4, 4, false)
EMU_LDMATRIX(ldmatrix_x2_trans, 2, true)
EMU_LDMATRIX(ldmatrix_x4_trans, 4, true)

#define EMU_CP_ASYNC(NAME, BYTES)                                                              \
    inline __attribute__((always_inline)) void NAME(void* shared, const void* global,          \
                                                    EMU_CALL_SITE) {                           \
        emu::copy_async<BYTES>(shared, global, BYTES, file, line);                             \
    }                                                                                          \
    inline __attribute__((always_inline)) void NAME##_zfill(void* shared, const void* global,  \
                                                            int source_bytes, EMU_CALL_SITE) { \
        emu::copy_async<BYTES>(shared, global, source_bytes, file, line);                      \
    }
EMU_CP_ASYNC(cp_async4, 4)
EMU_CP_ASYNC(cp_async16, 16)

namespace emu {
// By thread: it has waited for copies and has not called fence_for_wgmma since (see
// ptx_hopper_emulated.h).
inline bool copies_not_fenced[1024];
EMU_UNCHECKED inline void note_copies() {
    const uint3 i = emu_thread_index();
    const dim3 size = emu_block_size();
    copies_not_fenced[i.x + size.x * (i.y + size.y * i.z)] = true;
}
}  // namespace emu

inline __attribute__((always_inline)) void cp_async_commit() { emu_async_commit(); }
template <int GROUPS_LEFT>
inline __attribute__((always_inline)) void cp_async_wait() {
    emu_async_wait(GROUPS_LEFT);
    emu::note_copies();
}

// All threads of the block wait, not only those of the group. This is right for kernels whose
// groups call it equally often; but the checker cannot see a race between two groups.
template <int THREADS>
inline void sync_group(int, EMU_CALL_SITE) {
    emu_barrier(file, line);
}

// Round to nearest, ties away from zero, to 10 bits of fraction (cvt.rna.tf32.f32).
inline unsigned tf32_round(float value) {
    unsigned u = emu::bits<unsigned>(value);
    if ((u & 0x7f800000u) == 0x7f800000u) return u;
    return (u + 0x1000u) & 0xffffe000u;
}

// ex2.approx.ftz.f32: its error is not modelled, its flush to zero is.
inline float exp2_approx(float x) {
    float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}
