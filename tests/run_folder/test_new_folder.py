"""A start that fails leaves nothing behind, and takes nothing away."""

from pathlib import Path

import pytest
from support.small_runs import TINY, main_log, write_files, write_tokens

from cupygpt.checkpoint.checkpoint import checkpoint_steps
from cupygpt.errors import ConfigError
from cupygpt.run_folder.new_folder import NewFolder
from cupygpt.train import main


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def too_short(tmp_path: Path) -> list[str]:
    write_tokens(tmp_path / "short.bin", 3, TINY.V)
    return ["-j", str(tmp_path / "short.bin")]


@pytest.mark.parametrize("wrong", [too_short, lambda _: ["-t", "17"], lambda _: ["-e", "none.bin"]])
def test_the_corrected_command_works_in_the_same_folder(
    tmp_path: Path, wrong: object, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "some" / "run"
    flags = [*write_files(tmp_path), "-n", "3", "-v", "2", "-o", str(run)]
    assert main([*flags, *wrong(tmp_path)]) == 2  # type: ignore[operator]
    assert not (tmp_path / "some").exists()
    assert main(flags) == 0, capsys.readouterr().err


def test_a_demo_that_fails_leaves_none_of_its_files(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    assert main(["--device", "cpu", "-n", "2", "-d", "50", "-o", str(run)]) == 2
    assert names(run) == ["notes.txt"]


def test_an_overwritten_run_stays_until_the_new_one_can_start(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = [*write_files(tmp_path), "-n", "5", "-v", "0", "-o", str(run)]
    assert main(flags) == 0
    before, log = names(run), main_log(run)
    assert main([*flags, "--overwrite", "-t", "17"]) == 2
    assert (names(run), main_log(run)) == (before, log)
    assert main([*flags, "--overwrite", "-n", "3"]) == 0
    assert checkpoint_steps(run) == [3]
    assert len(main_log(run)) == 3


def test_an_overwritten_demo_keeps_its_tokens_until_the_new_one_can_start(tmp_path: Path) -> None:
    """The demo writes its tokens into the run folder before all of its flags are checked."""
    old = {"python_docs_train.bin": b"old tokens", "products.json": b"{}", "main.log": b"old log"}
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)

    def start() -> None:
        made = ("python_docs_*", "products.json")
        with NewFolder(str(tmp_path), overwrite=True, made_at_start=made) as new:
            for name in ("python_docs_train.bin", "python_docs_val.bin"):
                (tmp_path / name).write_bytes(b"new tokens")
            if fails:
                raise ConfigError("a flag that cannot work")
            new.claim()

    fails = True
    with pytest.raises(ConfigError, match="cannot work"):
        start()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old
    fails = False
    start()
    assert names(tmp_path) == ["python_docs_train.bin", "python_docs_val.bin"]
    assert (tmp_path / "python_docs_train.bin").read_bytes() == b"new tokens"


def test_the_file_that_a_run_starts_from_stays(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = [*write_files(tmp_path), "-n", "5", "-v", "0", "-o", str(run)]
    assert main(flags) == 0
    start = run / "model_00000005.bin"
    content = start.read_bytes()
    assert main([*flags, "--overwrite", "-n", "3", "-e", str(start)]) == 0
    assert start.read_bytes() == content
    assert main(["--resume", str(run), "-n", "4"]) == 0  # where it belongs to no checkpoint
    assert start.read_bytes() == content


def test_what_a_killed_start_left_does_not_block_the_next(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{")
    (run / "main.log").write_text("s:0 tel:5.0000\n")
    (run / ".lock").write_text("")
    (run / "run.json.partial").write_text("")
    (run / "model_00000000.bin").write_bytes(b"somebody's weights")
    assert main([*write_files(tmp_path), "-n", "3", "-v", "0", "-o", str(run)]) == 0
    assert (run / "model_00000000.bin").read_bytes() == b"somebody's weights"
    assert not (run / "run.json.partial").exists()
    assert main_log(run)[0].startswith("s:0 trl:")


def test_a_run_that_ended_before_its_first_checkpoint_is_not_offered_for_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "main.log").write_text("s:0 trl:5.0000 lr:0.001000 norm:1.00\n")
    assert main([*write_files(tmp_path), "-n", "3", "-o", str(run)]) == 2
    err = capsys.readouterr().err
    assert "ended before its first checkpoint" in err
    assert "--overwrite" in err
    assert "--resume" not in err


def test_two_runs_of_one_second_get_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    with NewFolder(None, overwrite=False) as one, NewFolder(None, overwrite=False) as other:
        assert one.path != other.path
