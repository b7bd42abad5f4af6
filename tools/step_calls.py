"""The calls of ops that one training step makes, for the tools that time them.

The model itself is asked: while `intercepted` lasts, every call of an op in OPS, and every product,
goes through a handler. So a tool times what a run executes, at the shapes of a run.
"""

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np

from cupygpt.config import config_from_descriptor
from cupygpt.device.choose import choose_device
from cupygpt.device.precision import Precision, chosen_precision
from cupygpt.errors import ConfigError
from cupygpt.model.memory_plan import RunShape, shape_of_run

Arguments = Mapping[str, Any]


def _product_flops(a: Arguments) -> int:
    return 2 * int(a["out"].size) * (int(a["a"].size) // len(a["out"]))


def _forward_flops(a: Arguments) -> int:
    return 2 * int(a["out"].size) * int(a["weight"].shape[1])


def _backward_flops(a: Arguments) -> int:
    return 4 * int(a["dout"].size) * int(a["weight"].shape[1])


def _lm_head_flops(a: Arguments) -> int:
    return 2 * int(a["dlogits"].size) * int(a["inp"].shape[1])


def _causal_flops(a: Arguments) -> int:
    B, T, C = a["out"].shape
    return int(B * C * T * (T + 1))  # 2 · T²/2 · HS of each head


@dataclass(frozen=True)
class Cost:
    """What an op must do at the least: `flops` of its products, and the arrays that it moves.

    Each array among the arguments is read or written once, those of `twice` both; scratch memory
    does not count.
    """

    twice: tuple[str, ...] = ()
    flops: Callable[[Arguments], int] = lambda arguments: 0
    reads_only: bool = False
    """It writes next to nothing: sums."""


OPS = {
    "matmul": Cost(flops=_product_flops),
    "encoder_forward": Cost(),
    "encoder_backward": Cost(("dwte", "dwpe")),
    "layernorm_forward": Cost(),
    "residual_layernorm_forward": Cost(),
    "layernorm_backward": Cost(("dinp", "dweight", "dbias", "dsum")),
    "linear_forward": Cost(flops=_forward_flops),
    "linear_backward": Cost(("dweight", "dbias"), _backward_flops),
    "linear_gelu_forward": Cost(flops=_forward_flops),
    "gelu_linear_backward": Cost(("dweight", "dbias", "dhidden_bias"), _backward_flops),
    "attention_forward": Cost(flops=lambda a: 2 * _causal_flops(a)),
    "attention_backward": Cost(("dbias",), lambda a: 5 * _causal_flops(a)),
    "bias_backward": Cost(("dbias",), reads_only=True),
    "gelu_forward": Cost(),
    "gelu_backward": Cost(("dinp",)),
    "gelu_bias_backward": Cost(("dinp", "dbias")),
    "dropout": Cost(),
    "lm_head": Cost(("losses",), _lm_head_flops),
    "classifier": Cost(("losses", "logits")),
    "loss_mean": Cost(reads_only=True),
    "global_norm": Cost(reads_only=True),
    "adamw": Cost(("params", "m", "v", "master")),
    "cast_to_bfloat16": Cost(),
}
"""The ops of a training step, those that other ops call among them."""

SCRATCH = ("partials", "sums", "lse_delta", "statistics")
"""Arguments that hold nothing before and after a call."""

_CALLERS = ("cupygpt.model.", "cupygpt.training.", "cupygpt.ops.")
_HOMES = ("cupygpt.ops.", "cupygpt.kernels.matmul")


@dataclass(frozen=True)
class Call:
    """One call of an op: `run` makes it, as often as it is called."""

    name: str
    bound: inspect.BoundArguments
    depth: int
    """0 for a call that the model or the trainer makes, 1 for a call inside that, and so on."""
    function: Callable[..., None]

    def run(self) -> None:
        """Make the call."""
        self.function(*self.bound.args, **self.bound.kwargs)

    @property
    def arguments(self) -> Arguments:
        """By parameter name."""
        return self.bound.arguments

    @property
    def arrays(self) -> dict[str, Any]:
        """The arrays among the arguments."""
        return {name: a for name, a in self.arguments.items() if hasattr(a, "nbytes")}

    @property
    def label(self) -> str:
        """The op, and the sizes of its product if it has one."""
        arrays = self.arrays
        if self.name == "matmul":
            M, N = arrays["out"].shape
            epilogue = self.arguments.get("epilogue")
            suffix = "" if epilogue is None else f" {epilogue}"
            return f"matmul {M}×{N}, {arrays['a'].size // M} terms{suffix}"
        weight = arrays.get("weight")
        if weight is None or weight.ndim != 2:
            return self.name
        inp = arrays["inp"]
        return f"{self.name} {inp.size // inp.shape[-1]} rows, {weight.shape[1]} to {len(weight)}"

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for calls that do the same work on different arrays."""
        return (self.depth, self.label, *(a.shape for a in self.arrays.values()))

    @property
    def num_bytes(self) -> int:
        """Bytes that the call must move: each array that it reads or writes, once each way."""
        twice = OPS[self.name].twice
        if self.name == "matmul" and self.arguments.get("accumulate"):
            twice = ("out",)
        if self.name == "adamw" and self.arguments.get("master") is not None:
            twice = ("m", "v", "master")  # params are only written
        total = 0
        for name, array in self.arrays.items():
            if name not in SCRATCH:
                total += int(array.nbytes * self._used(name, array)) * (2 if name in twice else 1)
        return total

    @property
    def flops(self) -> int:
        """Multiplications and additions of its products."""
        return OPS[self.name].flops(self.arguments)

    @property
    def reads_only(self) -> bool:
        """Whether it writes next to nothing."""
        return OPS[self.name].reads_only

    def _used(self, name: str, array: Any) -> float:
        """The part of an array that is touched: the embedding's rows of the batch's tokens."""
        if not self.name.startswith("encoder"):
            return 1.0
        tokens = self.arguments["tokens"]
        if name in ("wte", "dwte"):
            host = tokens.get() if hasattr(tokens, "get") else np.asarray(tokens)
            return len(np.unique(host)) / len(array)
        return tokens.shape[1] / len(array) if name in ("wpe", "dwpe") else 1.0


@contextmanager
def intercepted(handler: Callable[[Call], None]) -> Iterator[None]:
    """Inside this context `handler` gets each call of an op, and decides when to `run` it.

    Calls that an op makes of another op come while the outer one runs, with a larger depth.
    """
    places = [
        (module, name, function)
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith(_CALLERS)
        for name, function in list(vars(module).items())
        if name in OPS and isinstance(function, FunctionType)
        if function.__module__.startswith(_HOMES)
    ]
    depth = 0

    def through(name: str, function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function)

        def call(*args: Any, **named: Any) -> None:
            nonlocal depth
            found = Call(name, signature.bind(*args, **named), depth, function)
            depth += 1
            try:
                handler(found)
            finally:
                depth -= 1

        return call

    try:
        for module, name, function in places:
            setattr(module, name, through(name, function))
        yield
    finally:
        for module, name, function in places:
            setattr(module, name, function)


def add_step_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say which step is timed."""
    parser.add_argument("--config", default="small", help="small, or a descriptor such as d12")
    parser.add_argument("-b", "--batch-size", type=int, default=32)
    parser.add_argument("-t", "--seq-len", type=int, default=256)
    parser.add_argument("-r", "--recompute", type=int, default=0, choices=(0, 1, 2))
    parser.add_argument("--precision", choices=["auto", "fp32", "tf32", "bf16"], default="auto")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")


def step_asked_for(args: argparse.Namespace) -> tuple[Any, Precision, RunShape]:
    """The GPU, the precision and the shape of the step that the flags name."""
    device = choose_device(args.device).device
    if not device.is_gpu:
        raise ConfigError("Only CUDA kernels are timed here; for the CPU use tools/bench.py.")
    precision = chosen_precision(args.precision, device)
    config = config_from_descriptor(args.config)
    shape = shape_of_run(
        config, args.batch_size, args.seq_len, precision, on_gpu=True, recompute=args.recompute
    )
    return device, precision, shape
