"""Run folders of earlier versions are read, resumed and sampled by this one.

tests/golden/runs/VERSION/ is a run as that version wrote it, with checkpoints at half its steps and
at the end, the log, the metrics and the token files. Such a folder is never changed, and each
version that changes a file format adds one, made by the command in the newest run.json.
"""

import re
import shutil
from pathlib import Path

import numpy as np
import plot_log
import pytest
from support.small_runs import main_log, metrics

from cupygpt import sample, train
from cupygpt.checkpoint.checkpoint import checkpoint_steps, load_checkpoint
from cupygpt.checkpoint.model_file import save_model
from cupygpt.config import GPTConfig
from cupygpt.data.row_order import LISTED
from cupygpt.model.init_weights import initial_parameters
from cupygpt.run_folder.record import read_record

RUNS = Path(__file__).parents[1] / "golden" / "runs"
VERSIONS = sorted(path.name for path in RUNS.iterdir() if path.is_dir())


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(version: str, tmp_path: Path) -> Path:
    """A copy of the folder, which a test may change."""
    return Path(shutil.copytree(RUNS / version, tmp_path / "run"))


def test_there_are_old_runs() -> None:
    assert "cf012fa" in VERSIONS


def test_every_checkpoint_and_the_record_load(run: Path) -> None:
    record = read_record(run)
    config = record["config"]
    rows_per_step = record["tokens_per_step"] // config["seq_len"]
    val_losses = {event["step"]: event["loss"] for event in metrics(run, "val")}
    steps = checkpoint_steps(run)
    assert len(steps) > 1
    assert steps[-1] == config["steps"]
    for step in steps:
        checkpoint = load_checkpoint(run, step)
        assert vars(checkpoint.config) == record["model"]
        state = checkpoint.state
        assert (state.progress.step, state.progress.seed) == (step, config["seed"])
        assert state.progress.best_step == step  # the validation loss falls all the time
        assert state.progress.best_loss == val_losses[step]
        assert state.progress.position is not None
        assert state.progress.position.rows == step * rows_per_step
        P = checkpoint.config.num_parameters
        for array in (state.params, state.m, state.v):
            assert array.shape == (P,)
            assert np.isfinite(array).all()
            assert array.any()


def remove_newest_checkpoint(run: Path) -> None:
    newest = checkpoint_steps(run)[-1]
    for path in run.glob(f"*_{newest:08d}*"):
        path.unlink()


def test_a_resumed_run_continues_as_the_old_version_did(run: Path, version: str) -> None:
    remove_newest_checkpoint(run)
    old_steps, old_log = checkpoint_steps(RUNS / version), main_log(run)
    assert checkpoint_steps(run) == old_steps[:-1]
    files = ["-i", str(run / "text_train.bin"), "-j", str(run / "text_val.bin")]
    assert train.main(["--resume", str(run), *files]) == 0
    assert checkpoint_steps(run) == old_steps
    assert_close(main_log(run), old_log)


def assert_close(log: list[str], old_log: list[str]) -> None:
    """Losses and gradient norms within 1.5 of the last digit, at the same steps and learning rates.

    Another processor, NumPy or BLAS adds in another order, which may change the last digit by one.
    That equal machines give equal bits is what the tests of resume show.
    """
    assert len(log) == len(old_log)
    for line, old_line in zip(log, old_log, strict=True):
        now, then = fields(line), fields(old_line)
        assert now.keys() == then.keys(), (line, old_line)
        for name, value in then.items():
            limit = {"trl": 1.5e-4, "tel": 1.5e-4, "norm": 0.015}.get(name, 0.0)
            assert abs(now[name] - value) <= limit, (line, old_line)


def fields(line: str) -> dict[str, float]:
    """A line of main.log, such as `s:6 trl:4.4164 lr:0.006891 norm:1.22`."""
    return {name: float(value) for name, value in re.findall(r"(\w+):(\S+)", line)}


def test_a_changed_loss_is_noticed_on_any_machine(version: str) -> None:
    log = main_log(RUNS / version)
    assert_close(log, log)
    last = log[-1]
    loss = fields(last)["tel"]
    for changed in (last.replace(f"{loss:.4f}", f"{loss + 0.0002:.4f}"), "s:13" + last[4:]):
        assert changed != last
        with pytest.raises(AssertionError):
            assert_close([*log[:-1], changed], log)


def test_an_old_run_is_sampled(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = []
    for _ in range(2):
        assert sample.main([str(run), "--device", "cpu", "--tokens", "24", "--prompt", "The "]) == 0
        out, err = capfd.readouterr()
        assert f"model_{checkpoint_steps(run)[-1]:08d}.bin" in err
        assert "24 tokens in" in err
        texts.append(out)
    assert texts[0] == texts[1]
    assert texts[0].startswith("The ")
    assert len(texts[0]) > len("The \n") + 8  # 24 bytes, of which several may make one character


def test_the_log_and_the_metrics_of_an_old_run_are_read(run: Path) -> None:
    record = read_record(run)
    steps, val_every = record["config"]["steps"], record["config"]["val_every"]
    curves = plot_log.read_log(run)
    assert [step for step, _ in curves.train] == list(range(steps))
    assert [step for step, _ in curves.val] == list(range(0, steps + 1, val_every))
    losses = [fields(line)["trl"] for line in main_log(run) if "trl" in line]
    events = metrics(run, "train")
    assert [event["step"] for event in events] == list(range(steps))
    assert [round(event["loss"], 4) for event in events] == losses
    assert all(event["ms"] > 0 and event["norm"] > 0 for event in events)
    assert [event["loss"] for event in metrics(run, "val")] == pytest.approx(
        [loss for _, loss in curves.val], abs=5e-5
    )
    every = record["config"]["sample_every"]
    sampled = metrics(run, "sample")
    assert [event["step"] for event in sampled] == [every, 2 * every]
    assert all(isinstance(event["text"], str) and event["text"] for event in sampled)


COMMAND = (
    "--device cpu -e tiny.bin -i text_train.bin -j text_val.bin --tokenizer bytes -b 4 -t 16 "
    "-l 1e-2 -u 2 -q 0.1 -c 0.1 --dropout 0.1 -v 6 -m 4 -s 6 -g 24 --checkpoint-every 6 --keep 0 "
    "-n 12 -o run"
)
"""The command of 283337a/run.json, and of those after it."""


@pytest.mark.parametrize("version", ["283337a", "cfc5a24"])
def test_the_same_command_gives_the_same_run(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a plain model file, in the order of rows of then: the log, and the weights."""
    monkeypatch.chdir(tmp_path)
    old = RUNS / version
    record = read_record(old)
    monkeypatch.setattr("cupygpt.planning.plan.COMPUTED", record.get("row_order", LISTED))
    assert record["environment"]["command"].endswith(COMMAND)
    for part in ("train", "val"):
        shutil.copy(old / f"text_{part}.bin", tmp_path)
    tiny = GPTConfig(**record["model"])
    save_model(tmp_path / "tiny.bin", tiny, initial_parameters(tiny, 42), "fp32")
    assert train.main(COMMAND.split()) == 0
    assert_close(main_log(tmp_path / "run"), main_log(old))
    now, then = (load_checkpoint(run, 12).state.params for run in (tmp_path / "run", old))
    np.testing.assert_allclose(now, then, atol=1e-4)
