"""llm.c's command lines: each flag works as there, or is answered with a sentence."""

from pathlib import Path

import pytest

from cupygpt.errors import ConfigError
from cupygpt.flags.command_line import CommandLine, read_command_line
from cupygpt.flags.llmc import HELLASWAG, LLMC_ONLY, check_claims

LLMC_FLAGS = (
    *("-i", "-j", "-e", "-o", "-lg", "-n", "-nk", "-nm", "-y", "-b", "-t", "-d", "-x"),
    *("-k", "-l", "-u", "-q", "-c", "-sl", "-sg", "-v", "-m", "-s", "-g", "-h", "-a"),
    *("-f", "-w", "-ge", "-z", "-r", "-pn", "-pr", "-pg", "-pi", "-ps", "-pf"),
)
"""All that train_gpt2.cu reads; train_gpt2_fp32.cu reads some of these."""

VALUES = {
    "-i": "a.bin", "-j": "b.bin", "-e": "d12", "-o": "run", "-k": "cosine", "-l": "0.0006",
    "-pi": "mpi", "-ps": "10.0.0.1", "-pf": "/tmp", "-pr": "0",
}  # fmt: skip

SCRIPT = """
    -i train_*.bin -j val_*.bin -o log -v 250 -s 20000 -g 144 -h 1 -b 32 -t 2048 -d 524288 -r 0 -z 1
    -c 0.1 -k cosine -l 0.0006 -q 0.1 -u 700 -n 10000 -nk 5 -nm 50000 -ge 1 -sl 7.0 -sg 7.0 -y 1
    -x 572204 -e gpt3:c768
"""


def read(*words: str) -> CommandLine:
    return read_command_line(words)


@pytest.mark.parametrize("flag", LLMC_FLAGS)
def test_every_flag_of_llmc_is_read_or_answered(flag: str) -> None:
    """And none of them as another one: `-lg 1` is not `-l g`."""
    line = read(flag, VALUES.get(flag, "1"))
    answered = " ".join(line.notes)
    assert line.given or line.claims or answered.startswith(flag)
    assert len(line.notes) <= 1
    assert (flag in LLMC_ONLY) == (not line.given)


def test_the_flags_of_a_script_of_llmc_mean_what_they_mean_there() -> None:
    line = read(*SCRIPT.split())
    assert line.given == {
        "train_data": "train_*.bin", "val_data": "val_*.bin", "out": "log", "model": "gpt3:c768",
        "val_every": 250, "sample_every": 20000, "sample_length": 144, "resume": "1",
        "batch_size": 32, "seq_len": 2048, "total_batch": 524288, "recompute": 0, "zero_stage": 1,
        "weight_decay": 0.1, "schedule": "cosine", "learning_rate": 0.0006, "final_fraction": 0.1,
        "warmup": 700, "steps": 572204, "checkpoint_every": 10000, "keep": 5, "keep_every": 50000,
    }  # fmt: skip
    starts = ["-h 1", "-ge 1", "-sl 7.0", "-sg 7.0", "-n 10000"]
    assert [note[: len(start)] for note, start in zip(line.notes, starts, strict=True)] == starts


@pytest.mark.parametrize(
    ("words", "steps", "interval"),
    [
        ("-n 1000", 1000, None),
        ("-x 60", 60, None),
        ("-n 20 -x 60", 60, 20),
        ("-x 60 -n 20 --checkpoint-every 5", 60, 5),
        ("-x -1 -n 20", -1, 20),
        ("-n 0 -x 60", 60, 0),
        ("-n 5000 -h 1 -y 1", -1, 5000),
        ("-y 0 -n 1000 -h 1 -pi mpi", -1, 1000),
        ("-n 6 -y 1", 6, None),
        ("-n 6 -h 1", 6, None),
        ("-n 6 -h 1 -y 1 --checkpoint-every 2", 6, 2),
    ],
)
def test_n_is_the_interval_where_the_line_is_llmc_s(
    words: str, steps: int, interval: int | None
) -> None:
    line = read(*words.split())
    assert line.given["steps"] == steps
    assert line.given.get("checkpoint_every") == interval
    said = [note for note in line.notes if note.startswith("-n ")]
    assert len(said) == (words not in ("-n 1000", "-x 60"))


def test_h_1_means_llmcs_file_where_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (note,) = read("-h", "1").notes
    assert note.startswith("-h 1: dev/data/hellaswag/hellaswag_val.bin is not here")
    (tmp_path / HELLASWAG).parent.mkdir(parents=True)
    (tmp_path / HELLASWAG).touch()
    assert read("-h", "1") == CommandLine({"hellaswag": HELLASWAG}, (), {})
    assert read("-h", "0") == CommandLine({}, (), {})


@pytest.mark.parametrize("words", ["-y 0", "-d -1", "-h 0", "-lg -1", "-sl 0 -sg 0.0", "-ge -1"])
def test_what_happens_anyway_needs_no_word(words: str) -> None:
    assert read(*words.split()) == CommandLine({}, (), {})


def test_the_log_file_of_the_fp32_trainer_is_a_folder_here() -> None:
    line = read("-o", "stories.log")
    assert line.notes == ("-o stories.log is a folder here; its log is stories.log/main.log.",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-h yes", "-h is llm.c's and takes a number, got 'yes'"),
        ("-lg x", "-lg is llm.c's and takes a number, got 'x'"),
        ("-sl", "-sl is llm.c's and takes a value"),
        ("-pn -pr 1", "-pn is llm.c's and takes a value"),
        ("-n", "expected one argument"),
        ("-nk five", "invalid int value: 'five'"),
    ],
)
def test_values_that_are_missing_or_no_numbers_are_refused(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(*words.split())


def test_the_processes_must_be_those_of_the_launcher() -> None:
    claims = read("-pn", "8", "-pr", "3", "-pg", "8", "-pi", "tcp").claims
    assert claims == {"-pn": 8, "-pr": 3}
    check_claims(claims, world=8, rank=3)
    with pytest.raises(ConfigError, match=r"-pn is 8, but this process is 1 in all\. .*--gpus N"):
        check_claims(claims, world=1, rank=0)
    with pytest.raises(ConfigError, match=r"-pr is 3, but this process is number 2"):
        check_claims(claims, world=8, rank=2)
