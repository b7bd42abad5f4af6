"""Reference curves: what known runs reached on known data."""

import json
import re
import runpy
from pathlib import Path

import pytest
from support.small_runs import TINY, write_files

from cupygpt.train import main
from cupygpt.training.reference import CURVES, ReferenceCurve, find_reference, hashes_of

TOOL = Path(__file__).parents[2] / "tools" / "make_reference.py"
DATA = {"train": [{"sha256": "t"}], "val": [{"sha256": "v"}]}


def write_curves(path: Path) -> Path:
    entry = {"data": {"train": ["t"], "val": ["v"]}, "curve": [[0, 5.0], [1000, 2.0], [2000, 1.5]]}
    small, large = {**entry, "name": "small", "parameters": 10**5}, {**entry, "name": "large"}
    path.write_text(json.dumps([small, {**large, "parameters": 10**7}]))
    return path


def test_a_curve_is_read_between_its_points() -> None:
    curve = ReferenceCurve("known", (0, 1000, 2000), (5.0, 2.0, 1.5))
    assert curve.at(500) == pytest.approx(3.5)
    assert curve.at(2000) == 1.5
    assert curve.at(2001) is None
    assert curve.best == 1.5


def test_the_curve_belongs_to_the_data_and_the_size(tmp_path: Path) -> None:
    curves = write_curves(tmp_path / "curves.json")
    for parameters, name in ((10**5, "small"), (3 * 10**5, "small"), (10**8, "large")):
        found = find_reference(DATA, parameters, curves)
        assert found is not None
        assert found.name == name
    assert find_reference({**DATA, "val": [{"sha256": "other"}]}, 10**5, curves) is None
    assert find_reference({**DATA, "val": []}, 10**5, curves) is None


def test_every_curve_of_the_package_is_whole() -> None:
    entries = json.loads(CURVES.read_text())
    assert len(entries) >= 2
    for entry in entries:
        tokens, losses = zip(*entry["curve"], strict=True)
        assert list(tokens) == sorted(set(tokens))
        assert len(tokens) >= 5
        assert min(losses) < losses[0]
        assert {"name", "command", "device", "parameters"} <= entry.keys()
        assert all(len(sha) == 64 for part in entry["data"].values() for sha in part)


def test_a_run_on_the_same_data_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The tool makes an entry of a first run; a second, equal one is 0.0000 from it."""
    flags = [*write_files(tmp_path), "-n", "20", "--no-bar"]
    assert main([*flags, "-o", str(tmp_path / "first")]) == 0
    capfd.readouterr()
    arguments = ["make_reference", str(tmp_path / "first"), "--name", "the first run"]
    monkeypatch.setattr("sys.argv", arguments)
    runpy.run_path(str(TOOL), run_name="__main__")
    curves = tmp_path / "curves.json"
    curves.write_text(f"[{capfd.readouterr().out}]")
    monkeypatch.setattr(find_reference, "__defaults__", (curves,))
    assert main([*flags, "-o", str(tmp_path / "second")]) == 0
    out = capfd.readouterr().out
    assert "by the first run; this run is +0.0000 from it" in out
    assert out.count("| reference ") == 5


def test_tokens_are_counted_as_they_came_when_a_resume_changes_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """10 steps of 4 rows, then 10 of 8: 960 tokens, where 20 steps of 8 would be 1,280."""
    run, curves = tmp_path / "run", tmp_path / "curves.json"
    assert main([*write_files(tmp_path), "-n", "10", "-o", str(run)]) == 0
    hashes = hashes_of(json.loads((run / "run.json").read_text())["data"])
    curve = {"name": "known", "parameters": 1, "data": hashes, "curve": [[0, 5.0], [960, 1.0]]}
    curves.write_text(json.dumps([curve]))
    monkeypatch.setattr(find_reference, "__defaults__", (curves,))
    capsys.readouterr()
    assert main(["--resume", str(run), "-n", "20", "-b", "8", "-d", "64"]) == 0
    out = capsys.readouterr().out
    assert "20 steps, 0.8 epochs" in out  # of 1,200 tokens
    assert re.findall(r"\| reference (\S+)", out) == ["3.6667", "2.3333", "1.0000"]
    assert f"{960 / TINY.num_parameters:.3g} tokens per parameter" in out
    monkeypatch.setattr("sys.argv", ["make_reference", str(run), "--name", "mixed"])
    with pytest.raises(SystemExit, match="another size since step 10"):
        runpy.run_path(str(TOOL), run_name="__main__")
