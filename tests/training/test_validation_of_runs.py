"""The rows of a validation belong to the run: the same ones for any batch and after any resume."""

import json
from pathlib import Path

import pytest
from support.small_runs import metrics, write_files

from cupygpt.data.token_writer import write_shard
from cupygpt.train import main


def losses_at(run: Path, step: int) -> list[float]:
    return [event["loss"] for event in metrics(run, "val") if event["step"] == step]


@pytest.mark.parametrize("rows", [["-m", "3"], []], ids=["-m 3", "without -m"])
@pytest.mark.parametrize("is_old", [False, True], ids=["this version", "an older one"])
def test_a_resume_with_another_batch_validates_on_the_same_rows(
    tmp_path: Path, rows: list[str], is_old: bool
) -> None:
    """An older run counted batches of its first -b rows; its record does not name the rows."""
    run = tmp_path / "run"
    flags = [*write_files(tmp_path), "-b", "2", "-v", "5", "-n", "5", *rows, "--no-bar"]
    assert main([*flags, "-k", "constant", "-o", str(run)]) == 0
    (before,) = losses_at(run, 5)
    record = json.loads((run / "run.json").read_text())
    assert record["validation"]["rows"] == (6 if rows else 24)
    if is_old and rows:
        kept = ("config", "model", "data", "precision", "ranks", "tokens_per_step", "environment")
        (run / "run.json").write_text(json.dumps({name: record[name] for name in kept}))
    assert main(["--resume", str(run), "-b", "8", "--extend", "5", "--no-bar"]) == 0
    (after,) = losses_at(run, 5)
    assert after == pytest.approx(before, abs=1e-6)


def test_bits_per_byte_are_those_of_the_rows_that_were_validated(tmp_path: Path) -> None:
    """The first rows are end-of-text, which has no bytes; with -m 1 only they are read."""
    write_shard(tmp_path / "train.bin", [97, 98] * 400)
    write_shard(tmp_path / "val.bin", [256] * 17 + [97, 98] * 200)
    data = ["-i", str(tmp_path / "train.bin"), "-j", str(tmp_path / "val.bin")]
    shape = ["-e", "L1:H1:C8", "--tokenizer", "bytes", "-b", "2", "-t", "8", "-n", "1", "-s", "0"]
    common = [*data, *shape, "--device", "cpu", "--no-bar"]
    assert main([*common, "-m", "1", "-o", str(tmp_path / "first")]) == 0
    assert all("bits_per_byte" not in event for event in metrics(tmp_path / "first", "val"))
    assert main([*common, "-m", "-1", "-o", str(tmp_path / "all")]) == 0
    events = metrics(tmp_path / "all", "val")
    # 50 rows of 8 targets, 16 of which are end of text.
    share = (417 - 1) // 8 * 8 / ((417 - 1) // 8 * 8 - 16)
    for event in events:
        assert event["bits_per_byte"] == pytest.approx(event["loss"] / 0.6931472 * share, rel=1e-5)
