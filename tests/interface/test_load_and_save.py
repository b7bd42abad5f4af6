"""What load reads, and what save writes: as the commands do."""

from pathlib import Path
from typing import Any

import pytest
from interface.loaded import TINY, tiny_file, tiny_weights
from support.small_runs import TINY as OTHER
from support.small_runs import write_files

import cupygpt
from cupygpt.checkpoint.checkpoint import load_model
from cupygpt.convert import main as convert
from cupygpt.train import main as train


@pytest.mark.parametrize(("target", "kind"), [("b.bin", "file"), ("b.gguf", "file"), ("b", "dir")])
def test_save_writes_what_convert_writes(tmp_path: Path, target: str, kind: str) -> None:
    path = tiny_file(tmp_path)
    files = cupygpt.load(path, device="cpu").save(tmp_path / target)
    assert all(file.is_file() for file in files)
    (tmp_path / "other").mkdir()
    assert convert([str(path), str(tmp_path / "other" / target)]) == 0
    for file in files:
        same = tmp_path / "other" / file.relative_to(tmp_path)
        assert file.read_bytes() == same.read_bytes(), file
    assert (tmp_path / target).is_dir() == (kind == "dir")


def test_all_sources_give_the_same_text(tmp_path: Path) -> None:
    path = tiny_file(tmp_path)
    model = cupygpt.load(path, device="cpu")
    text = model.generate("ab", tokens=20)
    model.save(tmp_path / "folder")
    again = cupygpt.load(tmp_path / "folder", device="cpu")
    assert again.generate("ab", tokens=20) == text
    again.save(tmp_path / "back.bin")
    assert load_model(tmp_path / "back.bin").parameters.tobytes() == tiny_weights().tobytes()


def test_checkpoints_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "runs" / "a"
    assert train([*write_files(tmp_path), "-o", str(run), "-n", "10"]) == 0
    monkeypatch.chdir(tmp_path)
    newest = cupygpt.load(f"{run}@newest", device="cpu")
    ids = [1, 2, 3]
    assert (cupygpt.load(f"{run}@10", device="cpu").logits(ids) == newest.logits(ids)).all()
    assert (cupygpt.load(f"{run}@5", device="cpu").logits(ids) != newest.logits(ids)).any()
    assert newest.window == 8
    assert newest.config == OTHER
    assert "step 10 (newest)" in repr(newest)
    assert cupygpt.load(device="cpu").config == OTHER  # the newest run below runs/
    with pytest.raises(cupygpt.TokenizerError, match="no tokenizer is known for a vocabulary"):
        newest.generate("a")


def test_a_model_lives_on_without_its_file(tmp_path: Path) -> None:
    path = tiny_file(tmp_path)
    model = cupygpt.load(path, device="cpu")
    path.unlink()
    model.save(tmp_path / "copy.bin")
    assert load_model(tmp_path / "copy.bin").parameters.tobytes() == tiny_weights().tobytes()


def test_a_precision_is_that_of_the_file_or_asked_for(tmp_path: Path) -> None:
    model = cupygpt.load(tiny_file(tmp_path), device="cpu")
    model.save(tmp_path / "half.bin", precision="bf16")
    assert load_model(tmp_path / "half.bin").precision == "bf16"
    half = cupygpt.load(tmp_path / "half.bin", device="cpu")  # in fp32: the CPU has no bfloat16
    assert (half.logits([1, 2]) == model.logits([1, 2])).all()
    half.save(tmp_path / "again.bin")
    assert load_model(tmp_path / "again.bin").precision == "bf16"


def test_warnings_of_a_file_are_notes_of_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_file(tmp_path)
    data = bytearray(path.read_bytes())
    offset = 1024 + 4 * TINY.V * TINY.C  # the first padding row of wte
    data[offset : offset + 4] = b"\x00\x00\x80\x3f"
    path.write_bytes(data)
    model = cupygpt.load(path, device="cpu")
    assert len(model.notes) == 1
    assert "padding rows" in model.notes[0]
    model.save(tmp_path / "folder")
    assert "tokenizer bytes is assumed" in model.notes[1]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((5,), "ConfigError", "the path of a model must be a path, not int"),
        ((b"a.bin",), "ConfigError", "must be a path, not bytes"),
        (("nothing.bin",), "CheckpointError", "no such model.*hf download NAME --local-dir FOLDER"),
        (("tiny42.bin", "gpu"), "DeviceError", "device gpu: not a device"),
        (("tiny42.bin", 0), "ConfigError", r"device must be text \(str\), not int"),
        (("tiny42.bin", "cpu", "fp8"), "ConfigError", "must be one of fp32, tf32, bf16, or None"),
        (("tiny42.bin", "cpu", "bf16"), "ConfigError", "precision bf16 needs a GPU"),
    ],
)
def test_what_load_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, error: str, message: str
) -> None:
    tiny_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(getattr(cupygpt, error), match=message):
        cupygpt.load(*arguments)


def test_a_tokenizer_that_does_not_fit_is_refused_at_once(tmp_path: Path) -> None:
    write_files(tmp_path)  # a model with 65 ids
    with pytest.raises(cupygpt.TokenizerError, match="has 257 ids, but the model"):
        cupygpt.load(tmp_path / "tiny.bin", "cpu", tokenizer="bytes")


def test_what_save_refuses(tmp_path: Path) -> None:
    path = tiny_file(tmp_path)
    model = cupygpt.load(path, device="cpu")
    model.save(tmp_path / "b.bin")
    with pytest.raises(cupygpt.ConfigError, match="replace it with overwrite=True"):
        model.save(tmp_path / "b.bin")
    model.save(tmp_path / "b.bin", overwrite=True)
    with pytest.raises(cupygpt.ConfigError, match="the model comes from there"):
        model.save(path, overwrite=True)
    with pytest.raises(cupygpt.ConfigError, match="the path must be a path, not int"):
        model.save(5)  # type: ignore[arg-type]
