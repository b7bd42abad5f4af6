// The interface between compiled kernels and the runtime.
#pragma once
#include <cstddef>
#include <cstdint>

// The caller's place: default arguments are evaluated at the call, so it is a line of the kernel.
#define EMU_CALL_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// For code of the emulator that is compiled into a kernel: its accesses and its arithmetic are not
// the kernel's.
#if __has_attribute(no_sanitize_coverage)
#define EMU_UNCHECKED __attribute__((no_sanitize("thread"), no_sanitize_coverage))
#else
#define EMU_UNCHECKED __attribute__((no_sanitize("thread")))
#endif

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
};

// Given the data pointer of every participating lane (null where a lane does not exist), computes
// the results of all lanes at once.
typedef void (*emu_combine)(void** lanes);

enum emu_access { EMU_READ = 0, EMU_WRITE = 1, EMU_ATOMIC = 2 };

extern "C" {
// `const` because they do not change while a thread runs: the compiler may keep them in registers,
// and the checker sees no loads of them.
uint3 emu_thread_index() __attribute__((const));
uint3 emu_block_index() __attribute__((const));
dim3 emu_block_size() __attribute__((const));
dim3 emu_grid_size() __attribute__((const));
unsigned emu_lane() __attribute__((const));

void emu_barrier(const char* file, int line);
// All lanes of the warp wait for each other; only __syncwarp orders memory.
void emu_warp(const char* operation, unsigned mask, void* data, emu_combine combine,
              int orders_memory, const char* file, int line);

// Tells the checker about an access that the compiler does not instrument.
void emu_check(const void* address, size_t bytes, int access);
// The same for an access that is part of another one, which has been counted.
void emu_check_only(const void* address, size_t bytes, int access);
void emu_fence();

// The start of the shared memory of the running block.
void* emu_shared_memory() __attribute__((const));

void emu_async_copy(void* shared, const void* global, size_t bytes, size_t source_bytes);
void emu_async_commit();
void emu_async_wait(unsigned groups_left);

[[noreturn]] void emu_fail(const char* kind, const char* message, const char* file, int line);
}
