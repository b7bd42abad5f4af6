"""A short training run with a kernel of one's own in place of the trainer's, beside one with ours.

On a GPU the demo's model trains, and the kernel runs there. Without one a model of 1 layer, 16
channels and T 16 trains on the CPU, and only this op runs on the emulator.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from cupygpt.device.choose import choose_device
from cupygpt.device.cpu_threads import on_host
from cupygpt.emulator.arrays import emulated
from cupygpt.emulator.compiler import Mode
from cupygpt.errors import LabError
from cupygpt.interface.trainer import Trainer
from cupygpt.kernels.load import load_cupy_module
from cupygpt.lab.contracts.contract import Contract
from cupygpt.lab.kernel_file import Arguments, KernelFile
from cupygpt.texts.python_docs import python_docs_text

RATE = 1e-3


@dataclass(frozen=True)
class Setting:
    """What is trained: a model, and the shape of a batch."""

    model: str
    B: int
    T: int
    device: str


SMALL = Setting("L1:H1:C16", 1, 16, "cpu")
DEMO = Setting("L4:H4:C64", 16, 64, "cuda")


def losses_beside(
    file: KernelFile, contract: Contract, steps: int
) -> tuple[Setting, list[tuple[float, float]]]:
    """The setting, and for each step the losses with the file's kernels and with the trainer's.

    Raises LabError for an op that training does not have, or that this run does not call.
    """
    if contract.op is None:
        raise LabError(f"{contract.name} is no op of its own in training: --train cannot take it.")
    setting = SMALL if choose_device("auto").device.compute_capability is None else DEMO
    ours = _losses(setting, steps)
    calls: list[int] = []
    with _replaced(contract.op, _replacement(file, contract, calls)):
        theirs = _losses(setting, steps)
    if not calls:
        raise LabError(
            f"training in {setting.model} never calls {contract.name}: on this GPU the product of "
            "matrices does its work. Try another op."
        )
    return setting, list(zip(theirs, ours, strict=True))


def _losses(setting: Setting, steps: int) -> list[float]:
    trainer = Trainer(
        setting.model,
        setting.B,
        setting.T,
        device=setting.device,
        precision="fp32",
        tokenizer="bytes",
    )
    text = "\n".join(python_docs_text().documents).encode()[: 1 << 20]
    data = np.frombuffer(text, np.uint8).astype(np.int32)
    draws = np.random.default_rng(1)
    found = []
    for _ in range(steps):
        starts = draws.integers(0, len(data) - setting.T - 1, setting.B)
        batch = np.stack([data[i : i + setting.T + 1] for i in starts])
        found.append(trainer.step(batch, lr=RATE).loss)
    return found


@contextmanager
def _replaced(op: Callable[..., None], other: Callable[..., None]) -> Iterator[None]:
    """Inside this context every module that imported `op` calls `other` instead."""
    places: list[tuple[ModuleType, str]] = [
        (module, name)
        for path, module in list(sys.modules.items())
        if path.startswith("cupygpt.") and not path.startswith("cupygpt.lab.")
        for name, value in list(vars(module).items())
        if value is op
    ]
    for module, name in places:
        setattr(module, name, other)
    try:
        yield
    finally:
        for module, name in places:
            setattr(module, name, op)


def _replacement(file: KernelFile, contract: Contract, calls: list[int]) -> Callable[..., None]:
    """A function with the op's arguments that runs the file's kernels; it counts its calls."""
    op = contract.op
    assert op is not None
    signature = inspect.signature(op)
    loaded: dict[Any, Any] = {}

    def run(*args: Any, **kwargs: Any) -> None:
        given = signature.bind(*args, **kwargs).arguments
        if given.get("dloss", 0.0) is None:  # a validation, for which the op has another kernel
            op(*args, **kwargs)
            return
        calls.append(1)
        for part in _segments(given):
            _run_part(file, contract, part, loaded)

    return run


def _segments(given: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The parts of a call: of AdamW one for each segment with or without decay, else the whole."""
    if "segments" not in given:
        yield given
        return
    for start, stop, decays in given["segments"]:
        part = {name: given[name][start:stop] for name in ("params", "m", "v", "grads")}
        yield {**given, **part, "weight_decay": given["weight_decay"] if decays else 0.0}


def _run_part(
    file: KernelFile, contract: Contract, given: Mapping[str, Any], loaded: dict[Any, Any]
) -> None:
    sizes = contract.sizes_of(given)
    numbers = {**contract.constants, **sizes, **given}
    arrays = {name: given[name] for name, kind in contract.types.items() if kind.endswith("*")}
    host = on_host(next(iter(arrays.values())))
    copies = {n: emulated(np.ascontiguousarray(a)) for n, a in arrays.items()} if host else arrays
    parameters = {
        name: copies[name] if kind.endswith("*") else numbers[name]
        for name, kind in contract.types.items()
    }
    floatX = "__nv_bfloat16" if arrays[contract.outputs[0]].itemsize == 2 else "float"
    arguments = Arguments(parameters, sizes, floatX)
    if not host:
        _launch_on_gpu(file, arguments, loaded)
        return
    file.run(arguments)
    for name in contract.outputs:
        arrays[name][...] = np.asarray(copies[name]).reshape(arrays[name].shape)


def _launch_on_gpu(file: KernelFile, arguments: Arguments, loaded: dict[Any, Any]) -> None:
    import cupy

    options = file.options(arguments)
    if options not in loaded:
        loaded[options] = load_cupy_module(file.path, options)

    def empty(size: int) -> Any:
        key = ("scratch", size)
        if key not in loaded:  # kept: a captured graph goes on using it
            loaded[key] = cupy.zeros(size, cupy.float32)
        return loaded[key]

    for call in file.calls(arguments, Mode.CHECKED, empty):
        function = loaded[options].get_function(call.kernel.name)
        if call.shared_bytes:
            function.max_dynamic_shared_size_bytes = call.shared_bytes
        function(call.grid, call.block, tuple(call.values), shared_mem=call.shared_bytes)
