// Atomics. One CPU thread runs all emulated threads, so a plain operation is atomic; the checker
// must be told that it is.
#pragma once
#include "emulator_abi.h"

namespace emu {

// Not instrumented: otherwise the checker would also see a plain read and a plain write.
template <class T, class Update>
__attribute__((noinline)) EMU_UNCHECKED T update_in_place(T* address, Update update) {
    T old = *address;
    *address = update(old);
    return old;
}

// Inlined, so that the check is made on the kernel's line.
template <class T, class Update>
inline __attribute__((always_inline)) T atomic_update(T* address, Update update) {
    emu_check(address, sizeof(T), EMU_ATOMIC);
    return update_in_place(address, update);
}

}  // namespace emu

#define EMU_ATOMIC_OP(NAME, T, EXPRESSION)                                           \
    inline __attribute__((always_inline)) T NAME(T* address, T value) {              \
        return emu::atomic_update(address, [value](T old) -> T { return EXPRESSION; }); \
    }
#define EMU_ATOMIC_INTEGER(T)                                     \
    EMU_ATOMIC_OP(atomicAdd, T, old + value)                      \
    EMU_ATOMIC_OP(atomicMax, T, old < value ? value : old)        \
    EMU_ATOMIC_OP(atomicMin, T, value < old ? value : old)        \
    EMU_ATOMIC_OP(atomicExch, T, (void(old), value))              \
    EMU_ATOMIC_OP(atomicAnd, T, old & value)                      \
    EMU_ATOMIC_OP(atomicOr, T, old | value)                       \
    EMU_ATOMIC_OP(atomicXor, T, old ^ value)                      \
    inline __attribute__((always_inline)) T atomicCAS(T* address, T compare, T value) { \
        return emu::atomic_update(                                \
            address, [compare, value](T old) -> T { return old == compare ? value : old; }); \
    }

EMU_ATOMIC_INTEGER(int)
EMU_ATOMIC_INTEGER(unsigned)
EMU_ATOMIC_INTEGER(unsigned long long)
EMU_ATOMIC_OP(atomicSub, int, old - value)
EMU_ATOMIC_OP(atomicSub, unsigned, old - value)
EMU_ATOMIC_OP(atomicAdd, float, old + value)
EMU_ATOMIC_OP(atomicAdd, double, old + value)
EMU_ATOMIC_OP(atomicExch, float, (void(old), value))
EMU_ATOMIC_OP(atomicInc, unsigned, old >= value ? 0u : old + 1u)
