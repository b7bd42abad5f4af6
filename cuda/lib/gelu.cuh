// GELU in its tanh form (Hendrycks and Gimpel 2016, arXiv:1606.08415).
//
// gelu(x) = x * 0.5 (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3). One exp is enough:
// 0.5 (1 + tanh(u)) is the logistic function of 2u, 1 / (1 + exp(-2u)).
#pragma once

constexpr float SCALE = 1.5957691216057308f;  // 2 sqrt(2 / pi): 2u = SCALE * (x + CUBIC * x^3)
constexpr float CUBIC = 0.044715f;

// The fast exp and division are exact enough: wherever the result matters they keep 22 bits.
__device__ __forceinline__ float logistic_of_2u(float x) {
    return __fdividef(1.0f, 1.0f + __expf(-SCALE * x * (1.0f + CUBIC * x * x)));
}
