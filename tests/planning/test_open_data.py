"""A run takes its tokenizer from its data, refuses a contradiction, and doubts what looks wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.data_files import write_ranks

from cupygpt import prepare
from cupygpt.config import GPTConfig
from cupygpt.data import token_files
from cupygpt.data.token_files import fingerprint, open_shards, record_path
from cupygpt.data.token_record import read_token_record
from cupygpt.data.token_writer import write_shard
from cupygpt.data.tokenizer import ByteTokenizer
from cupygpt.distributed.rank_device import choose_rank_device
from cupygpt.distributed.ranks import OneRank
from cupygpt.errors import DataError, TokenizerError
from cupygpt.flags.config import TrainConfig
from cupygpt.model.memory_plan import memory_plan
from cupygpt.planning import open_data
from cupygpt.planning.choose_model import ModelChoice, choose_model
from cupygpt.planning.open_data import Data, attach_tokenizer
from cupygpt.planning.plan import make_plan
from cupygpt.train import main

BYTES_MODEL = GPTConfig(maxT=16, V=257, L=1, NH=1, C=8)
GPT2_MODEL = GPTConfig(maxT=16, V=50257, L=1, NH=1, C=8)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("a.txt")
    path.write_text("The cat sat on the mat.\n" * 100)
    return path


def opened(**flags: Any) -> tuple[TrainConfig, Data]:
    config = TrainConfig(**{"train_data": "a_train.bin", "val_data": "a_val.bin", **flags})
    return config, open_data.open_data(config, Path(), new=True)


def model_for(config: TrainConfig, data: Data) -> GPTConfig:
    return choose_model(config, data, on_gpu=False, world=1).model


def without_records(text: Path) -> None:
    for part in ("train", "val"):
        record_path(Path(f"{text.stem}_{part}.bin")).unlink()


def test_the_tokenizer_comes_from_the_data(text: Path) -> None:
    assert prepare.main([str(text), "--tokenizer", "bytes"]) == 0
    config, data = opened(model="L1:H1:C8")
    model = model_for(config, data)
    assert model.V == 257
    attach_tokenizer(config, model, data)
    assert isinstance(data.tokenizer, ByteTokenizer)
    assert (data.notes, data.warnings) == ([], [])
    assert model_for(*opened()).V == 257


def test_a_tokenizer_from_a_file_comes_from_beside_the_data(text: Path) -> None:
    ranks = write_ranks(text.with_name("my.tiktoken"), [b"The", b"cat"])
    assert prepare.main([str(text), "--tokenizer", str(ranks), "-o", "data"]) == 0
    files = {"train_data": "data/a_train.bin", "val_data": "data/a_val.bin"}
    ranks.rename("other.tiktoken")
    config, data = opened(**files, tokenizer="other.tiktoken")
    model = model_for(config, data)
    assert model.V == 259
    attach_tokenizer(config, model, data)  # the content counts, not the name
    Path("data/a_tokenizer.tiktoken").rename("gone.tiktoken")
    config, data = opened(**files)
    attach_tokenizer(config, model, data)
    assert data.tokenizer is None
    assert "samples show ids: tokenizer data/a_tokenizer.tiktoken: could not" in data.notes[0]


def test_another_tokenizer_is_refused(text: Path) -> None:
    assert prepare.main([str(text), "--tokenizer", "bytes"]) == 0
    write_ranks(text.with_name("my.tiktoken"), [b"The"])
    config, data = opened(tokenizer="my.tiktoken")
    model = model_for(config, data)
    with pytest.raises(TokenizerError, match=r"a_train\.bin was made with the tokenizer bytes"):
        attach_tokenizer(config, model, data)


@pytest.mark.parametrize("tokenizer", [None, "bytes"])
def test_a_model_for_another_vocabulary_is_refused(text: Path, tokenizer: str | None) -> None:
    assert prepare.main([str(text), "--tokenizer", "bytes"]) == 0
    config, data = opened(tokenizer=tokenizer)
    with pytest.raises(TokenizerError, match=r"the data's tokenizer bytes has 257 ids, .* 50,257"):
        attach_tokenizer(config, GPT2_MODEL, data)


def test_a_run_on_bytes_needs_no_tokenizer_flag(
    text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare.main([str(text), "--tokenizer", "bytes"]) == 0
    command = capsys.readouterr().out.splitlines()[-1].split()
    assert command[-4:] == ["-i", "a_train.bin", "-j", "a_val.bin"]
    flags = ["-t", "8", "-n", "1", "-s", "0", "--device", "cpu", "-o", "run"]
    assert main([*command[3:], *flags]) == 0
    output = capsys.readouterr().out
    assert "vocabulary 257 " in output
    assert "bits/byte" in output


def test_files_without_a_record_work_as_before(text: Path) -> None:
    assert prepare.main([str(text), "--tokenizer", "bytes"]) == 0
    without_records(text)
    config, data = opened(tokenizer="bytes")
    model = model_for(config, data)
    assert model.V == 257
    attach_tokenizer(config, model, data)
    assert isinstance(data.tokenizer, ByteTokenizer)
    assert not data.warnings


def test_bytes_for_a_model_of_gpt2_are_noticed(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_data, "load_tokenizer", unavailable)
    assert prepare.main([str(text), "--tokenizer", "bytes"]) == 0
    without_records(text)
    config, data = opened()
    attach_tokenizer(config, GPT2_MODEL, data)
    assert len(data.warnings) == 1
    assert data.warnings[0].startswith("a_train.bin: all token ids are below 257")
    assert "is it bytes?" in data.warnings[0]


def unavailable(spec: str) -> None:
    raise TokenizerError(f"{spec} is not there")


@pytest.mark.parametrize(("largest", "warned"), [(4095, True), (50256, False)])
def test_ids_of_a_smaller_vocabulary_are_noticed(
    text: Path, monkeypatch: pytest.MonkeyPatch, largest: int, *, warned: bool
) -> None:
    monkeypatch.setattr(open_data, "load_tokenizer", unavailable)
    for name, count in (("a_train.bin", 100), ("a_val.bin", 50)):
        write_shard(Path(name), np.array([largest, *range(count)]))
    config, data = opened()
    attach_tokenizer(config, GPT2_MODEL, data)
    assert [f"the largest token id is {largest:,}" in text for text in data.warnings] == [
        True
    ] * warned


def test_what_is_trained_on_must_not_validate(text: Path) -> None:
    assert prepare.main([str(text), "--tokenizer", "bytes"]) == 0
    assert opened()[1].warnings == []
    for flags in ({"train_data": "a_*.bin"}, {"val_data": "a_train.bin"}):
        [warning] = opened(**flags)[1].warnings
        assert "the validation loss is too low" in warning
    val = "a_val.bin has the same tokens as a_val.bin"
    assert opened(train_data="a_*.bin")[1].warnings[0].startswith(val)
    without_records(text)
    assert opened(train_data="a_*.bin")[1].warnings[0].startswith(val)


def test_the_same_tokens_twice_are_noticed(text: Path) -> None:
    for name in "abc":
        assert prepare.main([str(text), "--tokenizer", "bytes", "--name", name]) == 0
    [warning] = opened(train_data="?_train.bin")[1].warnings
    assert warning == (
        "b_train.bin has the same tokens as a_train.bin (and 1 more): training sees these tokens "
        "more often than others"
    )


def test_the_same_text_with_other_parts_held_out_is_noticed(text: Path) -> None:
    for name, fraction in (("a", "0.05"), ("b", "0.2"), ("c", "0")):
        flags = ["--tokenizer", "bytes", "--name", name, "--val-fraction", fraction]
        assert prepare.main([str(text), *flags]) == 0
    for name in "bc":
        [warning] = opened(train_data=f"{name}_train.bin")[1].warnings
        assert warning.startswith(f"a_val.bin and {name}_train.bin come from the same text")


def test_a_listed_order_of_the_rows_is_part_of_the_memory_plan(tmp_path: Path) -> None:
    """Only runs that earlier versions have begun list their rows."""
    path = tmp_path / "many.bin"
    write_shard(path, np.zeros(600_001, int))
    flags = {"train_data": str(path), "device": "cpu", "seq_len": 2, "batch_size": 1, "steps": 1}
    for shuffled, record, listed in ((True, None, False), (True, {}, True), (False, {}, False)):
        config = TrainConfig(**flags, no_shuffle=not shuffled)
        data = open_data.open_data(config, tmp_path, new=True)
        chosen = ModelChoice(config, BYTES_MODEL, None, "a test")
        choice = choose_rank_device("cpu", OneRank())
        plan = make_plan(chosen, data, choice, OneRank(), record)
        assert plan.rows_per_epoch >= 299_999
        planned = memory_plan(plan.shape).get("row order")
        assert planned == (4 * plan.rows_per_epoch if listed else None)


def test_bytes_among_files_with_a_record_are_noticed(text: Path) -> None:
    write_ranks(Path("my.tiktoken"), [bytes([65 + i // 36, 65 + i % 36]) for i in range(1000)])
    assert prepare.main([str(text), "--tokenizer", "my.tiktoken", "--name", "b"]) == 0
    assert prepare.main([str(text), "--tokenizer", "bytes"]) == 0
    without_records(text)
    config, data = opened(train_data="b_train.bin")
    attach_tokenizer(config, model_for(config, data), data)
    [warning] = data.warnings
    assert "a_val.bin: all token ids are below 257, but the model has 1,257 ids" in warning


def test_a_new_demo_never_uses_the_tokens_of_an_earlier_one(text: Path) -> None:
    config = TrainConfig()
    first = open_data.open_data(config, Path(), new=True)
    before = fingerprint(first.train)
    ranks = write_ranks(text.with_name("my.tiktoken"), [b"the", b" the"])
    other = open_data.open_data(TrainConfig(tokenizer=str(ranks)), Path(), new=True)
    assert fingerprint(other.train) != before
    assert other.made_with
    assert other.made_with.tokenizer.vocab_size == 259
    again = open_data.open_data(config, Path(), new=True)
    assert fingerprint(again.train) == before
    assert model_for(config, again).V == 257


def test_a_resumed_demo_and_other_ranks_use_the_files_that_are_there(text: Path) -> None:
    open_data.open_data(TrainConfig(), Path(), new=True)
    path = Path("python_docs_val.bin")
    written = path.stat().st_mtime_ns
    data = open_data.open_data(TrainConfig(), Path(), new=False)
    attach_tokenizer(TrainConfig(), BYTES_MODEL, data)
    assert isinstance(data.tokenizer, ByteTokenizer)
    assert path.stat().st_mtime_ns == written
    for part in ("train", "val"):  # as runs of older versions left them
        record_path(Path(f"python_docs_{part}.bin")).unlink()
    data = open_data.open_data(TrainConfig(), Path(), new=False)
    assert isinstance(data.tokenizer, ByteTokenizer)
    assert fingerprint(open_shards(str(path))) == fingerprint(data.val)


def test_files_are_hashed_as_those_of_the_record_were(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of so many files that today only their ends are read was begun when all was."""
    assert prepare.main([str(text), "--tokenizer", "bytes"]) == 0
    before = opened()[1].files()
    assert before["train"][0]["hashed"] == "all"
    monkeypatch.setattr(token_files, "MOST_HASHED_BYTES", 1)
    _, data = opened()
    assert data.files()["train"][0]["hashed"] == "ends"
    assert data.files(before) == before
    for damaged in ({}, {"train": 1}, {"train": [{}]}, {"train": [{"hashed": "twice"}]}):
        assert data.files(damaged) == data.files()


def test_of_very_many_records_some_are_compared_with_the_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(4):
        Path(f"{i}.txt").write_text(f"{i} is a number.\n" * 50)
        assert prepare.main([f"{i}.txt", "--tokenizer", "bytes", "--val-fraction", "0"]) == 0
    shards = open_shards("*_train.bin")
    monkeypatch.setattr(token_files, "MOST_HASHED_BYTES", 2 * shards[0].num_bytes)
    assert read_token_record(shards)
    for i, noticed in enumerate([True, False, True, False]):
        path = Path(f"{i}_train.bin")
        content = path.read_bytes()
        path.write_bytes(content[:-2] + b"a\0")
        if noticed:
            with pytest.raises(DataError, match="the content is not"):
                read_token_record(open_shards("*_train.bin"))
        else:
            assert read_token_record(open_shards("*_train.bin"))
        path.write_bytes(content)
