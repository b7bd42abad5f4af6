"""What a name stands for, and the words where it stands for nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange.exchanged_models import random_weights
from exchange.hugging_face_files import TINY, write_folder
from support.data_files import write_ranks

from cupygpt.checkpoint.checkpoint import load_model
from cupygpt.checkpoint.model_file import save_model
from cupygpt.data.tokenizer import load_tokenizer
from cupygpt.errors import CheckpointError
from cupygpt.exchange.hf_tokenizer_files import tokenizer_files
from cupygpt.exchange.note import ModelNote, note_path, read_note, write_note
from cupygpt.exchange.source import Kind, find_weights, load_weights, names_weights

OLD_RUN = Path(__file__).parents[1] / "golden" / "runs" / "cf012fa"
"""Checkpoints at the steps 6 and 12; bytes, rows of 16 of the model's 32 positions."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD_RUN, tmp_path / "run"))


@pytest.mark.parametrize(
    ("which", "step"), [("", 12), ("@newest", 12), ("@6", 6), ("@12", 12), ("@00000006", 6)]
)
def test_a_run_has_several_checkpoints(run: Path, which: str, step: int) -> None:
    source = find_weights(f"{run}{which}")
    assert (source.kind, source.step, source.is_trained) == (Kind.RUN, step, True)
    assert source.path == run / f"model_{step:08d}.bin"
    assert (source.tokenizer, source.trained_length) == ("bytes", 16)
    assert f"step {step}" in source.origin
    loaded = load_weights(source)
    assert np.array_equal(loaded.parameters, load_model(source.path).parameters)


def test_the_best_checkpoint_need_not_be_the_newest(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cupygpt.exchange.source.best_step", lambda folder: 6)
    assert find_weights(str(run)).step == 6
    assert find_weights(f"{run}@newest").step == 12


def test_a_checkpoint_that_a_running_run_removes_meanwhile_is_one_message(run: Path) -> None:
    source = find_weights(f"{run}@6")
    for path in run.glob("*_00000006*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"step 6 was removed meanwhile.* Try again\."):
        load_weights(source)


def test_a_checkpoint_without_its_model_is_named_with_the_others(run: Path) -> None:
    (run / "model_00000012.bin").unlink()
    source = find_weights(str(run))
    with pytest.raises(CheckpointError, match=r"model_00000012\.bin: missing.*run@6\."):
        load_weights(source)


@pytest.mark.parametrize("which", ["7", "-6", "new", "", "6.0", "²"])
def test_a_step_that_is_not_kept_is_named_with_those_that_are(run: Path, which: str) -> None:
    with pytest.raises(CheckpointError, match=r"no such checkpoint.*newest, or one .*: 6, 12\."):
        find_weights(f"{run}@{which}")


def test_a_run_of_llmc_has_no_record(run: Path) -> None:
    for name in ("run.json", "metrics.jsonl"):
        (run / name).unlink()
    source = find_weights(str(run))
    assert (source.kind, source.step, source.tokenizer) == (Kind.RUN, 12, None)
    assert source.is_trained


def test_a_folder_may_have_an_at_in_its_name(run: Path) -> None:
    other = run.rename(run.with_name("me@home"))
    assert find_weights(str(other)).step == 12
    assert find_weights(f"{other}@6").step == 6


def test_a_model_file_of_a_run_knows_its_tokenizer_but_does_not_fine_tune(run: Path) -> None:
    source = find_weights(str(run / "model_00000006.bin"))
    assert (source.kind, source.is_trained) == (Kind.MODEL_FILE, False)
    assert (source.tokenizer, source.trained_length) == ("bytes", 16)


def test_weights_can_be_used_where_the_record_is_damaged(run: Path) -> None:
    (run / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"damaged.*name one of the model files"):
        find_weights(str(run))
    source = find_weights(str(run / "model_00000012.bin"))
    assert (source.is_trained, source.tokenizer) == (False, None)
    assert "is not known: " in source.notes[0]
    assert load_weights(source).config.V == 257


def test_a_model_file_alone_is_what_it_was(tmp_path: Path) -> None:
    save_model(tmp_path / "a.bin", TINY, random_weights(TINY), "fp32")
    source = find_weights(str(tmp_path / "a.bin"))
    assert (source.kind, source.is_trained, source.tokenizer) == (Kind.MODEL_FILE, False, None)


def test_a_run_keeps_its_own_tokenizer(run: Path) -> None:
    write_ranks(run / "run.tokenizer")
    assert find_weights(str(run)).tokenizer == str(run / "run.tokenizer")


# ---- Hugging Face folders -------------------------------------------------------------


def add_tokenizer(folder: Path, spec: str, *names: str) -> None:
    files = tokenizer_files(load_tokenizer(spec).vocabulary(), 8)
    for name in names or files:
        (folder / name).write_text(files[name], encoding="utf-8", newline="")


def test_a_hugging_face_folder_brings_its_tokenizer(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", random_weights(TINY))
    assert find_weights(str(folder)).tokenizer is None
    add_tokenizer(folder, "bytes")
    source = find_weights(str(folder))
    assert (source.kind, source.tokenizer, source.notes) == (Kind.HUGGING_FACE, "bytes", ())
    assert source.is_trained
    assert load_weights(source).parameters.tobytes() == random_weights(TINY).tobytes()


def test_its_own_vocabulary_is_named_by_its_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", random_weights(TINY))
    own = str(write_ranks(tmp_path / "own.tiktoken", [b"th"]))
    add_tokenizer(folder, own, "tokenizer.json")
    source = find_weights(str(folder))
    assert source.tokenizer == str(folder / "tokenizer.json")
    assert load_tokenizer(source.tokenizer).sha256 == load_tokenizer(own).sha256


def test_a_tokenizer_that_cannot_be_used_is_noted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf", random_weights(TINY))
    own = str(write_ranks(tmp_path / "own.tiktoken", [b"th"]))
    add_tokenizer(folder, own, "vocab.json", "merges.txt")
    source = find_weights(str(folder))
    assert source.tokenizer is None
    assert source.vocabulary is not None
    assert "once the model is converted" in source.notes[0]
    (folder / "tokenizer.json").write_text('{"model": {"type": "Unigram", "vocab": {}}}')
    source = find_weights(str(folder))
    assert (source.tokenizer, source.vocabulary) == (None, None)
    assert "the tokenizer of this model is not used" in source.notes[0]


# ---- notes ----------------------------------------------------------------------------


def noted(folder: Path, note: ModelNote) -> Path:
    path = folder / "a.bin"
    write_note(path, note, save_model(path, TINY, random_weights(TINY), "fp32"))
    return path


def test_a_note_makes_a_model_file_a_trained_one(tmp_path: Path) -> None:
    path = noted(tmp_path, ModelNote("run x", "bytes", [256], 5))
    source = find_weights(str(path))
    assert source.is_trained
    assert (source.tokenizer, source.text_start, source.trained_length) == ("bytes", [256], 5)
    assert "a copy of run x" in source.origin


def test_a_note_names_its_tokenizer_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    path = noted(tmp_path / "one", ModelNote("run x", "elsewhere/a.tokenizer"))
    moved = tmp_path / "two"
    path.parent.rename(moved)
    assert find_weights(str(moved / "a.bin")).tokenizer == str(moved / "a.tokenizer")


def test_a_note_of_another_content_is_refused(tmp_path: Path) -> None:
    path = noted(tmp_path, ModelNote("run x"))
    save_model(path, TINY, random_weights(TINY, seed=2), "fp32")
    with pytest.raises(CheckpointError, match=r"belongs to another content .* delete a.bin.json"):
        find_weights(str(path))
    note_path(path).unlink()
    assert not find_weights(str(path)).is_trained


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 2), ("model", None), ("model", {}), ("origin", 3), ("tokenizer", 3),
        ("tokenizer", {}), ("tokenizer", {"file": "../x"}), ("text_start", [-1]),
        ("text_start", 3), ("trained_length", 0), ("trained_length", True),
    ],
)  # fmt: skip
def test_a_damaged_note_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    path = noted(tmp_path, ModelNote("run x", "bytes", [256], 5))
    values = json.loads(note_path(path).read_text())
    note_path(path).write_text(json.dumps({**values, key: value}))
    with pytest.raises(CheckpointError, match=r"Convert the model again, or delete"):
        find_weights(str(path))


def test_somebody_elses_json_is_no_note(tmp_path: Path) -> None:
    path = noted(tmp_path, ModelNote("run x"))
    note_path(path).write_text('{"mine": 1}')
    assert read_note(path) is None


# ---- names ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "is_weights"),
    [
        ("d12", False),
        ("small", False),
        ("gpt3:c768", False),
        ("L6:H6:C384", False),
        ("nonsense", False),
        ("missing.bin", True),
        ("./d12", True),
        ("runs/x", True),
        ("x@newest", True),
        ("x.gguf", True),
        ("hf", True),
    ],
)
def test_a_descriptor_is_told_from_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_weights: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf").mkdir()
    (tmp_path / "d12").mkdir()
    assert names_weights(name) is is_weights


def test_what_cannot_be_read_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(100))
    (tmp_path / "a.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    (tmp_path / "b.bin").write_bytes(b"\x80\x02}q" + bytes(2000))
    (tmp_path / "a.safetensors").write_bytes(bytes(100))
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{}")
    (tmp_path / "torn").mkdir()
    save_model(tmp_path / "torn" / "model_00000005.bin", TINY, random_weights(TINY), "fp32")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    for name, message in {
        "a.gguf": "They are written, not read",
        "a.pt": "this is a pickle of PyTorch.*save_pretrained",
        "b.bin": "this is a pickle of PyTorch.*save_pretrained",
        "a.safetensors": "Name their folder",
        "b.bin@newest": "@ chooses a checkpoint of a run folder",
        "empty": "holds no model. Name a model file",
        "empty@newest": "the folder holds none",
        "broken": "ended before its first checkpoint",
        "torn": "no complete checkpoint .* but model files that can be named",
        "old": "a pickle, but no config.json",
        "openai-community/gpt2": "hf download NAME --local-dir FOLDER",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            find_weights(str(tmp_path / name))
