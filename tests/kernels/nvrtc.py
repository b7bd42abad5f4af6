"""NVIDIA's compiler for the tests: what it says of the kernels of cuda/."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from support.cache import cache_folder

import cupygpt.kernels.nvrtc
from cupygpt.kernels.load import Variant

CUDA_DIR = Path(__file__).parents[2] / "cuda"


def with_headers(file: str) -> str:
    """The text of a file in cuda/, after the texts of the headers in cuda/ that it includes."""
    text = (CUDA_DIR / file).read_text()
    headers = re.findall(r'#include "([\w./]+)"', text)
    return "".join(with_headers(h) for h in headers if (CUDA_DIR / h).exists()) + text


class Nvrtc(cupygpt.kernels.nvrtc.Nvrtc):
    """The compiler with the headers of cuda/. Logs of earlier compilations are kept."""

    def __init__(self) -> None:
        super().__init__()
        self._cache = cache_folder("nvrtc")

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

    def compile(self, source: str, name: str, settings: Sequence[str]) -> str:
        """The compiler's log; KernelError with that log if it fails."""
        return super().compile(source, name, [*settings, f"-I{CUDA_DIR}"])
