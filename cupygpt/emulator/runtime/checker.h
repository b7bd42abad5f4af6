// The access checker: bounds, alignment, races, uninitialised shared memory.
#pragma once
#include <cstdint>
#include <cstddef>

#include "counters.h"

namespace emu {

// Mirrored by launching.py.
struct SharedArray {
    uint64_t offset, bytes;  // inside the kernel's block of shared memory
    char name[48];
};
struct GlobalArray {
    uint64_t begin, bytes;
    uint64_t allocation_begin, allocation_bytes;  // arguments may be views of one allocation
    uint32_t granule;                             // bytes per shadow cell: 1, 2 or 4
    uint32_t item_bytes;                          // of an element
    char name[48];                                // of the kernel's parameter
};

struct Memory {
    char* shared;
    uint64_t shared_bytes;
    const SharedArray* shared_arrays;
    uint64_t num_shared_arrays;
    const GlobalArray* global_arrays;
    uint64_t num_global_arrays;
    uintptr_t module_begin, module_end;
    char* stacks;
    size_t stacks_bytes;
};

// Null in runs without the checker.
extern const Memory* checked_memory;

// Maps shadow memory for everything in `memory` and starts checking.
void start_checking(const Memory& memory);

// Checks one access of the running thread; calls fail() if it is wrong. `pc` is a return address.
// Returns where it went; nowhere is what no GPU asks its memory for: local variables, constants.
Target check_access(uintptr_t pc, const void* address, size_t bytes, int access);

// An asynchronous copy to [address, address + bytes) begins: until it ends, no access is allowed.
Target begin_async_write(uintptr_t pc, const void* address, size_t bytes);
void end_async_write(uintptr_t pc, const void* address, size_t bytes);

// The place of the latest checked access, for a thread that is interrupted inside the checker.
extern uintptr_t last_access_pc;

// The return address as an offset into the kernel's library, for Place::pc; 0 without the checker.
uint64_t module_offset(uintptr_t pc);

}  // namespace emu
