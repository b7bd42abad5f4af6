"""The command: what it reads, what it prints, and what it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation.models import oracle_nats, write_model
from evaluation.question_files import llmc_file, write_jsonl
from support.small_runs import TINY, command, metrics, write_files, write_tokens

from cupygpt.checkpoint.model_file import save_model
from cupygpt.data.token_writer import write_shard
from cupygpt.evaluate import main
from cupygpt.model.init_weights import initial_parameters
from cupygpt.prepare import main as prepare
from cupygpt.train import main as train

TEXT = "To be, or not to be, that is the question: é.\n" * 5


def results(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """What `--json` prints for these words, on the CPU."""
    capsys.readouterr()
    assert main([*map(str, words), "--json", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_text_has_the_loss_of_the_network_in_float64(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It begins after an end of text; windows of all 64 positions that do not overlap."""
    model, path = write_model(tmp_path / "m.bin"), tmp_path / "a.txt"
    path.write_text(TEXT, encoding="utf-8")
    ids = np.array([256, *TEXT.encode()])
    nats = [oracle_nats(ids[i : i + 65]) for i in range(0, len(ids) - 1, 64)]
    wanted, count = math.fsum(np.concatenate(nats)), len(TEXT.encode())
    found = results(capsys, model, path)
    (text,) = found["texts"]
    assert text == found["all_texts"] | {"file": str(path)}
    assert (text["tokens"], text["bytes"], found["window"]) == (count, count, 64)
    assert text["loss"] == pytest.approx(wanted / count, rel=1e-5)
    assert text["perplexity"] == pytest.approx(math.exp(wanted / count), rel=1e-4)
    assert text["bits_per_byte"] == pytest.approx(wanted / count / math.log(2), rel=1e-5)
    overlapping = results(capsys, model, "--stride", "8", path, "--window", "32")
    assert overlapping["texts"][0]["tokens"] == count
    assert overlapping["texts"][0]["loss"] != text["loss"]


def test_token_files_of_prepare_have_the_loss_of_their_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_model(tmp_path / "m.bin")
    Path("a.txt").write_text(f"{TEXT}<|endoftext|>\nand more", encoding="utf-8")
    words = ["a.txt", "--tokenizer", "bytes", "--val-fraction", "0", "--split-at-endoftext"]
    assert prepare(words) == 0
    (made,) = tmp_path.glob("a*.bin")
    of_tokens = results(capsys, model, made.name, "--by-document")
    of_text = results(capsys, model, "a.txt", "--split-at-endoftext", "--by-document")
    assert of_tokens["all_texts"] == of_text["all_texts"]
    assert [one["first_token"] for one in of_text["by_document"]] == [1, len(TEXT.encode()) + 2]
    assert [one["bytes"] for one in of_text["by_document"]] == [len(TEXT.encode()), 8]
    assert [one["loss"] for one in of_text["by_document"]] == [
        one["loss"] for one in of_tokens["by_document"]
    ]


def test_a_run_is_evaluated_on_its_whole_validation_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the length that was trained; its best weights. 192 targets are whole rows of 8."""
    run = tmp_path / "run"
    flags = [*write_files(tmp_path), "-n", "10", "-m", "-1", "-o", str(run)]
    write_tokens(tmp_path / "val.bin", 193, TINY.V, seed=1)
    assert train(flags) == 0
    best = min(event["loss"] for event in metrics(run, "val"))
    found = results(capsys, run)
    assert found["window"] == 8
    assert found["all_texts"]["tokens"] == 192
    assert found["all_texts"]["loss"] == pytest.approx(best, rel=1e-6)
    assert found["all_texts"]["bits_per_byte"] is None  # 65 ids are of no known tokenizer
    assert results(capsys, run, tmp_path / "val.bin")["all_texts"] == found["all_texts"]


def test_by_position_and_by_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "m.bin")
    for i in range(30):
        (tmp_path / f"{i:02}.txt").write_text(f"text {i} \x1b[2J " * (i + 1))
    words = [str(model), str(tmp_path / "*.txt"), "--by-position", "--by-document"]
    found = results(capsys, *words)
    assert len(found["by_position"]) == 64
    assert found["by_position"][0]["tokens"] >= 30
    total = math.fsum(one["loss"] * one["tokens"] for one in found["by_position"] if one["tokens"])
    assert total / found["all_texts"]["tokens"] == pytest.approx(found["all_texts"]["loss"])
    assert len(found["by_document"]) == 30
    assert [one["file"] for one in found["by_document"]] == [one["file"] for one in found["texts"]]
    assert main([*words, "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out
    for wanted in ("33 to 64", "30 documents, median loss", "highest loss", "lowest loss"):
        assert wanted in out
    assert "windows of 64 tokens that do not overlap" in err
    assert "all together" in out


def test_the_median_of_an_even_number_of_documents_lies_between_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "m.bin")
    for name, text in (("a", "aaaa"), ("b", "zxq!")):
        (tmp_path / f"{name}.txt").write_text(text)
    words = [str(model), str(tmp_path / "?.txt"), "--by-document", "--device", "cpu"]
    found = results(capsys, model, tmp_path / "?.txt", "--by-document")["by_document"]
    assert main(words) == 0
    expected = sum(one["loss"] for one in found) / 2
    assert f"2 documents, median loss {expected:.4f}" in capsys.readouterr().out


def test_a_token_file_that_sorts_first_and_a_record_change_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = write_model(tmp_path / "m.bin"), tmp_path / "data"
    folder.mkdir()
    (folder / "b.txt").write_text("some text")
    words = [str(folder / "b.txt"), "--tokenizer", "bytes", "--val-fraction", "0", "--name", "a"]
    assert prepare([*words, "-o", str(folder)]) == 0
    assert (folder / "a_train.bin.json").is_file()
    found = results(capsys, model, folder / "*")
    assert [Path(one["file"]).name for one in found["texts"]] == ["a_train.bin", "b.txt"]


def test_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, path = write_model(tmp_path / "m.bin"), llmc_file(tmp_path / "val.bin")
    lines = write_jsonl(tmp_path / "q.jsonl", {"ctx": "a", "endings": ["b", "c"], "label": 0})
    first, second = results(capsys, model, path, lines)["questions"]
    assert first["correct"]["by_sum"] == 3
    assert first["correct"]["per_token"] == 8
    assert first["accuracy"]["per_token"] == 0.4
    assert first["accuracy"]["per_character"] == first["correct"]["per_character"] / 20
    assert (second["questions"], second["chance"]) == (1, 0.5)
    (fewer,) = results(capsys, model, path, "--questions", "5")["questions"]
    assert fewer["questions"] == 5
    assert main([str(model), str(path), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "val.bin: 20 questions; a blind guess is right in 25.00 %" in out
    assert "per token (llm.c)" in out
    assert "8 of 20 = 0.4000" in out


def test_a_pattern_may_match_files_of_all_kinds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their order is that of their names; each is known by its content."""
    model, folder = write_model(tmp_path / "m.bin"), tmp_path / "data"
    folder.mkdir()
    (folder / "a.txt").write_text("some text")
    write_shard(folder / "b.bin", np.arange(20))
    llmc_file(folder / "c.bin")
    write_jsonl(folder / "d.jsonl", {"ctx": "a", "endings": ["b", "c"], "label": 0})
    found = results(capsys, model, folder / "*")
    assert [Path(one["file"]).name for one in found["texts"]] == ["a.txt", "b.bin"]
    assert [one["tokens"] for one in found["texts"]] == [9, 19]
    assert [Path(one["file"]).name for one in found["questions"]] == ["c.bin", "d.jsonl"]


def test_hellaswag_is_found_where_llmc_has_it_or_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = write_model(tmp_path / "m.bin")
    assert main([str(model), "hellaswag", "--device", "cpu"]) == 2
    assert "rowanz/hellaswag/master/data/hellaswag_val.jsonl" in capsys.readouterr().err
    lines = write_jsonl(
        tmp_path / "h.jsonl", {"ctx": "a", "endings": [*"bcde"], "label": 0, "ind": 4}
    )
    (found,) = results(capsys, model, "hellaswag", "--source", lines)["questions"]
    assert found["questions"] == 1
    Path("dev/data/hellaswag").mkdir(parents=True)
    llmc_file(Path("dev/data/hellaswag/hellaswag_val.bin"))
    (found,) = results(capsys, model, "hellaswag")["questions"]
    assert found["questions"] == 20


def test_in_a_pipe_only_the_numbers_stand_on_stdout(tmp_path: Path) -> None:
    write_model(tmp_path / "m.bin")
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    result = command("cupygpt.evaluate", "m.bin", "a.txt", "--device", "cpu", cwd=tmp_path)
    assert result.returncode == 0
    header, row = result.stdout.splitlines()
    assert header.split() == ["text", "tokens", "loss", "perplexity", "bits/byte"]
    assert row.startswith("a.txt ")
    assert "tokens, " in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{absent}", "a.txt"], "there is no such model"),
        (["{model}"], "belongs to no run, so it has no validation files"),
        (["{model}", "none.txt"], "none.txt: no such file"),
        (["{model}", "{folder}"], "this is a folder"),
        (["{model}", "{model}"], "this is a model, nothing to evaluate a model on"),
        (["{text}", "{text}"], "a.txt: "),
        (["{model}", "{empty}"], "there is no text in this file"),
        (["{model}", "{binary}"], "not UTF-8 text"),
        (["{model}", "{large}"], "token 2 is id 300, but the model's vocabulary has 257"),
        (["{odd}", "{text}"], "text needs the model's tokenizer: no tokenizer is known"),
        (["{odd}", "{small}", "--by-document"], "--by-document needs the tokenizer"),
        (
            ["{odd}", "{small}", "--tokenizer", "bytes"],
            "tokenizer bytes has 257 ids, but the model 65",
        ),
        (["{model}", "{text}", "--tokenizer", "{text}"], "a.txt"),
        (["{model}", "{text}", "--window", "65"], "--window is 65, but the model has 64 positions"),
        (["{model}", "{text}", "--window", "0"], "--window is 0, but must be at least 1"),
        (["{model}", "{text}", "--stride", "65"], "the tokens between two windows would be left"),
        (["{model}", "{text}", "--stride", "-1"], "--stride is -1"),
        (["{model}", "{text}", "--questions", "0"], "--questions is 0"),
        (["{model}", "{text}", "--precision", "fp8"], "--precision is fp8, but must be one of"),
        (["{model}", "{text}", "--precision", "bf16"], "--precision bf16 needs a GPU"),
        (["{model}", "{text}", "--source", "{text}"], "--source has no effect"),
        (["{model}", "hellaswag", "--source", "{text}"], "this is neither llm.c's evaluation"),
        (["{model}", "hellaswag", "--source", "none"], "none: HellaSwag is not there"),
    ],
)
def test_bad_input_gets_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    names = {
        name: tmp_path / file
        for name, file in {
            "model": "m.bin", "text": "a.txt", "empty": "empty.txt", "binary": "binary.txt",
            "large": "large.bin", "small": "small.bin", "odd": "odd.bin", "absent": "absent",
            "folder": "",
        }.items()
    }  # fmt: skip
    write_model(names["model"])
    save_model(names["odd"], TINY, initial_parameters(TINY, 42), "fp32")
    names["text"].write_text("some text")
    names["empty"].touch()
    names["binary"].write_bytes(b"\xff\x00\xfe" * 50)
    write_shard(names["large"], np.array([1, 2, 300]))
    write_shard(names["small"], np.arange(50))
    assert main([word.format(**names) for word in words] + ["--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""
    assert err.count("error: ") == 1
    assert "Traceback" not in err


def test_a_model_too_large_for_the_memory_is_refused_with_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cupygpt.device.cpu.available_memory_bytes", lambda: 2**17)
    model, path = write_model(tmp_path / "m.bin"), tmp_path / "a.txt"
    path.write_text(TEXT)
    assert main([str(model), str(path), "--device", "cpu"]) == 2
    assert "GiB to evaluate one row of 64 tokens, 0.00 GiB are free" in capsys.readouterr().err
