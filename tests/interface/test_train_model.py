"""Training as a function: its history, its events, and all that ends it."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.small_runs import main_log, write_files

import cupygpt
from cupygpt.train import main as train


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    write_files(tmp_path)
    return {
        "model": tmp_path / "tiny.bin",
        "train_data": tmp_path / "train.bin",
        "val_data": tmp_path / "val.bin",
        "device": "cpu",
        "batch_size": 4,
        "seq_len": 8,
        "learning_rate": 1e-2,
        "val_every": 5,
        "sample_every": 10,
        "steps": 20,
        "out": tmp_path / "run",
        "quiet": True,
    }


def flags_of(options: dict[str, Any], out: Path) -> list[str]:
    """The same run as a command."""
    given = {**options, "out": out}
    del given["quiet"]
    return [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]


def test_the_run_is_that_of_the_command(tmp_path: Path, options: dict[str, Any]) -> None:
    run = cupygpt.train_model(**options)
    assert train(flags_of(options, tmp_path / "command")) == 0
    assert main_log(run.folder) == main_log(tmp_path / "command")
    assert run.steps.tolist() == list(range(20))
    assert run.validation_steps.tolist() == [0, 5, 10, 15, 20]
    logged = [
        float(line.split("trl:")[1].split()[0]) for line in main_log(run.folder) if "trl" in line
    ]
    np.testing.assert_allclose(run.losses, logged, atol=1e-4)
    assert run.losses.dtype == run.validation_losses.dtype == np.float64
    assert [step for step, _ in run.samples] == [10, 20]
    assert run.stopped_by is None
    assert "20 steps, best validation loss" in repr(run)
    best = int(run.validation_steps[run.validation_losses.argmin()])
    ids = [1, 2, 3]
    wanted = cupygpt.load(f"{run.folder}@{best}", device="cpu").logits(ids)
    assert (run.load(device="cpu").logits(ids) == wanted).all()
    newest = run.load("newest", device="cpu").logits(ids)
    assert (run.load(20, device="cpu").logits(ids) == newest).all()
    again = cupygpt.TrainedRun(run.folder)
    np.testing.assert_array_equal(again.losses, run.losses)


def test_events_tell_what_the_history_holds(options: dict[str, Any]) -> None:
    events: list[cupygpt.Event] = []
    run = cupygpt.train_model(**options, on_event=events.append)
    steps = [event for event in events if event.kind == "step"]
    assert [event.step for event in steps] == run.steps.tolist()
    assert [event.loss for event in steps] == run.losses.tolist()
    assert all(event.lr and event.grad_norm and event.seconds for event in steps)
    validations = [(event.step, event.loss) for event in events if event.kind == "validation"]
    assert validations == list(zip(run.validation_steps, run.validation_losses, strict=True))
    samples = [(event.step, event.text) for event in events if event.kind == "sample"]
    assert samples == run.samples
    assert [event.step for event in events if event.kind == "checkpoint"][-1] == 20


def test_quiet_prints_nothing_and_else_plain_lines(
    options: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    cupygpt.train_model(**options)
    assert capfd.readouterr() == ("", "")
    cupygpt.train_model(**{**options, "quiet": False, "overwrite": True})
    printed, errors = capfd.readouterr()
    assert "validation loss" in printed
    assert "asked for with device cpu" in printed
    assert "\x1b" not in printed
    assert errors == ""


def test_a_cell_that_is_run_twice(options: dict[str, Any]) -> None:
    run = cupygpt.train_model(**options)
    with pytest.raises(cupygpt.ConfigError) as error:
        cupygpt.train_model(**options)
    assert f'Continue it with resume="{run.folder}"' in str(error.value)
    assert "overwrite=True" in str(error.value)
    again = cupygpt.train_model(**options, overwrite=True)
    np.testing.assert_array_equal(again.losses, run.losses)
    with pytest.raises(cupygpt.ConfigError, match="Train it longer with extend=N: N more steps"):
        cupygpt.train_model(resume=run.folder, quiet=True)
    with pytest.raises(cupygpt.ConfigError, match='resume="nothing": there is no such folder'):
        cupygpt.train_model(resume="nothing")
    longer = cupygpt.train_model(resume=run.folder, extend=5, quiet=True)
    assert longer.steps.tolist() == list(range(25))


def test_the_callback_can_stop_the_run(options: dict[str, Any]) -> None:
    whole = cupygpt.train_model(**{**options, "out": options["out"].with_name("whole")})

    def stop(event: cupygpt.Event) -> None:
        if event.kind == "step" and event.step == 7:
            raise KeyboardInterrupt

    run = cupygpt.train_model(**options, on_event=stop)
    assert run.stopped_by == "SIGINT"
    assert 8 <= len(run.steps) < 20
    run.load("newest", device="cpu")
    again = cupygpt.train_model(resume=run.folder, quiet=True)
    np.testing.assert_array_equal(again.losses, whole.losses)


def test_an_error_of_the_callback_is_raised_when_the_run_is_saved(options: dict[str, Any]) -> None:
    def fail(event: cupygpt.Event) -> None:
        if event.kind == "step" and event.step == 7:
            raise ZeroDivisionError("a figure without an axis")

    with pytest.raises(ZeroDivisionError, match="without an axis"):
        cupygpt.train_model(**options, on_event=fail)
    run = cupygpt.TrainedRun(options["out"])
    assert 8 <= len(run.steps) < 20
    run.load("newest", device="cpu")


def test_ctrl_c_saves_and_returns_the_run_so_far(
    options: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupt(event: cupygpt.Event) -> None:
        if event.kind == "step" and event.step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    run = cupygpt.train_model(**{**options, "quiet": False}, on_event=interrupt)
    assert run.stopped_by == "SIGINT"
    assert 8 <= len(run.steps) < 20
    run.load("newest", device="cpu")
    assert signal.getsignal(signal.SIGINT) is before
    assert "Ctrl-C: the run ends after this step" in capfd.readouterr().out


def test_a_second_ctrl_c_is_raised_at_once(options: dict[str, Any]) -> None:
    def interrupt(event: cupygpt.Event) -> None:
        if event.kind == "step" and event.step == 7:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        cupygpt.train_model(**options, on_event=interrupt)
    assert signal.getsignal(signal.SIGINT) is before


def test_two_runs_on_two_threads(options: dict[str, Any]) -> None:
    alone = cupygpt.train_model(**options)
    found: dict[str, cupygpt.TrainedRun] = {}

    def work(name: str) -> None:
        found[name] = cupygpt.train_model(**{**options, "out": options["out"].with_name(name)})

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for run in found.values():
        np.testing.assert_array_equal(run.losses, alone.losses)
    assert len(found) == 2


def test_a_run_that_cannot_start_leaves_nothing(options: dict[str, Any]) -> None:
    for change, error, message in (
        ({"lr": 1}, "ConfigError", "lr is no option. Did you mean learning_rate?"),
        ({"batch_size": 0}, "ConfigError", "batch_size is 0, but must be at least 1"),
        ({"minutes": 1}, "ConfigError", "steps and minutes set the length"),
        ({"train_data": "no.bin"}, "DataError", "no.bin: no such file"),
        ({"device": "gpu"}, "DeviceError", "device gpu: not a device"),
        ({"on_event": 5}, "ConfigError", "on_event must be a function, not int"),
        ({"seq_len": 17}, "ConfigError", "seq_len is 17"),
    ):
        with pytest.raises(getattr(cupygpt, error), match=message):
            cupygpt.train_model(**(options | change))
    assert not options["out"].exists()
    with pytest.raises(cupygpt.CheckpointError, match="Name the folder of a run"):
        _ = cupygpt.TrainedRun("nothing").losses


def test_a_rank_of_several_is_refused(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(cupygpt.ConfigError, match=r"rank 1 of 2.*cupygpt\.train --gpus"):
        cupygpt.train_model(**options)
