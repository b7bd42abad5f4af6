// AdamW, rung 1: one thread for each parameter.
//
// Each parameter is read and written with its two moments, and its gradient is read: 28 bytes for
// some twenty operations. Memory is the limit from the start; there is little left to win.
// lab: grid = ceil_div(N, 256), block = 256
#include "lib/packs.cuh"

// controls: learning rate, 1 - beta1^t, 1 - beta2^t.
extern "C" __global__ void adamw_1(float* params, float* m, float* v, const float* grads,
                                   const float* grad_norm, const float* controls, long long N,
                                   float beta1, float beta2, float epsilon, float weight_decay,
                                   float grad_clip) {
    const long long i = global_thread();
    if (i >= N) return;
    const float lr = controls[0], norm = grad_norm[0];
    const float clip = 0.0f < grad_clip && grad_clip < norm ? grad_clip / norm : 1.0f;
    const float gradient = clip * grads[i];
    m[i] = beta1 * m[i] + (1.0f - beta1) * gradient;
    v[i] = beta2 * v[i] + (1.0f - beta2) * gradient * gradient;
    const float denominator = sqrtf(v[i] / controls[2]) + epsilon;
    params[i] -= lr * (m[i] / controls[1] / denominator + weight_decay * params[i]);
}
