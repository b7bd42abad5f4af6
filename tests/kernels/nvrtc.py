"""NVRTC, NVIDIA's compiler of kernels, through ctypes: it needs neither a GPU nor CuPy."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t
from ctypes import c_void_p as pointer
from pathlib import Path
from typing import Any

from support.cache import cache_folder

from cupygpt.device.libraries import find_library
from cupygpt.errors import DeviceError
from cupygpt.kernels.load import Variant

CUDA_DIR = Path(__file__).parents[2] / "cuda"


def with_headers(file: str) -> str:
    """The text of a file in cuda/, after the texts of the headers in cuda/ that it includes."""
    text = (CUDA_DIR / file).read_text()
    headers = re.findall(r'#include "([\w./]+)"', text)
    return "".join(with_headers(h) for h in headers if (CUDA_DIR / h).exists()) + text


def _header_folder() -> str:
    """The folder of cuda_bf16.h."""
    from cuda.pathfinder import find_nvidia_header_directory

    folder = find_nvidia_header_directory("cudart")
    if folder is None:
        raise DeviceError(
            "the CUDA headers (cuda_bf16.h) are not installed: pip install 'cuda-toolkit[cudart]'"
        )
    return str(folder)


class Nvrtc:
    """The compiler. Logs of earlier compilations are kept in the cache folder.

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
        assert self._entry("Version", pointer, pointer)(byref(major), byref(minor)) == 0
        self.version = (major.value, minor.value)
        self._folders = [f"-I{CUDA_DIR}", f"-I{_header_folder()}"]
        self._cache = cache_folder("nvrtc")

    def _entry(self, name: str, *arguments: Any) -> Any:
        function = self._library["nvrtc" + name]
        function.argtypes, function.restype = arguments, c_int
        return function

    def log(self, variant: Variant, capability: str) -> str:
        """The compiler's log for a variant on a GPU of this compute capability; see `compile`."""
        settings = [
            f"-arch={variant.arch or 'sm_' + capability}",
            "-std=c++17",
            "--ptxas-options=-v",
            f"-DfloatX={variant.floatX}",
            *(f"-D{name}={value}" for name, value in variant.constants),
        ]
        identity = json.dumps([self.version, with_headers(variant.file), settings])
        key = hashlib.sha256(identity.encode()).hexdigest()
        kept = self._cache / f"{variant.file.replace('/', '-')}-{key[:20]}.log"
        if not kept.exists():
            text = self.compile((CUDA_DIR / variant.file).read_text(), variant.file, settings)
            unfinished = kept.with_suffix(f".{os.getpid()}")  # other workers may compile it too
            unfinished.write_text(text)
            unfinished.replace(kept)
        return kept.read_text()

    def compile(self, source: str, name: str, settings: list[str]) -> str:
        """The compiler's log; AssertionError with that log if it fails."""
        program = pointer()
        status = self._create(byref(program), source.encode(), name.encode(), 0, None, None)
        assert status == 0, f"nvrtcCreateProgram: status {status}"
        try:
            options = [option.encode() for option in (*settings, *self._folders)]
            status = self._compile(program, len(options), (c_char_p * len(options))(*options))
            size = c_size_t()
            assert self._log_size(program, byref(size)) == 0
            text = ctypes.create_string_buffer(size.value)
            assert self._log(program, text) == 0
            log = text.value.decode(errors="replace")
            assert status == 0, log
            assert self._cubin_size(program, byref(size)) == 0
            assert size.value > 0, "no machine code was made"
        finally:
            self._destroy(byref(program))
        return log
