"""Whether a GPU can be used, and if not, why and what to do about it.

Each question is a small function, so that each answer can be tried without the machine it needs.
"""

import ctypes
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from cupygpt.device.libraries import find_library
from cupygpt.errors import DeviceError

MIN_CAPABILITY = (7, 5)
"""Turing: the oldest GPUs that CUDA 12 and 13 both support."""

FIRST_DRIVERS = {12: "525", 13: "580"}
"""The first driver for each major version of CUDA (NVIDIA's CUDA release notes)."""

_NO_GPU = (
    "the NVIDIA driver shows no GPU: see what nvidia-smi says, and what the environment variable "
    "CUDA_VISIBLE_DEVICES holds."
)

_NO_DEVICE, _INSUFFICIENT_DRIVER = 100, 35  # cudaError_t


def find_gpu(index: int | None) -> tuple[int, str]:
    """(index, reason) of the GPU to use: the one asked for, or the first that can be used.

    Raises DeviceError with the reason and what to do where there is none.
    """
    driver = driver_cuda_version()
    if driver is None:
        raise DeviceError(_no_driver())
    cupy = load_cupy(driver)
    count = device_count(cupy, driver)
    check_libraries()
    if index is not None:
        if index >= count:
            known = "only GPU 0" if count == 1 else f"GPUs 0 to {count - 1}"
            raise DeviceError(f"GPU {index} does not exist: this machine shows {known}.")
        check_capability(cupy, index)
        return index, f"asked for GPU {index} of {count}"
    problems = []
    for candidate in range(count):
        try:
            check_capability(cupy, candidate)
        except DeviceError as error:
            problems.append(str(error))
            continue
        which = "the only GPU" if count == 1 else f"the first usable GPU of {count}"
        return candidate, which
    raise DeviceError(" ".join(problems))


def driver_cuda_version() -> int | None:
    """Newest CUDA version the installed driver supports (12080 is 12.8); None without a driver."""
    library = _driver()
    if library is None:
        return None
    version = ctypes.c_int()
    status = library.cuDriverGetVersion(ctypes.byref(version))
    return version.value if status == 0 else None


def gpus_of_driver() -> int:
    """GPUs that the driver shows this process, whether or not they can be used; without CuPy."""
    library = _driver()
    count = ctypes.c_int()
    if library is None or library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


def check_gpus(count: int) -> None:
    """DeviceError where the driver shows fewer than `count` GPUs."""
    if driver_cuda_version() is None:
        raise DeviceError(_no_driver())
    shown = gpus_of_driver()
    if shown == 0:
        raise DeviceError(_NO_GPU)
    if shown < count:
        raise DeviceError(f"this machine shows {shown}.")


def cupy_cache_folder() -> Path:
    """Where CuPy keeps what it has compiled.

    As CuPy finds it: for a user without a home folder it is below a folder that is named `~`.
    """
    default = os.path.expanduser("~/.cupy/kernel_cache")  # noqa: PTH111 - raises nothing
    return Path(os.environ.get("CUPY_CACHE_DIR", default))


def unusable_cupy_cache(error: OSError) -> str:
    """The message for CuPy's failure to make its cache folder, or to write there."""
    return (
        f"CuPy cannot keep compiled kernels in {cupy_cache_folder()} "
        f"({error.strerror or error}): set CUPY_CACHE_DIR to a folder that can be written to, such "
        f"as CUPY_CACHE_DIR=/tmp/cupy."
    )


def _is_of_cupy_cache(error: OSError) -> bool:
    if not isinstance(error.filename, str):
        return False  # a library that could not be loaded
    folder, failed = cupy_cache_folder().absolute(), Path(error.filename).absolute()
    return failed == folder or failed in folder.parents or folder in failed.parents


def load_cupy(driver: int) -> ModuleType:
    """CuPy, or DeviceError that says which extra to install for this driver."""
    try:
        import cupy
    except ModuleNotFoundError as error:
        if error.name != "cupy":
            raise DeviceError(_broken_cupy(error, driver)) from error
        raise DeviceError(f"CuPy is not installed: pip install '{extra_for(driver)}'.") from None
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and _is_of_cupy_cache(error):
            raise DeviceError(unusable_cupy_cache(error)) from error
        raise DeviceError(_broken_cupy(error, driver)) from error
    module: ModuleType = cupy
    return module


def device_count(cupy: Any, driver: int) -> int:
    """Number of GPUs CuPy can see; DeviceError where there are none, or none can be reached."""
    runtime = cupy.cuda.runtime
    wanted = runtime.runtimeGetVersion()
    try:
        count = int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        if error.status == _INSUFFICIENT_DRIVER:
            raise DeviceError(_old_driver(driver, wanted)) from None
        if error.status != _NO_DEVICE:
            raise DeviceError(
                f"the NVIDIA driver does not answer ({error}): see what nvidia-smi says; "
                f"a reboot often helps after a driver update."
            ) from None
        count = 0
    if count == 0:
        raise DeviceError(_NO_GPU)
    return count


def check_libraries() -> None:
    """DeviceError where NVRTC, which compiles the kernels, or cuBLASLt is missing."""
    for name in ("nvrtc", "cublasLt"):
        find_library(name)


def check_capability(cupy: Any, index: int) -> None:
    """DeviceError where a GPU is older than the kernels support."""
    major, minor = compute_capability(cupy, index)
    if (major, minor) < MIN_CAPABILITY:
        name = cupy.cuda.runtime.getDeviceProperties(index)["name"].decode()
        raise DeviceError(
            f"GPU {index}, {name}, has compute capability {major}.{minor}: the kernels need 7.5 "
            f"(Turing, such as T4 or RTX 2060) or newer."
        )


def compute_capability(cupy: Any, index: int) -> tuple[int, int]:
    """(9, 0) for Hopper; does not start anything on the GPU."""
    digits = cupy.cuda.Device(index).compute_capability  # "90"; "120" is 12.0
    return int(digits[:-1]), int(digits[-1])


def extra_for(driver: int) -> str:
    """The extra of this package that suits a driver for this CUDA version."""
    return "cupygpt[cuda13]" if driver >= 13000 else "cupygpt[cuda12]"


def cuda_version(number: int) -> str:
    """The version that 12090 stands for: 12.9."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _no_driver() -> str:
    if sys.platform == "darwin":
        return "macOS has no NVIDIA driver."
    if sys.platform == "win32":
        return "no NVIDIA driver was found (nvcuda.dll): install it from nvidia.com/drivers."
    return (
        "no NVIDIA driver was found (libcuda.so.1): if there is an NVIDIA GPU, install its driver, "
        "or start the container with access to the GPU."
    )


def _old_driver(driver: int, wanted: int) -> str:
    major = wanted // 1000
    first = f" to {FIRST_DRIVERS[major]} or newer" if major in FIRST_DRIVERS else ""
    advice = f"update the driver{first}"
    if major == 13 and driver >= 12000:
        advice += ", or replace CuPy: pip uninstall cupy-cuda13x, pip install 'cupygpt[cuda12]'"
    return (
        f"the NVIDIA driver supports CUDA {cuda_version(driver)}, "
        f"this CuPy needs {cuda_version(wanted)}: {advice}."
    )


def _broken_cupy(error: Exception, driver: int) -> str:
    lines = [line.strip(" =") for line in str(error).splitlines()]
    detail = next((line for line in reversed(lines) if line), type(error).__name__)
    return (
        f"CuPy is installed but cannot be loaded ({detail}): "
        f"pip install --force-reinstall '{extra_for(driver)}'."
    )
