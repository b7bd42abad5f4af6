"""A run that is killed at any of its file operations goes on to the same bits."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cupygpt.checkpoint.model_file import save_model
from cupygpt.config import GPTConfig
from cupygpt.model.init_weights import initial_parameters
from cupygpt.prepare import main as prepare

FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """file_operations.c as a library that the loader can put before all others."""
    if sys.platform != "linux":
        pytest.skip("LD_PRELOAD and the C library's names are Linux's")
    compiler = next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))), None)
    if compiler is None:
        pytest.skip("no C compiler is installed (Debian: apt-get install gcc)")
    made = tmp_path_factory.mktemp("preload") / "file_operations.so"
    source = FOLDER / "file_operations.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", made, source, "-ldl"], check=True)
    return made


def preloaded(library: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )


WRITER = """
import ctypes, os, sys
library, folder, number, torn = sys.argv[1:]
rows = ctypes.create_string_buffer(200 * 100)
ctypes.CDLL(library).watch_files(folder.encode(), ctypes.c_long(int(number)), int(torn), rows, 100)
os.mkdir(folder)
with open(folder + "/a.partial", "wb") as file:
    file.write(bytes(10))
    file.flush()
    os.fsync(file.fileno())
os.rename(folder + "/a.partial", folder + "/a")
open(os.path.dirname(folder) + "/elsewhere", "wb").close()
os.remove(folder + "/a")
for i in range(0, len(rows), 200):
    print(rows.raw[i : i + 200].split(bytes(1))[0].decode())
"""


def test_operations_are_counted_and_a_process_is_killed_at_one(
    library: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"

    def write(number: int, torn: int) -> subprocess.CompletedProcess[str]:
        shutil.rmtree(folder, ignore_errors=True)
        return preloaded(library, "-c", WRITER, str(library), str(folder), str(number), str(torn))

    done = write(-1, 0)
    assert done.returncode == 0, done.stderr
    operations = [line.split()[0] for line in done.stdout.split("\n") if line]
    assert operations == ["mkdir", "open", "write", "fsync", "close", "rename", "unlink"]
    for number, torn, left in (
        (0, 0, None),
        (2, 0, {"a.partial": 0}),
        (2, 1, {"a.partial": 5}),
        (5, 0, {"a.partial": 10}),
        (6, 0, {"a": 10}),
    ):
        assert write(number, torn).returncode == -9
        found = {file.name: file.stat().st_size for file in folder.glob("*")}
        assert (found if folder.exists() else None) == left, (number, torn)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command that starts the smallest run: bytes, one layer, validations and samples."""
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 40)
    config = GPTConfig(maxT=16, V=257, L=1, NH=1, C=16)
    save_model(tmp_path / "tiny.bin", config, initial_parameters(config, 42), "fp32")
    monkeypatch.chdir(tmp_path)
    assert prepare(["text.txt", "--tokenizer", "bytes"]) == 0
    return [
        "-e", str(tmp_path / "tiny.bin"), "-i", str(tmp_path / "text_train.bin"),
        "-j", str(tmp_path / "text_val.bin"), "--tokenizer", "bytes", "--device", "cpu",
        "-b", "2", "-t", "16", "-v", "2", "-m", "1", "-s", "2", "-g", "4",
        "--checkpoint-every", "2", "-o", str(tmp_path / "run"),
    ]  # fmt: skip


def kill_everywhere(library: Path, folder: Path, **job: Any) -> dict[str, Any]:
    path = folder / "job.json"
    path.write_text(json.dumps({"run": str(folder / "run"), "before": None, **job}))
    done = preloaded(library, str(FOLDER / "killed_runs.py"), str(library), str(path))
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    shown = {name: value for name, value in result.items() if name != "operations"}
    sys.stdout.write(json.dumps(shown, indent=1))  # pytest -s shows it
    assert len(result["operations"]) > 60
    assert len(result["compared"]) > 5
    assert not result["left_over"], "\n".join(result["left_over"])
    return result


@pytest.mark.slow
def test_a_run_killed_at_any_file_operation_goes_on_to_the_same_bits(
    library: Path, start: list[str], tmp_path: Path
) -> None:
    """With a checkpoint it is resumed; without one the same command starts again."""
    command = [*start, "-n", "6"]
    again = [["--resume", str(tmp_path / "run")], command, [*command, "--overwrite"]]
    result = kill_everywhere(library, tmp_path, command=command, again=again)
    assert not result["faults"], "\n".join(result["faults"])
    assert result["by_command"][0] > result["kills"] // 2


@pytest.mark.slow
def test_a_resumed_run_killed_at_any_file_operation_goes_on_to_the_same_bits(
    library: Path, start: list[str], tmp_path: Path
) -> None:
    """The run that is resumed was killed too, and gets more steps."""
    command = ["--resume", str(tmp_path / "run"), "-n", "8"]
    result = kill_everywhere(
        library, tmp_path, before=[*start, "-n", "6"], command=command, again=[command]
    )
    assert not result["faults"], "\n".join(result["faults"])
