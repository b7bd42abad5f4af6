// Numbers that several kernels share.
#pragma once

constexpr float LOG2E = 1.4426950408889634f;  // log2(e): exp(x) = exp2(x * LOG2E)
constexpr float LN2 = 0.6931471805599453f;    // ln(2): log(x) = log2(x) * LN2

// Stands for minus infinity as a score or logit that does not count: exp and exp2 make it 0, and it
// is below all others. It is finite, so that MASKED - MASKED is 0 and not NaN.
constexpr float MASKED = -1e30f;
