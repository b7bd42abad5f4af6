// Describes and calls a kernel through an array of pointers to its arguments.
#pragma once
#include <type_traits>
#include <utility>
#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace emu {

// Three letters for an element type; the loader compares them with a NumPy dtype.
template <class T>
constexpr const char* element_code() {
    constexpr bool is_signed = std::is_signed_v<T>;
    if constexpr (std::is_same_v<T, float>) return "f32";
    if constexpr (std::is_same_v<T, double>) return "f64";
    if constexpr (std::is_same_v<T, __nv_bfloat16>) return "b16";
    if constexpr (std::is_same_v<T, __half>) return "h16";
    if constexpr (std::is_same_v<T, bool>) return "bln";
    if constexpr (std::is_integral_v<T>) {
        if (sizeof(T) == 1) return is_signed ? "i08" : "u08";
        if (sizeof(T) == 2) return is_signed ? "i16" : "u16";
        if (sizeof(T) == 4) return is_signed ? "i32" : "u32";
        if (sizeof(T) == 8) return is_signed ? "i64" : "u64";
    }
    return "any";
}

// One of the four letters for a parameter. A pointer or a scalar: the three letters of its type,
// then * for a pointer. A struct: its size in three digits.
template <class A>
constexpr char argument_letter(int i) {
    using Element = std::remove_cv_t<std::remove_pointer_t<A>>;
    if constexpr (std::is_class_v<A>) {
        static_assert(std::is_trivially_copyable_v<A> && sizeof(A) < 1000, "a small, plain struct");
        const int powers[3] = {100, 10, 1};
        return i < 3 ? '0' + sizeof(A) / powers[i] % 10 : ' ';
    } else {
        static_assert(std::is_pointer_v<A> || std::is_arithmetic_v<A>,
                      "kernel parameters are pointers, scalars and structs");
        return i < 3 ? element_code<Element>()[i] : std::is_pointer_v<A> ? '*' : ' ';
    }
}

template <class... A>
struct Signature {
    char text[sizeof...(A) * 4 + 1] = {};
    constexpr Signature() {
        int at = 0;
        ((text[at] = argument_letter<A>(0), text[at + 1] = argument_letter<A>(1),
          text[at + 2] = argument_letter<A>(2), text[at + 3] = argument_letter<A>(3), at += 4),
         ...);
    }
};
template <class... A>
EMU_UNCHECKED const char* describe(void (*)(A...)) {
    static constexpr Signature<A...> signature;
    return signature.text;
}

template <class... A, size_t... I>
EMU_UNCHECKED void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
}
template <class... A>
EMU_UNCHECKED void call(void (*kernel)(A...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<A...>{});
}

}  // namespace emu
