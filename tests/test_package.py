"""What is installed: the wheel carries the kernels, and each extra only what it is for."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_wheel_carries_the_kernels(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    for source in (ROOT / "cuda").rglob("*.cu*"):
        assert f"cupygpt/cuda/{source.relative_to(ROOT / 'cuda').as_posix()}" in names
    assert not any(name.startswith(("tests/", "tools/")) for name in names)
    program = "from cupygpt.kernels.load import find_cuda_dir; print(find_cuda_dir())"
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "installed"), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()) == tmp_path / "installed" / "cupygpt" / "cuda"


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
