"""python -m cupygpt.convert, as a user calls it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from exchange.exchanged_models import random_weights, save_random
from exchange.hugging_face_files import TINY, write_folder
from support.data_files import write_ranks

from cupygpt.checkpoint.checkpoint import load_model
from cupygpt.config import GPTConfig
from cupygpt.convert import main
from cupygpt.data.tokenizer import load_tokenizer
from cupygpt.errors import RunError
from cupygpt.exchange.source import find_weights
from cupygpt.sample import main as sample
from cupygpt.train import main as train

OLD_RUN = Path(__file__).parents[1] / "golden" / "runs" / "cf012fa"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def convert(*words: str) -> None:
    assert main(list(words)) == 0


def test_a_run_goes_out_and_comes_back_bit_for_bit(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(OLD_RUN, "run")
    convert("run", "hf")
    out, err = capsys.readouterr()
    assert "wrote hf/model.safetensors" in out
    assert "step 12 (best) of run run" in out
    assert "16 of the 32 positions were trained" in err
    convert("hf", "back.bin")
    assert Path("back.bin").read_bytes() == Path("run/model_00000012.bin").read_bytes()
    convert("run@6", "six.bin")
    assert Path("six.bin").read_bytes() == Path("run/model_00000006.bin").read_bytes()
    source = find_weights("six.bin")
    assert (source.is_trained, source.tokenizer, source.trained_length) == (True, "bytes", 16)
    convert("run", "a.gguf")
    assert Path("a.gguf").read_bytes()[:4] == b"GGUF"
    names = {path.name for path in Path().iterdir()}
    assert names == {"run", "hf", "back.bin", "back.bin.json", "six.bin", "six.bin.json", "a.gguf"}


def test_an_exported_folder_is_all_that_transformers_needs() -> None:
    save_random(Path("a.bin"), TINY)
    convert("a.bin", "hf")
    assert {path.name for path in Path("hf").iterdir()} == {
        "config.json", "generation_config.json", "merges.txt", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "vocab.json",
    }  # fmt: skip
    config = json.loads(Path("hf/config.json").read_text())
    assert (config["vocab_size"], config["n_positions"], config["n_ctx"]) == (257, 8, 8)
    assert config["eos_token_id"] == 256
    assert json.loads(Path("hf/tokenizer_config.json").read_text())["model_max_length"] == 8


def test_a_vocabulary_of_ones_own_goes_with_the_model() -> None:
    path = write_ranks(Path("own.tiktoken"), [b"th", b" th", b"the"])
    own = load_tokenizer(str(path))
    save_random(Path("a.bin"), GPTConfig(maxT=8, V=own.vocab_size, L=1, NH=2, C=16))
    convert("a.bin", "hf", "--tokenizer", "own.tiktoken")
    convert("hf", "back.bin")
    tokenizer = find_weights("back.bin").tokenizer
    assert tokenizer == "back.tokenizer"
    assert load_tokenizer(tokenizer).sha256 == own.sha256
    Path("hf/tokenizer.json").unlink()
    convert("hf", "pair.bin")
    assert load_tokenizer(str(find_weights("pair.bin").tokenizer)).sha256 == own.sha256
    convert("back.bin", "again")
    assert json.loads(Path("again/vocab.json").read_text(encoding="utf-8"))["the"] == 258


def test_a_vocabulary_that_was_rounded_up_keeps_its_tokenizer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Other programs round V up to a multiple of 64; then a folder's tokenizer has fewer ids."""
    save_random(Path("a.bin"), TINY)
    convert("a.bin", "hf")
    save_random(Path("b.bin"), GPTConfig(maxT=8, V=320, L=1, NH=2, C=16))
    convert("b.bin", "round")
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        shutil.copy(Path("hf") / name, "round")
    convert("round", "c.gguf")
    convert("round", "again")
    assert Path("again/vocab.json").read_bytes() == Path("hf/vocab.json").read_bytes()
    capsys.readouterr()
    convert("round", "c.bin")
    assert "bytes has 257 ids, but the model 320" in capsys.readouterr().err
    assert find_weights("c.bin").tokenizer is None


def test_without_a_tokenizer_only_ggufs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    save_random(Path("a.bin"), GPTConfig(maxT=8, V=99, L=1, NH=2, C=16))
    convert("a.bin", "hf")
    assert "no tokenizer is known for 99 ids" in capsys.readouterr().err
    assert {path.name for path in Path("hf").iterdir()} == {"config.json", "model.safetensors"}
    assert main(["a.bin", "a.gguf"]) == 2
    assert "that of a.bin is not known (99 ids)" in capsys.readouterr().err


def test_text_is_written_from_all_that_can_be_named(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    """The same text from the same weights; the tokenizer is found each time."""
    shutil.copytree(OLD_RUN, "run")
    convert("run", "hf")
    convert("hf", "hf.bin")
    capfdbinary.readouterr()
    texts = {}
    for name in ("run", "run@newest", "run@12", "hf", "hf.bin", "run@6"):
        flags = ["--tokens", "8", "--prompt", "the ", "--window", "16", "--device", "cpu"]
        assert sample([name, *flags]) == 0
        texts[name] = capfdbinary.readouterr().out
    assert texts.pop("run@6") != texts["run"]
    assert set(texts.values()) == {texts["run"]}


def test_precisions(capsys: pytest.CaptureFixture[str]) -> None:
    save_random(Path("full.bin"), TINY)
    convert("full.bin", "half.bin", "--precision", "bf16")
    assert load_model(Path("half.bin")).precision == "bf16"
    convert("half.bin", "hf")
    assert json.loads(Path("hf/config.json").read_text())["torch_dtype"] == "bfloat16"
    convert("hf", "again.bin")
    assert Path("again.bin").read_bytes() == Path("half.bin").read_bytes()
    for target in ("x.bin", "x"):
        assert main(["full.bin", target, "--precision", "fp16"]) == 2
    assert "fp16 is for GGUF files" in capsys.readouterr().err
    for precision in ("fp32", "fp16", "bf16"):
        convert("full.bin", f"{precision}.gguf", "--precision", precision)
    sizes = [Path(f"{name}.gguf").stat().st_size for name in ("fp32", "fp16", "bf16")]
    assert sizes[0] > sizes[1] == sizes[2]


def test_a_copy_of_a_plain_file_stays_a_plain_file() -> None:
    """Only what was trained counts as trained, and a copy of a copy does."""
    save_random(Path("plain.bin"), TINY)
    convert("plain.bin", "copy.bin")
    assert not Path("copy.bin.json").exists()
    write_folder(Path("hf"), random_weights(TINY))
    convert("hf", "trained.bin")
    convert("trained.bin", "second.bin")
    assert find_weights("second.bin").is_trained
    convert("plain.bin", "trained.bin", "--overwrite")
    assert not find_weights("trained.bin").is_trained


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.bin", "a.bin"], "is there already"),
        (["a.bin", "a.bin", "--overwrite"], "source and target are the same"),
        (["hf", "hf", "--overwrite"], "source and target are the same"),
        (["a.bin", "full"], "is there already"),
        (["a.bin", "full", "--overwrite"], "this folder holds none"),
        (["a.bin", "x.safetensors"], "files that end in .safetensors are not written"),
        (["a.bin", "dir.bin"], "is a folder, but a model file should"),
        (["a.bin", "note"], "is a file, but a Hugging Face folder should"),
        (["a.bin", "none/x.bin"], "no such folder"),
        (["none.bin", "x.bin"], "there is no such model"),
        (["a.bin", "left.bin"], "left.bin.json is there already"),
        (["a.bin", "left.bin", "--overwrite"], "no note of a model"),
        (["a.bin", "own.bin"], "own.tokenizer is there already"),
        (["a.bin", "x.bin", "--tokenizer", "bytes"], "--tokenizer has no effect"),
        (["a.bin", "x", "--tokenizer", "none.tiktoken"], "could not be read"),
        (["a.bin", "x", "--tokenizer", "own.tiktoken"], "has 258 ids, but the model 257"),
        (
            ["hf", "x.bin", "--tokenizer", "gpt2"],
            "the tokenizer gpt2 has 50,257 ids, but the model 257",
        ),
        (["hf", "x.bin", "--tokenizer", "own.tiktoken"], "has 258 ids, but the model 257"),
    ],
)
def test_what_cannot_be_done_is_said(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_random(Path("a.bin"), TINY)
    write_ranks(Path("own.tiktoken"), [b"th"])
    write_folder(Path("hf"), random_weights(TINY))
    Path("dir.bin").mkdir()
    Path("full").mkdir()
    Path("full/mine.txt").touch()
    Path("note").touch()
    Path("left.bin.json").write_text('{"mine": 1}')
    Path("own.tokenizer").touch()
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    assert main(words) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("error:") == 1
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def test_an_export_replaces_all_of_an_older_one() -> None:
    save_random(Path("bytes.bin"), TINY)
    save_random(Path("other.bin"), GPTConfig(maxT=8, V=99, L=1, NH=2, C=16))
    convert("bytes.bin", "hf")
    Path("hf/model.safetensors.index.json").write_text("{}")
    convert("other.bin", "hf", "--overwrite")
    assert {path.name for path in Path("hf").iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("target", ["new", "new.bin", "new.gguf"])
def test_what_cannot_be_written_leaves_nothing(
    target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise RunError("the disk is full.")

    write_folder(Path("hf"), random_weights(TINY))
    for name in ("write_weights", "write_note", "write_gguf"):
        monkeypatch.setattr(f"cupygpt.exchange.target.{name}", full)
    words = ["hf", target, "--tokenizer", "bytes"]
    assert main(words) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["hf"]


def test_a_run_starts_from_a_converted_model() -> None:
    """The same weights come out as from the run that it was converted from: both are fine-tuned."""
    shutil.copytree(OLD_RUN, "run")
    convert("run", "hf")
    convert("hf", "hf.bin")
    flags = [
        "-i", "run/text_train.bin", "-b", "2", "-t", "16", "-n", "2", "-s", "0", "-l", "1e-3",
        "--device", "cpu", "--no-bar",
    ]  # fmt: skip
    assert train(["-e", "hf.bin", "-o", "one", *flags]) == 0
    assert train(["-e", "run", "-o", "two", *flags]) == 0
    one, two = (load_model(Path(run) / "model_00000002.bin").parameters for run in ("one", "two"))
    assert np.array_equal(one, two)
