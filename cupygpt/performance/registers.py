"""Registers and spills of a kernel, from NVIDIA's compiler where it is installed."""

import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from cupygpt.emulator.cache import cache_folder, write_whole
from cupygpt.errors import DeviceError, KernelError
from cupygpt.kernels.nvrtc import Nvrtc
from cupygpt.kernels.ptxas_log import Usage, usages
from cupygpt.performance.gpus import GPU

_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"\n]+)"', re.MULTILINE)


def usage_of(source: Path, options: Sequence[str], kernel: str, gpu: GPU) -> Usage | None:
    """What a kernel of a .cu file takes on a GPU.

    None where NVIDIA's compiler is not installed, or does not compile the file for this GPU.
    `options` are -D, -U and -I, others are left out.
    """
    compiler = _compiler()
    if compiler is None:
        return None
    settings = [option for option in options if option.startswith(("-D", "-U", "-I"))]
    settings += [f"-arch={gpu.architecture}", "-std=c++17", "--ptxas-options=-v"]
    try:
        log = _log(compiler, source, settings)
    except (KernelError, OSError, UnicodeDecodeError):
        return None
    return next((usage for usage in usages(log) if usage.kernel == kernel), None)


@functools.cache
def _compiler() -> Nvrtc | None:
    try:
        return Nvrtc()
    except (DeviceError, ImportError):
        return None


def _log(compiler: Nvrtc, source: Path, settings: Sequence[str]) -> str:
    """The compiler's log, from the cache folder if the file and its headers are unchanged."""
    folders = [source.parent, *(Path(s[2:]) for s in settings if s.startswith("-I"))]
    texts = _texts(source, folders, {})
    parts = [str(compiler.version), str(source), *settings, *texts.values()]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
    kept = cache_folder() / f"{source.stem}-{key}.log"
    if kept.exists():
        return kept.read_text(encoding="utf-8")
    log = compiler.compile(texts[source], str(source), [*settings, f"-I{source.parent}"])
    write_whole(kept, log)
    return log


def _texts(file: Path, folders: Sequence[Path], known: dict[Path, str]) -> dict[Path, str]:
    """The text of a file and of the headers that it includes with quotes."""
    known[file] = file.read_text(encoding="utf-8")
    for name in _INCLUDE.findall(known[file]):
        header = next((h for d in (file.parent, *folders) if (h := d / name).is_file()), None)
        if header is not None and header not in known:
            _texts(header, folders, known)
    return known
