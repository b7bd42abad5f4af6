// Host version of cuda/lib/ptx_hopper.cuh: the same names, and the matrix descriptors of the PTX
// ISA ("Matrix descriptor format", "Strides"; 128-byte swizzle only).
//
// A product is computed when the kernel waits for it, the latest moment that a GPU may choose.
// Until then its accumulator holds NaN, and a write to its tiles changes the result or is reported
// as a race. Each warp computes its 16 rows; nothing checks that the four warps of a group do the
// same.
#pragma once
#include "ptx_emulated.h"

namespace emu {

constexpr int kMostProducts = 32;  // that one thread may have in flight
constexpr int kMostColumns = 128;

struct Product {
    float* d;
    float before[kMostColumns / 2];  // the values of d before
    bool chained;                    // d is the result of a product that was still in flight
    bool accumulate, a_in_registers, b_is_rows;
    int columns;
    unsigned a[4];
    unsigned long long a_descriptor, b_descriptor;
};

// Oldest first; group_ends counts the products up to the end of each committed group.
struct Products {
    Product list[kMostProducts];
    int count, group_ends[kMostProducts], groups;
    int performing;
};
inline Products products[1024];  // by thread

EMU_UNCHECKED inline int linear_thread() {
    const uint3 i = emu_thread_index();
    const dim3 size = emu_block_size();
    return i.x + size.x * (i.y + size.y * i.z);
}

// A matrix in shared memory. The swizzle repeats every 8 rows of 128 bytes; 64 columns are a panel.
struct Matrix {
    char* start;
    size_t panel_stride, rows_stride;

    EMU_UNCHECKED explicit Matrix(unsigned long long descriptor) {
        if (descriptor >> 62 != 1 || descriptor >> 49 & 7)
            emu_fail("unsupported", "only descriptors with the 128-byte swizzle and no base offset",
                     "", 0);
        // The shared memory of a block is less than 256 KiB: 18 bits of an address are enough.
        char* shared = static_cast<char*>(emu_shared_memory());
        start = shared + (((descriptor & 0x3fff) * 16 - uintptr_t(shared)) & 0x3ffff);
        panel_stride = (descriptor >> 16 & 0x3fff) * 16;
        rows_stride = (descriptor >> 32 & 0x3fff) * 16;
    }
    // The address of an element. The swizzle follows the address, not the row: a tile that does not
    // begin at a multiple of 1024 bytes is read wrongly.
    EMU_UNCHECKED char* at(int row, int column) const {
        uintptr_t address = uintptr_t(start) + column / 64 * panel_stride + row / 8 * rows_stride +
                            row % 8 * 128 + column % 64 * 2;
        return reinterpret_cast<char*>(address ^ (address >> 7 & 7) << 4);
    }
    EMU_UNCHECKED float value(int row, int column) const {
        unsigned short half;
        __builtin_memcpy(&half, at(row, column), 2);
        return bits<float>(unsigned(half) << 16);
    }
};

// One product of a warp: its 16 rows of D = A B + (D).
EMU_UNCHECKED inline void perform_product(Product* (&lane_products)[32], int warp_of_group) {
    const Product& first = *lane_products[0];
    const int N = first.columns;
    static float A[16][16], B[16][kMostColumns], D[16][kMostColumns];
    const Matrix b(first.b_descriptor);
    for (int k = 0; k < 16; k++)
        for (int n = 0; n < N; n++) B[k][n] = first.b_is_rows ? b.value(k, n) : b.value(n, k);
    for (int lane = 0; lane < 32; lane++) {
        const Product& p = *lane_products[lane];
        if (p.b_descriptor != first.b_descriptor || p.a_descriptor != first.a_descriptor ||
            p.accumulate != first.accumulate)
            emu_fail("divergent_warp", "lanes of one wgmma name different matrices", "", 0);
        for (int r = 0; r < 4 && p.a_in_registers; r++)
            for (int h = 0; h < 2; h++)
                A[lane / 4 + r % 2 * 8][lane % 4 * 2 + r / 2 * 8 + h] = bf16_half(p.a[r], h);
        for (int i = 0; i < N / 2; i++) {
            const float old = p.chained ? p.d[i] : p.before[i];
            D[d_row(lane, i % 4)][i / 4 * 8 + d_col(lane, i % 4)] = p.accumulate ? old : 0.0f;
        }
    }
    if (!first.a_in_registers) {
        const Matrix a(first.a_descriptor);
        for (int m = 0; m < 16; m++)
            for (int k = 0; k < 16; k++) A[m][k] = a.value(warp_of_group * 16 + m, k);
    }
    for (int m = 0; m < 16; m++)
        for (int k = 0; k < 16; k++)
            for (int n = 0; n < N; n++) D[m][n] += A[m][k] * B[k][n];
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < N / 2; i++)
            lane_products[lane]->d[i] = D[d_row(lane, i % 4)][i / 4 * 8 + d_col(lane, i % 4)];
}

EMU_UNCHECKED inline void perform_products(void** lanes) {
    auto** all = reinterpret_cast<Products**>(lanes);
    for (int i = 0; i < all[0]->performing; i++) {
        Product* lane_products[32];
        for (int lane = 0; lane < 32; lane++) lane_products[lane] = &all[lane]->list[i];
        perform_product(lane_products, int(all[0] - products) / 32 % 4);
    }
}

// Tells the checker about this lane's share of the reads: every 32nd unit of 16 bytes of the tiles.
EMU_UNCHECKED inline void check_reads(const Product& p, int thread) {
    const int lane = thread % 32, warp = thread / 32 % 4;
    const Matrix b(p.b_descriptor);
    for (int unit = lane; unit < 2 * p.columns; unit += 32)
        emu_check_only(
            p.b_is_rows ? b.at(unit % 16, unit / 16 * 8) : b.at(unit / 2, unit % 2 * 8), 16,
            EMU_READ);
    if (!p.a_in_registers)
        emu_check_only(Matrix(p.a_descriptor).at(warp * 16 + lane / 2, lane % 2 * 8), 16,
                       EMU_READ);
}

EMU_UNCHECKED inline void start_product(Product product, const char* file, int line) {
    const int thread = linear_thread();
    const dim3 size = emu_block_size();
    for (unsigned i = 0; i < size.x * size.y * size.z; i++)
        if (copies_not_fenced[i])
            emu_fail("async_copy", "a wgmma after a cp.async, without fence_for_wgmma between them",
                     file, line);
    Products& mine = products[thread];
    if (mine.count == kMostProducts)
        emu_fail("unsupported", "too many wgmma in flight", file, line);
    product.chained = false;
    for (int i = 0; i < mine.count; i++) product.chained |= mine.list[i].d == product.d;
    for (int i = 0; i < product.columns / 2; i++) {
        product.before[i] = product.d[i];
        product.d[i] = __builtin_nanf("");
    }
    mine.list[mine.count++] = product;
    emu_warp("wgmma", 0xffffffffu, &mine, nullptr, 0, file, line);
}

EMU_UNCHECKED inline void wait_for_products(int groups_left, const char* file, int line) {
    const int thread = linear_thread();
    Products& mine = products[thread];
    const int done = mine.groups - groups_left;
    mine.performing = done > 0 ? mine.group_ends[done - 1] : 0;
    emu_warp("wgmma_wait", 0xffffffffu, &mine, &perform_products, 0, file, line);
    for (int i = 0; i < mine.performing; i++) check_reads(mine.list[i], thread);
    if (done <= 0) return;
    const int gone = mine.performing;
    for (int i = gone; i < mine.count; i++) mine.list[i - gone] = mine.list[i];
    for (int g = done; g < mine.groups; g++) mine.group_ends[g - done] = mine.group_ends[g] - gone;
    mine.count -= gone;
    mine.groups -= done;
}

EMU_UNCHECKED inline void commit_products() {
    Products& mine = products[linear_thread()];
    mine.group_ends[mine.groups++] = mine.count;
}

EMU_UNCHECKED inline void fence_copies() { copies_not_fenced[linear_thread()] = false; }

}  // namespace emu

inline unsigned shared_address(const void* pointer) { return unsigned(uintptr_t(pointer)); }

template <class T, int N>
inline void touch_registers(T (&)[N][4]) {}
template <int N>
inline void wgmma_fence(float (&)[N][4]) {}
inline void wgmma_commit() { emu::commit_products(); }
template <int GROUPS_LEFT, int N>
inline void wgmma_wait(float (&)[N][4], EMU_CALL_SITE) {
    emu::wait_for_products(GROUPS_LEFT, file, line);
}
inline void fence_for_wgmma() { emu::fence_copies(); }

template <bool B_IS_ROWS, int N>
inline __attribute__((always_inline)) void wgmma_bf16(float (&d)[N][4], const unsigned (&a)[4],
                                                      unsigned long long b, bool accumulate,
                                                      EMU_CALL_SITE) {
    emu::start_product({.d = d[0],
                        .accumulate = accumulate,
                        .a_in_registers = true,
                        .b_is_rows = B_IS_ROWS,
                        .columns = 8 * N,
                        .a = {a[0], a[1], a[2], a[3]},
                        .b_descriptor = b},
                       file, line);
}
template <bool B_IS_ROWS, int N>
inline __attribute__((always_inline)) void wgmma_bf16(float (&d)[N][4], unsigned long long a,
                                                      unsigned long long b, bool accumulate,
                                                      EMU_CALL_SITE) {
    emu::start_product({.d = d[0],
                        .accumulate = accumulate,
                        .b_is_rows = B_IS_ROWS,
                        .columns = 8 * N,
                        .a_descriptor = a,
                        .b_descriptor = b},
                       file, line);
}
