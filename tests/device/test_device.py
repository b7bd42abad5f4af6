"""Which device a run gets, and the reason it is told if no GPU can be used."""

import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cupygpt.device import choose, cuda_check
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

    def setup(
        *,
        driver: int | None = 12080,
        cupy: Any = None,
        missing: str | None = None,
        gpus: int = 0,
    ) -> None:
        monkeypatch.setattr(cuda_check, "driver_cuda_version", lambda: driver)
        monkeypatch.setattr(cuda_check, "gpus_of_driver", lambda: gpus)
        monkeypatch.setattr(choose, "gpus_of_driver", lambda: gpus)
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


def import_of_cupy_raises(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    class Raises:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "cupy":
                raise error

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Raises(), *sys.meta_path])


def test_missing_cupy_names_the_extra_for_the_driver(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = ModuleNotFoundError("No module named 'cupy'", name="cupy")
    import_of_cupy_raises(monkeypatch, missing)
    for driver, extra in ((12080, "cuda12"), (13000, "cuda13")):
        machine(driver=driver)
        reason = choose_device("auto").reason
        assert reason == f"CuPy is not installed: pip install 'cupygpt[{extra}]'."


def test_the_message_of_a_broken_cupy_is_shown(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = ImportError("=====\nlong diagnosis\n\nlibfoo.so is missing\n=====")
    import_of_cupy_raises(monkeypatch, broken)
    machine()
    reason = choose_device("auto").reason
    assert reason.startswith("CuPy is installed but cannot be loaded (libfoo.so is missing): pip")


@pytest.mark.skipif(sys.platform == "win32", reason="the home folder is HOME")
@pytest.mark.parametrize(
    ("home", "cache", "error"),
    [
        ("/", None, PermissionError(13, "Permission denied", "/.cupy")),
        ("/home/me", None, OSError(30, "Read-only file system", "/home/me/.cupy")),
        ("/dev/null", None, NotADirectoryError(20, "Not a directory", "/dev/null/.cupy")),
        ("/home/me", None, OSError(122, "Disk quota exceeded", "/home/me/.cupy/kernel_cache")),
        ("/home/me", "/data/c", PermissionError(13, "Permission denied", "/data/c")),
    ],
)
def test_a_home_without_room_for_cupys_cache_is_named(
    machine: Any,
    monkeypatch: pytest.MonkeyPatch,
    home: str,
    cache: str | None,
    error: OSError,
) -> None:
    """As in a container that is started with another user: installing CuPy again does not help."""
    machine(gpus=2)
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("CUPY_CACHE_DIR", raising=False)
    if cache:
        monkeypatch.setenv("CUPY_CACHE_DIR", cache)
    import_of_cupy_raises(monkeypatch, error)
    choice = choose_device("auto")
    folder = cache or f"{home.rstrip('/')}/.cupy/kernel_cache"
    assert choice.reason.startswith(
        f"CuPy cannot keep compiled kernels in {folder} ({error.strerror}): set CUPY_CACHE_DIR to"
    )
    assert "reinstall" not in choice.reason
    assert choice.warning == f"the CPU is used, though this machine has a GPU: {choice.reason}"
    with pytest.raises(DeviceError, match="CUPY_CACHE_DIR"):
        choose_device("cuda")


@pytest.mark.skipif(sys.platform == "win32", reason="has no pwd")
def test_a_user_without_any_home_is_told_too(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    def unknown(_: int) -> None:
        raise KeyError("getpwuid(): uid not found")

    machine()
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("CUPY_CACHE_DIR", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    import_of_cupy_raises(monkeypatch, PermissionError(13, "Permission denied", "~"))
    assert "CuPy cannot keep compiled kernels in ~/.cupy" in choose_device("auto").reason


def test_a_library_that_is_missing_is_not_taken_for_the_cache(
    machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    for error in (OSError("libfoo.so.1: cannot open"), OSError(2, "No such file", "/usr/lib/foo")):
        import_of_cupy_raises(monkeypatch, error)
        assert "reinstall" in choose_device("auto").reason


def test_the_real_cupy_with_a_home_that_is_no_folder() -> None:
    pytest.importorskip("cupy")
    program = (
        "from cupygpt.device.cuda_check import load_cupy\n"
        "from cupygpt.errors import DeviceError\n"
        "try:\n    load_cupy(12080)\nexcept DeviceError as error:\n    print(error)\n"
    )
    environ = {**os.environ, "HOME": os.devnull}
    for name in ("CUPY_CACHE_DIR", "CUPY_CACHE_IN_MEMORY"):
        environ.pop(name, None)
    out = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
    ).stdout
    assert out.startswith("CuPy cannot keep compiled kernels in /dev/null/.cupy/kernel_cache (Not")


@pytest.mark.parametrize(("spec", "gpus", "warns"), [("auto", 1, True), ("auto", 0, False)])
def test_auto_warns_if_it_leaves_a_gpu_unused(
    machine: Any, spec: str, gpus: int, warns: bool
) -> None:
    machine(cupy=fake_cupy("61"), gpus=gpus)
    assert (choose_device(spec).warning is not None) == warns


def test_the_cpu_that_was_asked_for_warns_of_nothing(machine: Any) -> None:
    machine(gpus=1)
    assert choose_device("cpu").warning is None


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
    assert 0 <= device.elapsed_ms(pending.event, device.record()) < 1e4


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
