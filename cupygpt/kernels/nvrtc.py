"""NVRTC, NVIDIA's compiler of kernels, through ctypes: it needs neither a GPU nor CuPy."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t
from ctypes import c_void_p as pointer
from typing import Any

from cupygpt.device.libraries import find_library
from cupygpt.errors import DeviceError, KernelError


def cuda_header_folder() -> str:
    """The folder of cuda_bf16.h. Raises DeviceError where CUDA's headers are not installed."""
    from cuda.pathfinder import find_nvidia_header_directory

    folder = find_nvidia_header_directory("cudart")
    if folder is None:
        raise DeviceError(
            "the CUDA headers (cuda_bf16.h) are not installed: pip install 'cuda-toolkit[cudart]'"
        )
    return str(folder)


class Nvrtc:
    """The compiler.

    Raises DeviceError with what to install where the library or CUDA's headers are missing.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(find_library("nvrtc"))
        self._create = self._entry("CreateProgram", POINTER(pointer), c_char_p, c_char_p, c_int,
                                   pointer, pointer)  # fmt: skip
        self._destroy = self._entry("DestroyProgram", POINTER(pointer))
        self._compile = self._entry("CompileProgram", pointer, c_int, POINTER(c_char_p))
        self._log_size = self._entry("GetProgramLogSize", pointer, POINTER(c_size_t))
        self._log = self._entry("GetProgramLog", pointer, c_char_p)
        self._cubin_size = self._entry("GetCUBINSize", pointer, POINTER(c_size_t))
        major, minor = c_int(), c_int()
        self._must(self._entry("Version", pointer, pointer)(byref(major), byref(minor)), "Version")
        self.version = (major.value, minor.value)
        self._headers = f"-I{cuda_header_folder()}"

    def _entry(self, name: str, *arguments: Any) -> Any:
        function = self._library["nvrtc" + name]
        function.argtypes, function.restype = arguments, c_int
        return function

    @staticmethod
    def _must(status: int, what: str) -> None:
        if status != 0:
            raise KernelError(f"nvrtc{what} failed with status {status}.")

    def compile(self, source: str, name: str, settings: Sequence[str]) -> str:
        """The compiler's log for the text of a .cu file; KernelError with that log if it fails."""
        program = pointer()
        status = self._create(byref(program), source.encode(), name.encode(), 0, None, None)
        self._must(status, "CreateProgram")
        try:
            options = [option.encode() for option in (*settings, self._headers)]
            failed = self._compile(program, len(options), (c_char_p * len(options))(*options))
            size = c_size_t()
            self._must(self._log_size(program, byref(size)), "GetProgramLogSize")
            text = ctypes.create_string_buffer(size.value)
            self._must(self._log(program, text), "GetProgramLog")
            log = text.value.decode(errors="replace")
            if failed:
                raise KernelError(f"{name} does not compile:\n{log.strip()}")
            self._must(self._cubin_size(program, byref(size)), "GetCUBINSize")
            if not size.value:
                raise KernelError(f"{name}: no machine code was made.")
        finally:
            self._destroy(byref(program))
        return log
