"""The duration of a step is that on the device, whenever the loop gets to look at its result."""

from pathlib import Path

import pytest
from support.small_runs import metrics, still_time, write_files

from cupygpt.device.cpu import CPU
from cupygpt.device.device import PendingRead
from cupygpt.distributed.collectives import Collectives
from cupygpt.train import main
from cupygpt.training.trainer import Trainer


def test_steps_that_are_looked_at_late_take_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each takes 0.1 s, and a pause 5 s; the first result is looked at when four are queued."""
    still, compute, read_later, real_sum = (
        still_time(monkeypatch),
        Trainer._compute,
        CPU.read_later,
        Trainer.sum_losses,
    )

    def computes(trainer: Trainer, collectives: Collectives) -> None:
        compute(trainer, collectives)
        still.now += 0.1

    def reads(device: CPU, source: object) -> PendingRead:
        pending = read_later(device, source)
        monkeypatch.setattr(type(pending), "ready", lambda _: False)
        return pending

    def sums(trainer: Trainer, batches: object) -> object:
        still.now += 5.0
        return real_sum(trainer, batches)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_compute", computes)
    monkeypatch.setattr(Trainer, "sum_losses", sums)
    monkeypatch.setattr(CPU, "read_later", reads)
    run = tmp_path / "run"
    flags = ["-v", "6", "-n", "12", "-d", "64", "--log-every", "1", "-o", str(run)]
    assert main([*write_files(tmp_path), *flags]) == 0
    assert [event["ms"] for event in metrics(run, "train")] == [100.0] * 12
    assert capsys.readouterr().out.count(" | 100.00 ms | ") == 12
