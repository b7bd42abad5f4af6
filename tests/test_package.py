"""What is installed: the wheel carries the kernels, and each extra only what it is for."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cupygpt.emulator.compiler import missing_toolchain

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, unpacked into a folder that has a space in its name and cannot be written."""
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    target = folder / "the installed (package)"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    return target


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder; what the emulator compiles once for a package is kept there."""
    return tmp_path_factory.mktemp("home") / "a, folder with 'marks'"


def run_installed(installed: Path, program: str, folder: Path, **variables: str) -> str:
    """What a program prints that finds cupygpt only in the unpacked wheel."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={"PYTHONPATH": str(installed), "PATH": "", "HOME": str(folder), **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_carries_the_kernels(installed: Path, tmp_path: Path) -> None:
    names = {p.relative_to(installed).as_posix() for p in installed.rglob("*") if p.is_file()}
    for source in (*(ROOT / "cuda").rglob("*.cu*"), *(ROOT / "cuda").rglob("*.md")):
        assert f"cupygpt/cuda/{source.relative_to(ROOT / 'cuda').as_posix()}" in names
    assert not any(name.startswith(("tests/", "tools/")) for name in names)
    program = "from cupygpt.kernels.load import find_cuda_dir; print(find_cuda_dir())"
    found = run_installed(installed, program, tmp_path)
    assert Path(found) == installed / "cupygpt" / "cuda"


KERNEL = """\
from pathlib import Path
import numpy as np
from cupygpt.emulator.arrays import emulated, emulated_empty
from cupygpt.emulator.compiler import Mode
from cupygpt.emulator.emulate import EmulatedModule
from cupygpt.errors import CupyGPTError
source = Path("my (own) kernel.cu")
source.write_text(
    'extern "C" __global__ void twice(float* out, const float* in) {'
    "out[threadIdx.x] = 2 * in[threadIdx.x]; }"
)
out, inp = emulated_empty(32), emulated(np.arange(32, dtype=np.float32))
try:
    kernel = EmulatedModule(source, mode=Mode.COUNTED).get_function("twice")
    counts = kernel.count((1,), (32,), (out, inp))
    print(float(out.sum()), counts.accesses[0].place.line, counts.total("global", "read").sectors)
except CupyGPTError as error:
    print(error)
"""


def test_an_installed_package_runs_kernels(installed: Path, home: Path, tmp_path: Path) -> None:
    if reason := missing_toolchain():
        pytest.skip(reason)
    folder = tmp_path / "a, folder with 'marks'"
    folder.mkdir()
    path = os.environ["PATH"]
    assert run_installed(installed, KERNEL, folder, PATH=path, HOME=str(home)) == "992.0 1 4"
    assert (home / ".cache" / "cupygpt" / "emulator").is_dir()
    said = run_installed(installed, KERNEL, folder)
    assert "\n" not in said
    assert "g++ is not installed" in said
    assert "apt-get install g++" in said
    blocked = tmp_path / "file"
    blocked.touch()
    said = run_installed(installed, KERNEL, folder, PATH=path, CUPYGPT_CACHE_DIR=str(blocked))
    assert "cannot be kept in" in said
    assert "CUPYGPT_CACHE_DIR" in said


LAB = """\
import sys
from pathlib import Path
from cupygpt.lab.__main__ import main
started = main(["start", "layernorm_1_sectors"])
path = Path("lab/layernorm_1_sectors.cu")
path.write_text(path.read_text().replace("= ?", "= 4"))
wrong = main(["check", "layernorm_1_sectors"])
path.write_text(path.read_text().replace("of inp = 4", "of inp = 32"))
right = main(["check"])
listed = main([])
print(started, wrong, right, listed)
"""


def test_the_lab_works_from_an_installed_package(
    installed: Path, home: Path, tmp_path: Path
) -> None:
    """In a folder with a space in its name, from a package that cannot be written."""
    if reason := missing_toolchain():
        pytest.skip(reason)
    folder = tmp_path / "an empty folder"
    folder.mkdir()
    said = run_installed(installed, LAB, folder, PATH=os.environ["PATH"], HOME=str(home))
    assert "not 4; think again" in said
    assert "layernorm_1_sectors: solved: sectors per load of inp = 32" in said
    assert "layernorm_1_sectors (solved)" in said
    course = installed / "cupygpt" / "cuda" / "lab" / "README.md"
    assert f"The course: {course}\n" in said
    assert said.endswith("\n0 1 0 0")
    assert course.is_file()
    said = run_installed(
        installed, "from cupygpt.lab.__main__ import main; main(['show', 'gelu', '1'])", folder
    )
    assert '#include "lib/packs.cuh"' in said


@pytest.mark.parametrize(
    ("part", "extras"),
    [
        ("cupy", {"cuda12", "cuda13"}),
        ("cublas", {"cuda12", "cuda13"}),
        ("nccl", {"nccl12", "nccl13"}),
        ("nvrtc", {"cuda12", "cuda13", "test"}),
    ],
)
def test_the_large_parts_of_cuda_come_only_with_their_extras(part: str, extras: set[str]) -> None:
    """NVRTC is all of CUDA that tests need where there is no GPU."""
    toml = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = toml.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {**project["optional-dependencies"], "": project["dependencies"]}
    # "cupygpt[test]" in the extra dev is that extra again.
    wanted = {
        name: [line for line in lines if not line.startswith("cupygpt[")]
        for name, lines in groups.items()
    }
    assert {name for name, lines in wanted.items() if any(part in x for x in lines)} == extras
