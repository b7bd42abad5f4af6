"""Where NVIDIA's libraries lie: in pip or conda packages, or in a CUDA toolkit."""

from cupygpt.errors import DeviceError


def find_library(name: str) -> str:
    """Path of an NVIDIA library (`cublasLt`, `nvrtc`), as pip, conda or a CUDA toolkit put it.

    Loads it. Raises DeviceError with what to install where it is missing.
    """
    try:
        from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
    except ImportError as error:
        raise DeviceError(
            f"the package cuda-pathfinder is missing ({error}): "
            f"pip install 'cupygpt[cuda12]' or 'cupygpt[cuda13]'."
        ) from None
    try:
        path = load_nvidia_dynamic_lib(name).abs_path
    except DynamicLibNotFoundError:
        raise DeviceError(
            f"NVIDIA's library {name} was not found: "
            f"pip install 'cupygpt[cuda12]' or 'cupygpt[cuda13]', or install a CUDA toolkit."
        ) from None
    return str(path)
