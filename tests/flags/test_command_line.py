"""No flag is taken for another, and what is wrong is said with the way to put it right."""

import pytest

from cupygpt.errors import ConfigError
from cupygpt.flags.command_line import read_command_line


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["-b", "32"], {"batch_size": 32}),
        (["-b32"], {"batch_size": 32}),
        (["-b=32"], {"batch_size": 32}),
        (["--batch-size=32"], {"batch_size": 32}),
        (["-l=3e-4"], {"learning_rate": 3e-4}),
        (["-l3e-4"], {"learning_rate": 3e-4}),
        (["-l", "-1e-3"], {"learning_rate": -1e-3}),
        (["-m", "-1"], {"val_batches": -1}),
        (["-m-1"], {"val_batches": -1}),
        (["-a", "-b", "4"], {"overfit": 1, "batch_size": 4}),
        (["-a", "0"], {"overfit": 0}),
        (["--resume"], {"resume": "newest"}),
        (["-y", "-b", "2"], {"resume": "newest", "batch_size": 2}),
        (["-y", "runs/a b"], {"resume": "runs/a b"}),
        (["-o", "a=b"], {"out": "a=b"}),
        (["--out=a=b"], {"out": "a=b"}),
        (["--no-shuffle", "--debug"], {"no_shuffle": True, "debug": True}),
        ([], {}),
    ],
)
def test_a_value_follows_its_flag(words: list[str], given: dict[str, object]) -> None:
    line = read_command_line(words)
    assert line.given == given
    assert line.notes == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-overwrite"], r"-overwrite is not a flag\. Did you mean --overwrite\?"),
        (["-epochs", "3"], r"-epochs is not a flag\. Did you mean --epochs\?"),
        (["-ofolder"], r"Put a space between a flag and its value: -o folder\."),
        (["-kcosine"], r"Put a space between a flag and its value: -k cosine\."),
        (["--bacth-size", "4"], r"Did you mean -b/--batch-size\?"),
        (["--batch_size", "4"], r"Did you mean -b/--batch-size\?"),
        (["--Seed", "4"], r"Did you mean --seed\?"),
        (["--learn", "1"], r"Did you mean -l/--learning-rate\?"),
        (["-me", "0"], r"-me is not a flag\. --help lists all flags"),
        (["-B", "4"], r"Did you mean -b/--batch-size\?"),
        (["--num_iterations", "4"], r"llm.c's --num_iterations is -n/-x/--steps here"),
        (["--input_bin=a.bin"], r"llm.c's --input_bin is -i/--train-data here"),
        (["--frobnicate"], r"--frobnicate is not a flag\. --help lists all flags"),
        (["-qq", "1"], r"-qq is not a flag"),
        (["--"], r"-- is not a flag"),
        (["train.bin"], r"'train.bin' belongs to no flag"),
        (["-i", "a_1.bin", "a_2.bin"], r"'a_2.bin' belongs to no flag.*quotes.*-i '\.\.\.'"),
        (["--debug", "1"], r"'1' belongs to no flag: --debug takes no value"),
        (["--debug=1"], "ignored explicit argument"),
        (["-b", "four"], "invalid int value: 'four'"),
        (["-b", "--debug"], "expected one argument"),
        (["-e", "-o", "run"], "expected one argument"),
    ],
)
def test_what_is_no_flag_or_no_value_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_command_line(words)


def test_of_a_flag_that_comes_twice_the_last_counts_and_it_is_said() -> None:
    line = read_command_line(["-b", "4", "-l", "1e-3", "--batch-size", "8", "-l", "1e-3"])
    assert line.given == {"batch_size": 8, "learning_rate": 1e-3}
    assert line.notes == ("-b/--batch-size was given more than once (4, 8): the last one counts.",)


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["-h", "-b", "4"], ["-b", "--help"]])
def test_help_is_printed_and_nothing_else_happens(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        read_command_line(words)
    assert end.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "--learning-rate" in out
    assert "llm.c's command lines work" in out
