"""Train GPT models from scratch at the kernel level, from Python, without PyTorch.

Where to start reading: train.py is the command, training/start.py what it does, model/gpt.py the
network, ops/gelu.py with cuda/gelu.cu one operation. README.md has a map of all folders.

Names, as in the field
    B, T, C         batch rows, sequence length, channels
    NH, HS          attention heads, head size HS = C / NH
    L, P            layers; number of parameters
    V, Vp           vocabulary, and padded to a multiple of 128
    maxT            the longest sequence a model was made for
    wte, qkvw ...   the parameters, by llm.c's names (model/tensors.py)
    dinp, dwte ...  a leading d marks a gradient
    bh              index b * NH + h of a head in a batch
    m, v            AdamW's moments
    lr, grad_norm   learning rate, norm of all gradients before clipping

Glossary: one word, one meaning; two where the field has two, and then both stand here
    arena           one flat allocation; its tensors are named views of it
    baseline        the loss of an n-gram model, which a run is compared with
    batch slice     the batch rows that one CPU core computes
    chunk           consecutive rows handled together: of logits, or of a matrix to be summed
    column split    the columns of dk and dv that one block of attention's backward computes
    contract        what an operation takes and computes: its parameters, sizes, formula (lab)
    document        a text with a beginning and an end: end of text stands between two of them
    estimate        about how long a launch takes on a GPU, from what it asks for (performance)
    event           something that a run tells: a step, a validation, a sample, a checkpoint
    extension       steps that a run trains beyond its end (--extend)
    fine-tune       to train a model, which was trained before, on another text
    floatX          the type of weights and activations: float, or bfloat16 (uint16 in Python)
    gate            one of the questions that a tried kernel must pass, in order (lab)
    head, lm_head   an attention head; the language-model head (logits and loss)
    key split       the keys that one block reads, where several share a head (decoding)
    ladder          the kernels of one operation, from the first that is right to ours (lab)
    lane            a thread of a warp, 0 to 31
    launch          grid, block, shared memory and -D constants of one kernel call
    lse, delta      log-sum-exp of a row of scores; the sum of dout * out along a row
    model note      the JSON file beside a model file: which trained model it is a copy of. A
                    plain model file has none
    pack            the elements of one 128-bit access: 4 float32 or 8 bfloat16 (PACK_SIZE);
                    Pack is the same elements as floats in registers
    partial         a sum over some of the rows, which a second kernel adds up
    piece           what the split pattern cuts text into: no token reaches over its ends (BPE); a
                    part of a long thing that is handled in order
    question        a context and choices that may continue it, one of which is right
    rank            one of the processes that train together, usually one per GPU; the place of a
                    token in the order in which pairs are joined (BPE)
    record          run.json: what a run was asked to do, on which data, and in which environment
    reference       a known run on the same data, which a run is compared with
    request         what the lanes of a warp ask memory for at once (emulator); what a command is
                    asked for (evaluate, prepare)
    round           what a warp waits for at once
    row group       the rows whose partial sum one block writes
    run             one training run, in one folder
    rung            one kernel of a ladder, with one idea
    sector          32 bytes of global memory, the least that is moved
    shard           a token file; one of the files of a large Hugging Face folder (exchange)
    site            a place in the model where random numbers are drawn (dropout, rounding)
    source          the model that a command reads, or that a run begins with (-e): a model file, a
                    checkpoint of a run, a Hugging Face folder. With --source, where published
                    files are taken from; of a kernel, its text
    slot            room for the random number, or the token, of one step of each text (decoding)
    stage           one of the shared-memory buffers that take turns in a pipeline
    step            one update of the parameters, from one or several micro-batches
    team            the warps that compute an output of a linear layer together (few rows)
    tile            a block of a matrix, in shared memory or in registers
    token group     neighbouring entries of the sorted rows that have the same token (encoder)
    token record    the JSON file beside a shard: its tokenizer, its texts, what was held out
    turn            a cycle of shared memory; lanes that meet in a bank take several. Time in which
                    one thread has a device for itself (interface)
    verdict         what a judgement of a kernel or exercise found, in one line (lab); what the
                    numbers of a run mean, in its last lines (training)
    vocab split     a block's share of the vocabulary
    window          32 neighbouring entries of the rows sorted by token (encoder); the tokens that
                    a model reads at once (sample, evaluate)
    world           the number of ranks
    zero shard      a rank's share of the flat vector of parameters (ZeRO-1)
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cupygpt.errors import CheckpointError as CheckpointError
    from cupygpt.errors import ConfigError as ConfigError
    from cupygpt.errors import CupyGPTError as CupyGPTError
    from cupygpt.errors import DataError as DataError
    from cupygpt.errors import DeviceError as DeviceError
    from cupygpt.errors import KernelError as KernelError
    from cupygpt.errors import RunError as RunError
    from cupygpt.errors import TokenizerError as TokenizerError
    from cupygpt.interface.events import Event as Event
    from cupygpt.interface.load import load as load
    from cupygpt.interface.loader import Loader as Loader
    from cupygpt.interface.model import Model as Model
    from cupygpt.interface.train_model import train_model as train_model
    from cupygpt.interface.trained_run import TrainedRun as TrainedRun
    from cupygpt.interface.trainer import Trainer as Trainer

__version__ = "0.1.0"

_MODULES = {
    "cupygpt.errors": (
        *("CupyGPTError", "ConfigError", "DataError", "TokenizerError", "CheckpointError"),
        *("DeviceError", "KernelError", "RunError"),
    ),
    "cupygpt.interface.load": ("load",),
    "cupygpt.interface.model": ("Model",),
    "cupygpt.interface.train_model": ("train_model",),
    "cupygpt.interface.trained_run": ("TrainedRun",),
    "cupygpt.interface.events": ("Event",),
    "cupygpt.interface.trainer": ("Trainer",),
    "cupygpt.interface.loader": ("Loader",),
}
"""Where the names of the package are defined; they are imported when they are asked for."""

__all__ = [name for names in _MODULES.values() for name in names]

if "numpy" not in sys.modules:
    # On the CPU the ops use one thread per core, also for matrix products. BLAS's own threads would
    # busy-wait on cores that the ops need, so BLAS gets one thread. OpenBLAS reads this variable
    # when NumPy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


if not TYPE_CHECKING:  # types come from the imports above; any other name is a mistake

    def __getattr__(name: str) -> Any:
        for module, names in _MODULES.items():
            if name in names:
                value = getattr(importlib.import_module(module), name)
                globals()[name] = value
                return value
        hint = " The function that trains is cupygpt.train_model." if name == "train" else ""
        raise AttributeError(f"module 'cupygpt' has no attribute {name!r}.{hint}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
