"""Train GPT models from scratch at the kernel level, from Python, without PyTorch.

Names used everywhere, as in the field: B batch rows, T sequence length, C channels, NH heads,
HS = C / NH head size, L layers, V vocabulary, Vp vocabulary padded to a multiple of 128, maxT the
longest sequence a model was made for. A leading `d` marks a gradient (`dinp`, `dwte`).
"""

__version__ = "0.1.0"
