"""A flag that cannot have an effect is refused with the reason; llm.c's defaults never are."""

import re
from pathlib import Path

import pytest
from support.small_runs import write_files

from cupygpt.errors import ConfigError
from cupygpt.flags.command_line import read_command_line
from cupygpt.train import main

DATA, BOTH = ["-i", "a.bin"], ["-i", "a.bin", "-j", "b.bin"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-k", "constant", "-u", "100"], "-u/--warmup has no effect: the learning rate of"),
        (["-k", "constant", "-q", "0.1"], "-q/--final-fraction has no effect"),
        ([*DATA, "-m", "5"], "-m/--val-batches has no effect: there are no validation data (-j)."),
        ([*DATA, "-v", "100"], "-v/--val-every has no effect"),
        ([*DATA, "--patience", "3"], "--patience has no effect"),
        ([*BOTH, "-v", "0", "-m", "5"], "-m/--val-batches has no effect: -v 0 means"),
        ([*BOTH, "-v", "0", "--patience", "3"], "--patience has no effect: -v 0 means"),
        ([*BOTH, "-v", "0", "--hellaswag", "q"], "--hellaswag has no effect: -v 0 means"),
        (["-s", "0", "-g", "100"], "-g/--sample-length has no effect: -s 0 means"),
        (["--keep", "0", "--keep-every", "10"], "has no effect: --keep 0 keeps all checkpoints."),
        (["--overwrite"], "--overwrite has no effect: without -o"),
        (["--resume", "r", "--overwrite"], "--overwrite has no effect: --resume continues"),
    ],
)
def test_a_flag_without_effect_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_command_line(words)


def test_each_flag_without_effect_is_named() -> None:
    with pytest.raises(ConfigError, match=r"-u/--warmup has no effect.*-q/--final-fraction has no"):
        read_command_line(["-k", "constant", "-u", "100", "-q", "0.1"])


@pytest.mark.parametrize(
    "words",
    [
        ["-k", "constant", "-u", "0", "-q", "1.0"],
        [*DATA, "-m", "20", "-v", "20"],
        [*DATA, "-v", "0"],
        [*DATA, "-v", "100", "--hellaswag", "val.bin"],
        [*BOTH, "-v", "0"],
        [*BOTH, "-v", "0", "-m", "20"],
        ["-m", "5", "-v", "10"],  # the demo has validation data
        ["-s", "0", "-g", "64"],
        ["-o", "r", "--overwrite"],
        ["-y", "1", "-o", "r", "--overwrite"],
        ["--resume", "r", "-m", "5", "-i", "moved.bin"],
    ],
)
def test_what_has_an_effect_and_llmcs_defaults_are_taken(words: list[str]) -> None:
    assert read_command_line(words).given


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["-e", "other.bin"], "-e other.bin has no effect"),
        (["-o", "elsewhere"], "-o elsewhere has no effect"),
        (["-e", "{tmp}/tiny.bin", "-o", "{tmp}/./run"], None),
    ],
)
def test_a_resumed_run_keeps_its_weights_and_its_folder(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    message: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*write_files(tmp_path), "-n", "3", "-v", "0", "-o", "run"]) == 0
    code = main(["--resume", "run", "-n", "5", *(word.format(tmp=tmp_path) for word in more)])
    err = capsys.readouterr().err
    assert (code, message is None or message in err) == (2 if message else 0, True), err
    assert not Path("elsewhere").exists()
