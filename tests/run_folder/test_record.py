"""run.json: what is damaged, changed by hand or of another version is named, never believed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.small_runs import change_record, write_files

from cupygpt.train import main


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["config"].update(future_flag=1), "does not know: future_flag. It was written"),
        (
            lambda r: r["config"].update(steps="many"),
            "steps (-n/-x/--steps) is 'many', which",
        ),
        (lambda r: r["config"].update(batch_size=None), "batch_size (-b/--batch-size) is None"),
        (lambda r: r["config"].update(learning_rate=True), "is True, which is not a number"),
        (lambda r: r["config"].update(no_shuffle=0), "is 0, which is not true or false"),
        (lambda r: r["config"].update(schedule="square"), "is not one of cosine"),
        (lambda r: r["config"].update(train_data="a\0b"), "which is not a text"),
        (lambda r: r["config"].update(dropout=2.0), "--dropout is 2.0, but must be in [0, 1)"),
        (lambda r: r["config"].update(steps=10**30), "which is not a whole number"),
        (lambda r: r.update(model=[]), "'model' should be an object"),
        (lambda r: r.update(ranks="two"), "'ranks' should be a positive whole number"),
        (lambda r: r.update(environment=None), "'environment' should be an object"),
        (lambda r: r.update(precision="fp8"), "fp8"),
        (lambda r: r.update(row_order="sorted"), "the order of rows 'sorted', which this version"),
        (lambda r: r.update(row_order=1), "'row_order' should be a text"),
        (lambda r: r.pop("data"), "'data' is missing"),
        (lambda r: r["model"].update(new_part=1), "new_part: 1 in the run, None now"),
    ],
)
def test_a_damaged_record_gets_one_message(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], object],
    message: str,
) -> None:
    run = tmp_path / "run"
    assert main([*write_files(tmp_path), "-n", "5", "-v", "0", "-o", str(run)]) == 0
    change_record(run, change, keep_checksum=False)
    capsys.readouterr()
    assert main(["--resume", str(run), "-n", "9"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("error: ")


@pytest.mark.parametrize("text", ["", "[" * 100_000, "null", '{"config": NaN', "\udcff"])
def test_a_record_that_is_no_record_gets_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "DONE_00000001").touch()
    (run / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert main(["--resume", str(run)]) == 2
    assert "run.json: damaged" in capsys.readouterr().err


def test_a_changed_setting_within_its_range_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*write_files(tmp_path), "-n", "5", "-v", "0", "-o", str(run)]) == 0
    for change in (
        lambda record: record["config"].update(learning_rate=0.011),
        lambda record: record["config"].update(steps=6),
        lambda record: record["config"].pop("seed"),
    ):
        before = (run / "run.json").read_text()
        change_record(run, change)
        assert main(["--resume", str(run), "-n", "9"]) == 2
        err = capsys.readouterr().err
        assert "checksum" in err or "damaged ('seed' is missing)" in err
        (run / "run.json").write_text(before)
    change_record(run, lambda record: record["config"].update(keep=0))  # decides over no number
    assert main(["--resume", str(run), "-n", "9"]) == 0
    change_record(run, lambda record: record["config"].update(steps=10), keep_checksum=False)
    assert main(["--resume", str(run)]) == 0  # the way that the message names
