// Loads and stores with a cache hint: plain accesses here.
#pragma once
#include <cstring>
#include "emulator_abi.h"

#define EMU_LOAD(NAME)                                                        \
    template <class T>                                                        \
    inline __attribute__((always_inline)) T NAME(const T* address) {          \
        return *address;                                                      \
    }
#define EMU_STORE(NAME)                                                       \
    template <class T>                                                        \
    inline __attribute__((always_inline)) void NAME(T* address, T value) {    \
        *address = value;                                                     \
    }
EMU_LOAD(__ldg) EMU_LOAD(__ldca) EMU_LOAD(__ldcg) EMU_LOAD(__ldcs) EMU_LOAD(__ldlu) EMU_LOAD(__ldcv)
EMU_STORE(__stwb) EMU_STORE(__stcg) EMU_STORE(__stcs) EMU_STORE(__stwt)

namespace emu {
// The library's memcpy is not instrumented: tell the checker what it reads and writes.
inline __attribute__((always_inline)) void* checked_memcpy(void* to, const void* from,
                                                           size_t bytes) {
    emu_check(from, bytes, EMU_READ);
    emu_check(to, bytes, EMU_WRITE);
    return __builtin_memcpy(to, from, bytes);
}
inline __attribute__((always_inline)) void* checked_memset(void* to, int value, size_t bytes) {
    emu_check(to, bytes, EMU_WRITE);
    return __builtin_memset(to, value, bytes);
}
}  // namespace emu
#define memcpy emu::checked_memcpy
#define memset emu::checked_memset
