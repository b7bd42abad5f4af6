"""Train GPT models from scratch at the kernel level, from Python, without PyTorch.

Names used everywhere, as in the field: B batch rows, T sequence length, C channels, NH heads,
HS = C / NH head size, L layers, V vocabulary, Vp vocabulary padded to a multiple of 128, maxT the
longest sequence a model was made for. A leading `d` marks a gradient (`dinp`, `dwte`).
"""

import os
import sys

__version__ = "0.1.0"

if "numpy" not in sys.modules:
    # On the CPU the ops spread their work, products included, over threads of their own. BLAS
    # threads beside them would spin while they wait, on cores that the ops could use.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
