"""The operations of a GPT, one file each: contract, NumPy form, CUDA form, forward above backward.

Outputs come first and are passed in. Parameter gradients accumulate (`+=`), activation gradients
are overwritten, except the residual gradient, which LayerNorm backward adds to. No op waits for
its device. The NumPy forms take any float dtype: in float32 they are the CPU device, in float64
they serve gradient checks.
"""
