"""Which device a run gets, and the reason it is told if no GPU can be used."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cupygpt.device import cuda_check
from cupygpt.device.choose import choose_device
from cupygpt.device.cpu import CPU
from cupygpt.device.precision import BF16, FP32, TF32, check_precision, default_precision
from cupygpt.errors import ConfigError, DeviceError


class CudaError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"cudaErrorNumber{status}")
        self.status = status


def fake_cupy(*capabilities: str, runtime_version: int = 12090, error: int | None = None) -> Any:
    """A CuPy that sees GPUs of these compute capabilities, or fails to count them."""

    def count() -> int:
        if error is not None:
            raise CudaError(error)
        return len(capabilities)

    runtime = SimpleNamespace(
        CUDARuntimeError=CudaError,
        getDeviceCount=count,
        runtimeGetVersion=lambda: runtime_version,
        getDeviceProperties=lambda index: {"name": f"GPU-{capabilities[index]}".encode()},
    )
    cuda = SimpleNamespace(
        runtime=runtime,
        Device=lambda index: SimpleNamespace(compute_capability=capabilities[index]),
    )
    return SimpleNamespace(cuda=cuda)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what the probes find: the driver's CUDA version, CuPy, missing libraries."""

    def setup(*, driver: int | None = 12080, cupy: Any = None, missing: str | None = None) -> None:
        monkeypatch.setattr(cuda_check, "driver_cuda_version", lambda: driver)
        if cupy is not None:
            monkeypatch.setitem(sys.modules, "cupy", cupy)

        def find_library(name: str) -> str:
            if name == missing:
                raise DeviceError(f"NVIDIA's library {name} was not found: pip install it.")
            return f"/lib/{name}"

        monkeypatch.setattr(cuda_check, "find_library", find_library)

    return setup


@pytest.fixture
def cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the place of device/cuda.py, whose import needs CuPy."""
    module: Any = ModuleType("cupygpt.device.cuda")
    module.CUDA = lambda index: SimpleNamespace(name="cuda", index=index)
    monkeypatch.setitem(sys.modules, "cupygpt.device.cuda", module)


REASONS = {
    "no driver": ({"driver": None}, r"no NVIDIA driver was found \(libcuda\.so\.1\)"),
    "driver too old": (
        {"driver": 11040, "cupy": fake_cupy(error=35)},
        r"driver supports CUDA 11\.4, this CuPy needs 12\.9: update the driver to 525 or newer\.",
    ),
    "CuPy too new for the driver": (
        {"driver": 12080, "cupy": fake_cupy(error=35, runtime_version=13000)},
        r"update the driver to 580 or newer, or replace CuPy: .*'cupygpt\[cuda12\]'",
    ),
    "no GPU": ({"cupy": fake_cupy(error=100)}, r"shows no GPU: .* CUDA_VISIBLE_DEVICES"),
    "zero GPUs": ({"cupy": fake_cupy()}, "shows no GPU"),
    "driver in trouble": (
        {"cupy": fake_cupy(error=802)},
        r"does not answer \(cudaErrorNumber802\): see what nvidia-smi says",
    ),
    "no NVRTC": ({"cupy": fake_cupy("90"), "missing": "nvrtc"}, "library nvrtc was not found"),
    "no cuBLASLt": ({"cupy": fake_cupy("90"), "missing": "cublasLt"}, "library cublasLt was not"),
    "GPU too old": (
        {"cupy": fake_cupy("61")},
        r"GPU 0, GPU-61, has compute capability 6\.1: the kernels need 7\.5",
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="names Linux's libraries")
@pytest.mark.parametrize("case", REASONS)
def test_without_a_usable_gpu(machine: Any, case: str) -> None:
    found, reason = REASONS[case]
    machine(**found)
    choice = choose_device("auto")
    assert isinstance(choice.device, CPU)
    with pytest.raises(DeviceError, match=r"^--device cuda: .*--device cpu works") as error:
        choose_device("cuda")
    assert error.value.exit_code == 2
    for text in (choice.reason, str(error.value)):
        assert pytest.raises(DeviceError, match=reason).matches(DeviceError(text)), text


def test_missing_cupy_names_the_extra_for_the_driver(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NotInstalled:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "cupy":
                raise ModuleNotFoundError("No module named 'cupy'", name="cupy")

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NotInstalled(), *sys.meta_path])
    for driver, extra in ((12080, "cuda12"), (13000, "cuda13")):
        machine(driver=driver)
        reason = choose_device("auto").reason
        assert reason == f"CuPy is not installed: pip install 'cupygpt[{extra}]'."


def test_the_message_of_a_broken_cupy_is_shown(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "cupy":
                raise ImportError("=====\nlong diagnosis\n\nlibfoo.so is missing\n=====")

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    machine()
    reason = choose_device("auto").reason
    assert reason.startswith("CuPy is installed but cannot be loaded (libfoo.so is missing): pip")


def test_auto_takes_the_first_gpu_that_is_new_enough(machine: Any, cuda_device: None) -> None:
    machine(cupy=fake_cupy("61", "89", "90"))
    choice: Any = choose_device("auto")
    assert (choice.device.index, choice.reason) == (1, "the first usable GPU of 3")


def test_the_gpu_asked_for_is_taken(machine: Any, cuda_device: None) -> None:
    machine(cupy=fake_cupy("89", "120"))
    choice: Any = choose_device("cuda:1")
    assert (choice.device.index, choice.reason) == (1, "asked for GPU 1 of 2")
    choice = choose_device("cuda")
    assert choice.device.index == 0


@pytest.mark.parametrize(
    ("gpus", "known"), [(("90",), "only GPU 0"), (("90", "90", "90"), "GPUs 0 to 2")]
)
def test_gpu_out_of_range(machine: Any, gpus: tuple[str, ...], known: str) -> None:
    machine(cupy=fake_cupy(*gpus))
    with pytest.raises(DeviceError, match=rf"cuda:7: GPU 7 does not exist: .* shows {known}\."):
        choose_device("cuda:7")


@pytest.mark.parametrize("spec", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda0", "CPU", ""])
def test_unknown_device(spec: str) -> None:
    with pytest.raises(DeviceError, match="not a device; use auto, cpu, cuda or cuda:N"):
        choose_device(spec)


def test_cpu_asks_nothing_about_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_check, "driver_cuda_version", lambda: pytest.fail("was asked"))
    assert isinstance(choose_device("cpu").device, CPU)


def gpu(major: int, minor: int) -> Any:
    return SimpleNamespace(compute_capability=(major, minor))


def test_default_precision_follows_the_hardware() -> None:
    assert default_precision(CPU())[0] is FP32
    assert default_precision(gpu(7, 5)) == (FP32, "compute capability 7.5 has no bfloat16")
    for capability in ((8, 0), (8, 9), (9, 0), (12, 0)):
        assert default_precision(gpu(*capability))[0] is BF16


def test_a_precision_that_the_device_does_not_have_is_refused() -> None:
    for device in (CPU(), gpu(7, 5)):
        check_precision(device, FP32)
        for precision in (TF32, BF16):
            with pytest.raises(
                ConfigError, match=rf"--precision {precision.name} needs a GPU of .*8\.0"
            ):
                check_precision(device, precision)
    check_precision(gpu(8, 0), BF16)


def test_cpu_arrays_start_as_zeros_and_take_what_is_uploaded() -> None:
    device = CPU()
    array = device.zeros(3, np.float32)
    assert array.tolist() == [0, 0, 0]
    device.upload(array, np.array([1.0, 2.0, 3.0]))
    assert device.download(array).tolist() == [1, 2, 3]
    with pytest.raises(TypeError):
        device.upload(device.zeros(1, np.int32), np.array([1.5]))


def test_cpu_read_later_gives_the_values_at_the_time_of_the_call() -> None:
    device = CPU()
    array = device.zeros(2, np.float32)
    pending = device.read_later(array)
    array.fill(5)
    device.synchronize()
    assert pending.ready()
    assert pending.value().tolist() == [0, 0]


def test_too_much_cpu_memory_is_refused() -> None:
    with pytest.raises(DeviceError, match=r"4194304\.0 GiB of main memory"):
        CPU().zeros(1 << 50, np.float32)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's figures")
def test_cpu_memory_figures() -> None:
    device = CPU()
    before = device.used_bytes()
    array = np.ones(8 << 20)
    after = device.used_bytes()
    assert before is not None
    assert after is not None
    assert after - before > array.nbytes // 2
    free = device.free_bytes()
    assert free is not None
    assert free > 0
    assert "CPU" in device.describe()
