#include "fibers.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>

namespace emu {

#ifdef EMULATOR_UCONTEXT

void prepare(Context& context, char* low, size_t bytes, void (*entry)()) {
    getcontext(&context.saved);
    context.saved.uc_stack.ss_sp = low;
    context.saved.uc_stack.ss_size = bytes;
    context.saved.uc_link = nullptr;
    makecontext(&context.saved, entry, 0);
}

void switch_context(Context& from, Context& to) { swapcontext(&from.saved, &to.saved); }

#else

// Saves the registers that a callee must keep (System V ABI); a call destroys the others anyway.
extern "C" void emu_switch_stack(void** save_to, void* load_from);
asm(R"(
.text
.globl emu_switch_stack
.hidden emu_switch_stack
.type emu_switch_stack, @function
emu_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch_stack, . - emu_switch_stack
)");

void prepare(Context& context, char* low, size_t bytes, void (*entry)()) {
    auto top = reinterpret_cast<uintptr_t>(low + bytes) & ~uintptr_t(63);
    void** stack = reinterpret_cast<void**>(top);
    *--stack = nullptr;  // a return address, so that entry() finds the stack 16-byte aligned
    *--stack = reinterpret_cast<void*>(entry);
    for (int saved_register = 0; saved_register < 6; saved_register++) *--stack = nullptr;
    context.stack_pointer = stack;
}

void switch_context(Context& from, Context& to) {
    emu_switch_stack(&from.stack_pointer, to.stack_pointer);
}

#endif

char* map_stacks(unsigned count) {
    const size_t stride = kStackBytes + kGuardBytes;
    void* base = mmap(nullptr, count * stride, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return nullptr;
    for (unsigned i = 0; i < count; i++)
        mprotect(static_cast<char*>(base) + i * stride, kGuardBytes, PROT_NONE);
    return static_cast<char*>(base);
}

}  // namespace emu
