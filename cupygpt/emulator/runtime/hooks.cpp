// The functions that a checked kernel calls because g++ compiled it with -fsanitize=thread and
// -fsanitize=bounds,alignment. They take the place of the sanitizers' own libraries.
#include <cstdint>

#include "block.h"
#include "checker.h"

using namespace emu;

static inline void access_memory(uintptr_t pc, const void* address, size_t bytes, int kind) {
    const Target target = check_access(pc, address, bytes, kind);
    if (counters) count_access(pc, target, bytes, kind);
}

#define EMU_HOOK(NAME, BYTES, ACCESS)                                                  \
    void NAME(void* address) {                                                         \
        access_memory(uintptr_t(__builtin_return_address(0)), address, BYTES, ACCESS); \
    }
#define EMU_HOOKS(BYTES)                                      \
    EMU_HOOK(__tsan_read##BYTES, BYTES, EMU_READ)             \
    EMU_HOOK(__tsan_write##BYTES, BYTES, EMU_WRITE)           \
    EMU_HOOK(__tsan_unaligned_read##BYTES, BYTES, EMU_READ)   \
    EMU_HOOK(__tsan_unaligned_write##BYTES, BYTES, EMU_WRITE) \
    EMU_HOOK(__tsan_volatile_read##BYTES, BYTES, EMU_READ)    \
    EMU_HOOK(__tsan_volatile_write##BYTES, BYTES, EMU_WRITE)

extern "C" {

EMU_HOOKS(1)
EMU_HOOKS(2)
EMU_HOOKS(4)
EMU_HOOKS(8)
EMU_HOOKS(16)

void __tsan_read_range(void* address, size_t bytes) {
    access_memory(uintptr_t(__builtin_return_address(0)), address, bytes, EMU_READ);
}
void __tsan_write_range(void* address, size_t bytes) {
    access_memory(uintptr_t(__builtin_return_address(0)), address, bytes, EMU_WRITE);
}

// Called by every instrumented library when it is loaded.
void __tsan_init() {}

struct SourceLocation {
    const char* file;
    uint32_t line, column;
};

void __ubsan_handle_out_of_bounds(SourceLocation* place, uintptr_t index) {
    const uint64_t pc = module_offset(uintptr_t(__builtin_return_address(0)));
    fail("out_of_bounds", {place->file, int32_t(place->line), pc}, {},
         "array index %ld is outside the array's declared size", long(index));
}

struct TypeMismatch {
    SourceLocation place;
    void* type;
    uint8_t log_alignment, kind;
};

void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, uintptr_t address) {
    const unsigned alignment = 1u << data->log_alignment;
    const uint64_t pc = module_offset(uintptr_t(__builtin_return_address(0)));
    const Place where{data->place.file, int32_t(data->place.line), pc};
    fail(address ? "misaligned" : "out_of_bounds", where, {},
         address ? "the address %#lx is no multiple of %u, which its type needs"
                 : "access through a null pointer (address %#lx, alignment %u)",
         (unsigned long)address, alignment);
}

}  // extern "C"

void emu_check(const void* address, size_t bytes, int access) {
    access_memory(uintptr_t(__builtin_return_address(0)), address, bytes, access);
}

void emu_check_only(const void* address, size_t bytes, int access) {
    check_access(uintptr_t(__builtin_return_address(0)), address, bytes, access);
}

void emu_fence() {}
