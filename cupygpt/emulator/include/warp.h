// Shuffles, votes and reductions of one full warp.
#pragma once
#include <type_traits>
#include "emulator_abi.h"

namespace emu {

template <class T>
struct ShuffleLane {
    T given, received;
    unsigned source;
};

// `source` is the lane to read from; each lane may choose its own.
template <class T>
inline T shuffle(const char* name, unsigned mask, T value, unsigned source, const char* file,
                 int line) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>,
                  "a shuffle moves 4 or 8 bytes");
    struct Combine {
        EMU_UNCHECKED static void run(void** lanes) {
            for (int lane = 0; lane < 32; lane++) {
                auto* mine = static_cast<ShuffleLane<T>*>(lanes[lane]);
                if (!mine) continue;
                auto* theirs = static_cast<ShuffleLane<T>*>(lanes[mine->source]);
                if (!theirs) emu_fail("warp", "a shuffle reads a lane that does not exist", "", 0);
                mine->received = theirs->given;
            }
        }
    };
    ShuffleLane<T> data{value, value, source};
    emu_warp(name, mask, &data, &Combine::run, 0, file, line);
    return data.received;
}

// The first lane in the caller's segment of `width` lanes.
inline unsigned segment(int width) {
    return emu_lane() & ~unsigned(width - 1);
}

template <class T>
struct ReduceLane {
    T given, result;
};

// Every lane gets fold(fold(lane 0, lane 1), ...).
template <class T, class Fold>
inline T reduce(const char* name, unsigned mask, T value, Fold, const char* file, int line) {
    struct Combine {
        EMU_UNCHECKED static void run(void** lanes) {
            T result{};
            bool first = true;
            for (int lane = 0; lane < 32; lane++) {
                auto* data = static_cast<ReduceLane<T>*>(lanes[lane]);
                if (!data) continue;
                result = first ? data->given : Fold{}(result, data->given);
                first = false;
            }
            for (int lane = 0; lane < 32; lane++)
                if (lanes[lane]) static_cast<ReduceLane<T>*>(lanes[lane])->result = result;
        }
    };
    ReduceLane<T> data{value, value};
    emu_warp(name, mask, &data, &Combine::run, 0, file, line);
    return data.result;
}

struct Add {
    template <class T>
    T operator()(T a, T b) const { return a + b; }
};
struct Min {
    template <class T>
    T operator()(T a, T b) const { return b < a ? b : a; }
};
struct Max {
    template <class T>
    T operator()(T a, T b) const { return a < b ? b : a; }
};
struct And {
    unsigned operator()(unsigned a, unsigned b) const { return a & b; }
};
struct Or {
    unsigned operator()(unsigned a, unsigned b) const { return a | b; }
};
struct Xor {
    unsigned operator()(unsigned a, unsigned b) const { return a ^ b; }
};

}  // namespace emu

#define EMU_FULL_WARP unsigned mask = 0xffffffffu, EMU_CALL_SITE

inline void __syncwarp(EMU_FULL_WARP) {
    char nothing;
    emu_warp("__syncwarp", mask, &nothing, nullptr, 1, file, line);
}

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, EMU_CALL_SITE) {
    unsigned from = emu::segment(width) + (unsigned(source) & unsigned(width - 1));
    return emu::shuffle("__shfl_sync", mask, value, from, file, line);
}

template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_CALL_SITE) {
    unsigned lane = emu_lane();
    unsigned from = lane - emu::segment(width) >= delta ? lane - delta : lane;
    return emu::shuffle("__shfl_up_sync", mask, value, from, file, line);
}

template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_CALL_SITE) {
    unsigned lane = emu_lane();
    unsigned from = lane + delta < emu::segment(width) + width ? lane + delta : lane;
    return emu::shuffle("__shfl_down_sync", mask, value, from, file, line);
}

template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, EMU_CALL_SITE) {
    unsigned lane = emu_lane(), other = lane ^ unsigned(bits);
    unsigned from = other < emu::segment(width) + width ? other : lane;
    return emu::shuffle("__shfl_xor_sync", mask, value, from, file, line);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_CALL_SITE) {
    unsigned bit = predicate ? 1u << emu_lane() : 0u;
    return emu::reduce("__ballot_sync", mask, bit, emu::Or{}, file, line);
}
inline int __any_sync(unsigned mask, int predicate, EMU_CALL_SITE) {
    return emu::reduce("__any_sync", mask, unsigned(predicate != 0), emu::Or{}, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, EMU_CALL_SITE) {
    return emu::reduce("__all_sync", mask, unsigned(predicate != 0), emu::And{}, file, line) != 0;
}

#define EMU_REDUCE(NAME, FOLD, T)                                      \
    inline T NAME(unsigned mask, T value, EMU_CALL_SITE) {             \
        return emu::reduce(#NAME, mask, value, FOLD{}, file, line);    \
    }
EMU_REDUCE(__reduce_add_sync, emu::Add, unsigned) EMU_REDUCE(__reduce_add_sync, emu::Add, int)
EMU_REDUCE(__reduce_min_sync, emu::Min, unsigned) EMU_REDUCE(__reduce_min_sync, emu::Min, int)
EMU_REDUCE(__reduce_max_sync, emu::Max, unsigned) EMU_REDUCE(__reduce_max_sync, emu::Max, int)
EMU_REDUCE(__reduce_and_sync, emu::And, unsigned)
EMU_REDUCE(__reduce_or_sync, emu::Or, unsigned)
EMU_REDUCE(__reduce_xor_sync, emu::Xor, unsigned)
