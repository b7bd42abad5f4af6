"""-e with a run, a Hugging Face folder or a model file: what begins, with which defaults."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange.exchanged_models import random_weights
from exchange.hugging_face_files import TINY as TINY_FOLDER
from exchange.hugging_face_files import change_config, write_folder
from support.data_files import write_ranks
from support.rank_runs import losses, train
from support.small_runs import main_log, metrics, write_files, write_tokens

from cupygpt import convert, evaluate, prepare
from cupygpt.checkpoint.checkpoint import load_checkpoint, load_model
from cupygpt.data.tokenizer import load_tokenizer
from cupygpt.exchange.hf_tokenizer_files import tokenizer_files
from cupygpt.exchange.source import find_weights
from cupygpt.flags.config import TrainConfig
from cupygpt.planning.choose_model import find_source
from cupygpt.run_folder.lock import FolderLock
from cupygpt.train import main

OLD_RUN = Path(__file__).parents[1] / "golden" / "runs" / "283337a"
"""Bytes, rows of 16 of the model's 32 positions, checkpoints at the steps 6 and 12."""
QUIET = ["-s", "0", "--device", "cpu"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD_RUN, tmp_path / "base"))


def new_data(folder: Path, count: int = 2000) -> list[str]:
    """Token files without a record: 2,000 tokens, and 12 whole rows of 16 for validation."""
    write_tokens(folder / "new_train.bin", count, 200, seed=2)
    write_tokens(folder / "new_val.bin", 12 * 16 + 1, 200, seed=3)
    return ["-i", str(folder / "new_train.bin"), "-j", str(folder / "new_val.bin")]


def recorded(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "run.json").read_text()))


def hugging_face(folder: Path, tokenizer: str | None = "bytes") -> Path:
    """A folder of 8 positions and 257 ids, with the files of a tokenizer."""
    write_folder(folder, random_weights(TINY_FOLDER, scale=1.0))
    if tokenizer:
        files = tokenizer_files(load_tokenizer(tokenizer).vocabulary(), 8)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder


def loss_of(model: str, file: Path, capsys: pytest.CaptureFixture[str]) -> float:
    """The loss that `evaluate` finds."""
    capsys.readouterr()
    assert evaluate.main([model, str(file), "--device", "cpu", "--json"]) == 0
    return float(json.loads(capsys.readouterr().out)["texts"][0]["loss"])


@pytest.mark.parametrize(("which", "step"), [("", 12), ("@newest", 12), ("@6", 6)])
def test_a_run_is_fine_tuned_from_the_checkpoint_that_is_named(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], which: str, step: int
) -> None:
    run, name = tmp_path / "run", f"{base}{which}"
    assert main(["-e", name, *new_data(tmp_path), *QUIET, "-n", "6", "-o", str(run)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"weights from step {step} (" in out
    assert "to fine-tune, 1/2 of the rate that a new model gets" in out
    assert "rows of 16 tokens, as the model was trained" in out
    assert "steps of about 16 tokens, to fine-tune on such a text" in out
    record = recorded(run)
    assert record["source"]["path"] == str(base / f"model_{step:08d}.bin")
    assert (record["source"]["kind"], record["source"]["step"]) == ("run", step)
    assert record["config"]["seq_len"] == 16  # of 32: the others were not trained
    assert record["config"]["dropout"] == 0.1  # 13,248 parameters, 2,000 tokens
    assert record["config"]["learning_rate"] == pytest.approx(0.5 * 4.5 / 13248**0.5, rel=0.03)
    first = metrics(run, "val")[0]["loss"]
    assert first == pytest.approx(loss_of(name, tmp_path / "new_val.bin", capsys), rel=1e-6)


def test_shorter_rows_do_not_make_the_model_forget_its_other_positions(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were trained before, so `sample` may use them."""
    for t, trained in (("8", 16), ("20", 20)):
        flags = ["-e", str(base), *new_data(tmp_path), *QUIET, "-v", "0", "-t", t]
        assert main([*flags, "-n", "1", "-o", str(tmp_path / t)]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert f"has 32 positions, of which {trained} are trained" in out
        assert ("only 16 positions of this model were trained" in out) == (t == "20")
        assert main(["--resume", str(tmp_path / t), "--extend", "1"]) == 0
        assert recorded(tmp_path / t)["trained_length"] == trained
        assert recorded(tmp_path / t)["source"]["is_trained"]
        assert find_weights(str(tmp_path / t)).trained_length == trained


def test_without_a_length_it_is_three_epochs_of_small_steps(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = ["-e", str(base), *new_data(tmp_path, 400), *QUIET]
    assert main([*flags, "-v", "0", "-o", str(run)]) == 0
    record = recorded(run)
    assert (record["config"]["epochs"], record["config"]["batch_size"]) == (3.0, 1)
    assert record["steps"] == 3 * 24  # rows of 16 tokens; 400 tokens are 24 of them
    assert "3 epochs, as is usual for fine-tuning" in " ".join(capsys.readouterr().out.split())


def test_a_run_needs_its_source_no_more(base: Path, tmp_path: Path) -> None:
    flags = ["-e", f"{base}@6", *new_data(tmp_path), *QUIET, "-v", "5", "-q", "1", "-u", "0"]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert main([*flags, "-n", "10", "-o", str(straight)]) == 0
    assert main([*flags, "-n", "5", "-o", str(resumed)]) == 0
    shutil.rmtree(base)
    assert main(["--resume", str(resumed), "-n", "10"]) == 0
    assert main_log(resumed) == main_log(straight)
    assert recorded(resumed)["source"]["step"] == 6


def test_a_hugging_face_folder_goes_in_and_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files without a record take its tokenizer; the loss at first is that of `evaluate`."""
    folder, run = hugging_face(tmp_path / "hf"), tmp_path / "run"
    flags = ["-e", str(folder), *new_data(tmp_path), *QUIET, "-v", "2"]
    assert main([*flags, "-n", "4", "-o", str(run)]) == 0
    record = recorded(run)
    assert record["data"]["tokenizer"] == "bytes"
    assert record["config"]["seq_len"] == 8
    assert (record["source"]["kind"], record["source"]["step"]) == ("Hugging Face folder", None)
    first = metrics(run, "val")[0]["loss"]
    assert first == pytest.approx(loss_of(str(folder), tmp_path / "new_val.bin", capsys), rel=1e-6)
    assert convert.main([f"{run}@newest", str(tmp_path / "out")]) == 0
    assert convert.main([str(tmp_path / "out"), str(tmp_path / "out.bin")]) == 0
    trained = load_checkpoint(run, 4).state.params
    np.testing.assert_array_equal(load_model(tmp_path / "out.bin").parameters, trained)
    assert not np.array_equal(trained, random_weights(TINY_FOLDER, scale=1.0))


def test_a_note_tells_a_trained_model_file_from_any_other(base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.bin"
    assert convert.main([str(base), str(copy)]) == 0
    flags = ["-e", str(copy), *new_data(tmp_path), *QUIET, "-n", "1"]
    assert main([*flags, "-o", str(tmp_path / "tuned")]) == 0
    (tmp_path / "copy.bin.json").unlink()
    assert main([*flags, "-o", str(tmp_path / "plain")]) == 0
    model_of_run = ["-e", str(base / "model_00000012.bin"), *flags[2:]]
    assert main([*model_of_run, "-o", str(tmp_path / "of_run")]) == 0
    names = ("learning_rate", "seq_len", "weight_decay", "final_fraction")
    settings = {
        run: [recorded(tmp_path / run)["config"][name] for name in names]
        for run in ("tuned", "plain", "of_run")
    }
    assert settings["tuned"] == [0.02, 16, 0.1, 0.05]
    assert settings["plain"] == settings["of_run"] == [3e-4, None, 0.0, 1.0]
    crcs = {recorded(tmp_path / run)["source"]["crc32"] for run in ("tuned", "plain", "of_run")}
    assert len(crcs) == 1  # the same weights


def test_a_plain_model_file_is_trained_as_in_llmc(tmp_path: Path) -> None:
    """Its defaults, given as flags, change no bit."""
    flags = write_files(tmp_path)[:6]
    llmc = ["-b", "4", "-t", "16", "-l", "3e-4", "-k", "cosine", "-u", "0", "-q", "1", "-c", "0"]
    llmc += ["--beta1", "0.9", "--beta2", "0.95", "--grad-clip", "1", "--dropout", "0"]
    llmc += ["--epochs", "1"]
    for name, more in (("open", []), ("given", llmc)):
        assert main([*flags, *QUIET, *more, "-o", str(tmp_path / name)]) == 0
    assert main_log(tmp_path / "open") == main_log(tmp_path / "given")
    models = [sorted((tmp_path / name).glob("model_*"))[-1] for name in ("open", "given")]
    assert models[0].read_bytes() == models[1].read_bytes()


def test_two_ranks_begin_with_the_same_weights(tmp_path: Path) -> None:
    flags = ["-e", str(hugging_face(tmp_path / "hf")), *new_data(tmp_path), *QUIET, "-n", "4"]
    flags += ["-d", "64", "-l", "1e-3", "--dropout", "0"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert main([*flags, "-b", "8", "-o", str(one)]) == 0
    train(*flags, "-b", "4", "--gpus", "2", "-o", str(two))
    np.testing.assert_allclose(losses(two), losses(one), atol=2e-4)


class SecondRank:
    """Rank 1 of 2, to which rank 0 says `value`."""

    rank, world, local_rank = 1, 2, 1

    def __init__(self, value: Any) -> None:
        self._value = value

    def all_gather_object(self, value: Any) -> list[Any]:
        return [self._value, value]

    def on_abort(self, advice: Any) -> None:
        """Nobody dies here."""


def test_all_ranks_take_the_checkpoint_that_rank_0_found(base: Path) -> None:
    """The run may have saved a newer one meanwhile."""
    source = find_source(TrainConfig(model=str(base)), SecondRank(f"{base}@6"))
    assert source is not None
    assert (source.step, find_source(TrainConfig(model="d12"), SecondRank(None))) == (6, None)


def test_a_run_that_is_being_trained_can_be_fine_tuned_already(base: Path, tmp_path: Path) -> None:
    flags = ["-e", str(base), *new_data(tmp_path), *QUIET, "-n", "1", "-v", "0"]
    with FolderLock(base):
        assert main([*flags, "-o", str(tmp_path / "run")]) == 0
        assert main([*flags, "-o", str(base), "--overwrite"]) == 2


def test_a_run_may_replace_itself_but_keeps_the_weights_that_it_began_with(
    base: Path, tmp_path: Path
) -> None:
    before = (base / "model_00000006.bin").read_bytes()
    flags = ["-e", f"{base}@6", *new_data(tmp_path), *QUIET, "-n", "3", "-v", "0"]
    assert main([*flags, "-o", str(base), "--overwrite"]) == 0
    assert main(["--resume", str(base), "-n", "4"]) == 2  # the schedule depends on the length
    assert main(["--resume", str(base), "--extend", "2"]) == 0
    assert (base / "model_00000006.bin").read_bytes() == before
    assert not (base / "model_00000012.bin").exists()


def test_the_best_checkpoint_may_be_gone(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The state of step 6 says that step 12 was the best."""
    state = (base / "state_00000012_00000.bin").read_bytes()
    for path in base.glob("*_00000012*"):
        path.unlink()
    raw = bytearray((base / "state_00000006_00000.bin").read_bytes())
    raw[64 * 4 : 80 * 4] = state[64 * 4 : 80 * 4]
    (base / "state_00000006_00000.bin").write_bytes(raw)
    flags = ["-e", str(base), *new_data(tmp_path), *QUIET, "-n", "1", "-v", "0"]
    assert main([*flags, "-o", str(tmp_path / "run")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "weights from step 6 (newest) of run" in out
    assert "was that of step 12, whose checkpoint is not there" in out


def break_config(folder: Path) -> str:
    change_config(folder, activation_function="relu")
    return "activation_function"


def break_weights(folder: Path) -> str:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    return "cut short"


def leave_a_pickle(folder: Path) -> str:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return "pickle"


def leave_nothing(folder: Path) -> str:
    for path in folder.iterdir():
        path.unlink()
    return "holds no model"


def check_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], message: str
) -> None:
    """One message, exit code 2, and no trace of the run."""
    capsys.readouterr()
    assert main([*words, *QUIET, "-n", "1", "-o", str(tmp_path / "bad")]) == 2
    err = capsys.readouterr().err
    assert re.search(message, err), err
    assert err.count("error:") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("spoil", [break_config, break_weights, leave_a_pickle, leave_nothing])
def test_a_broken_folder_gets_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any
) -> None:
    folder = hugging_face(tmp_path / "hf", None)
    message = spoil(folder)
    check_refused(["-e", str(folder), *new_data(tmp_path)], tmp_path, capsys, message)


def test_what_no_run_holds_gets_one_message(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, ranks = new_data(tmp_path), write_ranks(tmp_path / "few.tiktoken", [b"th"])
    for words, message in (
        (["-e", f"{base}@7"], "no such checkpoint.* 6, 12"),
        (["-e", str(tmp_path / "none")], "there is no such model"),
        (["-e", "gpt2"], "run folder .*or a Hugging Face folder"),
        (["-e", f"{base}", "-t", "33"], "made for at most 32 positions"),
        (["-e", f"{base}", "--tokenizer", str(ranks)], "is not the one that step 12"),
    ):
        check_refused([*words, *data], tmp_path, capsys, message)
    write_tokens(tmp_path / "new_train.bin", 500, 300)
    check_refused(["-e", str(base), *data], tmp_path, capsys, r"vocabulary")
    for path in base.glob("DONE_*"):
        path.unlink()
    check_refused(["-e", str(base), *data], tmp_path, capsys, "no complete checkpoint|before its")


def test_data_in_other_tokens_than_the_models_are_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both with fewer ids than the model, and with as many that mean other texts."""
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 200)
    pairs = [bytes([97 + i]) + b"h" for i in range(20)]
    write_ranks(tmp_path / "few.tiktoken", pairs)
    write_ranks(tmp_path / "other.tiktoken", [pair[::-1] for pair in pairs])
    few, other = tmp_path / "few.tiktoken", tmp_path / "other.tiktoken"
    for name, tokenizer in (("bytes", "bytes"), ("few", few), ("other", other)):
        words = [str(tmp_path / "text.txt"), "--tokenizer", str(tokenizer), "--name", name]
        assert prepare.main([*words, "-o", str(tmp_path)]) == 0
    data = {name: ["-i", str(tmp_path / f"{name}_train.bin")] for name in ("bytes", "few", "other")}
    check_refused(["-e", str(base), *data["few"]], tmp_path, capsys, "277 ids.*is not the one that")
    tuned = tmp_path / "tuned"
    words = ["-e", "L1:H1:C16", "-t", "8", "-b", "2", *data["few"], *QUIET, "-n", "2"]
    assert main([*words, "-o", str(tuned)]) == 0
    message = r"other.*\(277 ids\) is not the one that.*run.tokenizer.*mean other texts"
    check_refused(["-e", str(tuned), *data["other"]], tmp_path, capsys, message)
    check_refused(["-e", str(tuned), *data["bytes"]], tmp_path, capsys, "257 ids.*is not the one")
    check_refused(
        ["-e", str(tuned)], tmp_path, capsys, "the demo's text; name token files of yours"
    )
    again = ["-e", str(tuned), *data["few"], *QUIET, "-n", "1", "-o", str(tmp_path / "again")]
    assert main(again) == 0


def test_a_tokenizer_in_two_files_is_compared_though_it_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """vocab.json and merges.txt alone, of another vocabulary of 257 ids than bytes."""
    folder = hugging_face(tmp_path / "hf", None)
    bytes_ = tokenizer_files(load_tokenizer("bytes").vocabulary(), 8)
    vocabulary = json.loads(bytes_["vocab.json"])
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text(bytes_["merges.txt"], encoding="utf-8")
    flags = ["-e", str(folder), *new_data(tmp_path), "-v", "0"]
    assert main([*flags, *QUIET, "-n", "1", "-o", str(tmp_path / "run")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "samples show ids" in out
    assert "convert writes vocab.json and its merges as one file" in out
    message = r"bytes \(257 ids\) is not the one .*\(its own\).*\(convert writes it as one file\)"
    check_refused([*flags, "--tokenizer", "bytes"], tmp_path, capsys, message)
