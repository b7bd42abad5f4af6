// Switching between stacks: each emulated thread has its own.
#pragma once
#include <cstddef>

// The switch written here takes about 10 ns, swapcontext about 400 ns because of its system call.
#if !defined(__x86_64__)
#define EMULATOR_UCONTEXT 1
#endif
#ifdef EMULATOR_UCONTEXT
#include <ucontext.h>
#endif

namespace emu {

struct Context {
#ifdef EMULATOR_UCONTEXT
    ucontext_t saved;
#else
    void* stack_pointer = nullptr;
#endif
};

// Makes the next switch to `context` call entry() on the stack [low, low + bytes). entry() must
// not return.
void prepare(Context& context, char* low, size_t bytes, void (*entry)());

void switch_context(Context& from, Context& to);

constexpr size_t kStackBytes = 128 << 10;
constexpr size_t kGuardBytes = 4096 * 16;  // a whole page for every page size in use

// Stacks for `count` threads with an inaccessible guard below each. Stack i starts at
// base + i * (kStackBytes + kGuardBytes) + kGuardBytes.
char* map_stacks(unsigned count);

}  // namespace emu
