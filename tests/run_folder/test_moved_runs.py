"""A run goes on wherever its files lie: their content counts, their names do not."""

import base64
import json
from pathlib import Path

import pytest
from support.small_runs import main_log, write_files

from cupygpt import sample
from cupygpt.config import GPTConfig
from cupygpt.errors import TokenizerError
from cupygpt.planning import open_data
from cupygpt.train import main

MERGES = GPTConfig(maxT=16, V=259, L=1, NH=1, C=8)
"""The 256 bytes, two merges, and end of text."""
BYTES = GPTConfig(maxT=16, V=257, L=1, NH=1, C=8)


def write_ranks(path: Path, *merges: bytes) -> str:
    tokens = [*(bytes([i]) for i in range(256)), *merges]
    lines = (base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
    path.write_bytes(b"".join(lines))
    return str(path)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of six steps, whose tokenizer came from a file beside it."""
    folder = tmp_path / "project"
    folder.mkdir()
    flags = write_files(folder, MERGES)
    monkeypatch.chdir(folder)
    write_ranks(Path("my.tiktoken"), b"th", b"he")
    flags = [*flags, "--tokenizer", "my.tiktoken", "-n", "6", "-v", "0", "-s", "3", "-g", "4"]
    assert main([*flags, "-o", "run"]) == 0
    return folder


def files(folder: Path) -> list[str]:
    return ["-i", str(folder / "train.bin"), "-j", str(folder / "val.bin")]


def test_a_moved_run_keeps_its_tokenizer(
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    moved = project.rename(tmp_path / "moved")
    (moved / "my.tiktoken").unlink()
    (moved / "train.bin").rename(moved / "other name.bin")
    monkeypatch.chdir(tmp_path)
    new = ["-i", str(moved / "other name.bin"), "-j", str(moved / "val.bin")]
    capsysbinary.readouterr()
    assert main(["--resume", "moved/run", "-n", "9", *new]) == 0
    assert b"samples show ids" not in capsysbinary.readouterr().out
    assert main(["--resume", "moved/run", "-n", "10"]) == 0  # the paths hold from then on
    assert len(main_log(moved / "run")) == 10
    # Its bytes are no text yet: only a binary capture takes them.
    assert sample.main(["moved/run", "--device", "cpu", "--tokens", "4", "--prompt", "the"]) == 0


def test_a_run_is_resumed_from_another_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = tmp_path / "the [first]", tmp_path / "other"
    for folder in (first, other):
        folder.mkdir()
    flags = write_files(first)
    flags[flags.index("-i") + 1], flags[flags.index("-j") + 1] = "trai?.bin", "val.bin"
    monkeypatch.chdir(first)
    assert main([*flags, "-n", "3", "-o", "run"]) == 0
    monkeypatch.chdir(other)
    assert main(["--resume", str(first / "run"), "-n", "5"]) == 0
    assert len([line for line in main_log(first / "run") if "trl" in line]) == 5


def test_a_tokenizer_is_known_by_its_content(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "run" / "run.tokenizer").unlink()
    same = write_ranks(project / "same.tiktoken", b"th", b"he")
    other = write_ranks(project / "my.tiktoken", b"th", b"er")  # in the place of the first
    for arguments in ([], ["--tokenizer", other]):
        assert main(["--resume", "run", "-n", "9", *arguments]) == 2
        assert "its content is another one" in capsys.readouterr().err
    assert main(["--resume", "run", "-n", "9", "--tokenizer", same]) == 0
    assert main(["--resume", "run", "-n", "10"]) == 0
    record = json.loads((project / "run" / "run.json").read_text())
    assert record["config"]["tokenizer"] == same
    assert (project / "run" / "run.tokenizer").read_bytes() == Path(same).read_bytes()


def test_a_missing_tokenizer_is_noted(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "run" / "run.tokenizer").unlink()
    (project / "my.tiktoken").unlink()
    assert main(["--resume", "run", "-n", "9"]) == 0
    assert "samples show ids: tokenizer my.tiktoken: could not be read" in capsys.readouterr().out
    assert main(["--resume", "run", "-n", "10", "--tokenizer", "my.tiktoken"]) == 2


@pytest.mark.parametrize("missing_first", [False, True])
def test_files_of_a_tokenizer_may_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing_first: bool
) -> None:
    def refuse(_spec: str) -> None:
        raise TokenizerError("its files are not on this machine")

    run = tmp_path / "run"
    starts = [[*write_files(tmp_path, BYTES), "-n", "4", "-o", str(run)]]
    starts += [["--resume", str(run), "-n", steps] for steps in ("8", "12")]
    for number, arguments in enumerate(starts):
        with monkeypatch.context() as patch:
            if (number % 2 == 0) == missing_first:
                patch.setattr(open_data, "load_tokenizer", refuse)
            assert main(arguments) == 0
    assert json.loads((run / "run.json").read_text())["data"]["tokenizer"] == "bytes"


def test_changed_tokens_are_refused_under_any_name(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = bytearray((project / "train.bin").read_bytes())
    raw[1500] ^= 1
    (project / "new.bin").write_bytes(raw)
    assert main(["--resume", "run", "-n", "9", "-i", "new.bin"]) == 2
    err = capsys.readouterr().err
    assert "the data is not the one this run was started with" in err
    assert "train: new.bin has other content: 1200 tokens in the run, 1200 now" in err
    assert main(["--resume", "run", "-n", "9", "-i", "*a*.bin"]) == 2
    assert "train: 1 files in the run, 2 now" in capsys.readouterr().err
