"""The command that prints text: where it begins and ends, and what reaches a file."""

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.small_runs import command, metrics, write_files

from cupygpt import sample
from cupygpt.checkpoint.model_file import save_model
from cupygpt.config import GPTConfig
from cupygpt.data.document_start import text_prompt
from cupygpt.data.token_writer import write_shard
from cupygpt.data.tokenizer import ByteTokenizer
from cupygpt.device.cpu import CPU
from cupygpt.device.precision import FP32
from cupygpt.model.generate import Generator, Sampling
from cupygpt.model.init_weights import initial_parameters
from cupygpt.model.tensors import cut_packed, parameter_specs
from cupygpt.sample import main
from cupygpt.train import main as train

BYTES = GPTConfig(maxT=100, V=257, L=2, NH=2, C=16)


def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "bytes.bin"
    save_model(path, BYTES, initial_parameters(BYTES, 42) * np.float32(5), "fp32")
    return path


def test_the_command_prints_the_prompt_and_its_continuation(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = model_file(tmp_path)
    flags = [str(path), "--prompt", "def f(", "--tokens", "20", "--num", "2", "--device", "cpu"]
    first = command("cupygpt.sample", *flags, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("def f(") == 2
    assert "--- 1 of 2" in first.stdout
    assert "tok/s" in first.stderr
    assert main([str(path), *flags[1:]]) == 0
    assert capfd.readouterr().out == first.stdout


def test_largest_numbers_work(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--seed", str(2**32 - 1), "--top-k", str(2**40), "--temperature", "1e300"]
    assert main([str(model_file(tmp_path)), "--tokens", "5", "--device", "cpu", *flags]) == 0
    assert "5 tokens in" in capfd.readouterr().err
    assert main([str(tmp_path / "bytes.bin"), "--temperature", "1e-300", "--tokens", "5"]) == 0


def text_of(folder: Path, *flags: str) -> bytes:
    """What the command writes into a file."""
    with (folder / "text").open("wb") as file:
        words = [sys.executable, "-m", "cupygpt.sample", *flags, "--device", "cpu"]
        subprocess.run(words, stdout=file, check=True, cwd=folder, timeout=60)
    return (folder / "text").read_bytes()


def ending_weights(strength: float) -> np.ndarray:
    """The weights of `model_file` with a bias that makes end of text likely."""
    weights = initial_parameters(BYTES, 42) * np.float32(5)
    params = cut_packed(weights, parameter_specs(BYTES))
    params.lnfb[:] = strength * params.wte[256]
    return weights


def generated(
    prompt: list[int], *, stop: int | None, count: int = 300, number: int = 0, ends: float = 0.0
) -> bytes:
    """What the model of `ending_weights` writes with the command's default settings."""
    params = cut_packed(ending_weights(ends), parameter_specs(BYTES))
    generator = Generator(CPU(), BYTES, params, FP32)
    drawn = generator.generate(prompt, count, Sampling(0.8), (42, number), stop=stop)
    return ByteTokenizer().decode_bytes(drawn)


def test_a_file_gets_exactly_the_bytes_of_the_model(tmp_path: Path) -> None:
    """Control characters, carriage returns and bytes that are no UTF-8 among them."""
    path = model_file(tmp_path)
    prompt = "\ttab\r\n\u200c\xa0\u3000"
    ids = [256, *prompt.encode()]
    text = text_of(tmp_path, str(path), "--prompt", prompt, "--tokens", "300")
    assert text == prompt.encode() + generated(ids, stop=256)
    with pytest.raises(UnicodeDecodeError):
        text.decode()
    several = text_of(tmp_path, str(path), "--prompt", "a", "--tokens", "9", "--num", "2")
    texts = [generated([256, 97], stop=256, count=9, number=number) for number in (0, 1)]
    assert several == b"--- 1 of 2\na%b\n--- 2 of 2\na%b\n" % tuple(texts)


def test_many_texts_are_written_in_batches_and_come_in_order(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "MOST_ROWS", 2)
    save_model(tmp_path / "ends.bin", BYTES, ending_weights(20.0), "fp32")
    flags = [str(tmp_path / "ends.bin"), "--device", "cpu", "--prompt", "a", "--tokens", "40"]
    assert main([*flags, "--num", "5"]) == 0
    texts = [generated([256, 97], stop=256, count=40, number=n, ends=20.0) for n in range(5)]
    assert len({len(text) for text in texts}) > 2  # some end early
    wanted = b"".join(b"--- %d of 5\na%b\n" % (i, text) for i, text in enumerate(texts, 1))
    assert capfdbinary.readouterr().out == wanted


def test_a_text_ends_at_end_of_text(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """By default; an option goes on. The bias makes it likely."""
    save_model(tmp_path / "ends.bin", BYTES, ending_weights(2.0), "fp32")
    flags = [str(tmp_path / "ends.bin"), "--tokens", "200", "--device", "cpu", "--prompt", "ab"]
    assert main(flags) == 0
    out, err = capfdbinary.readouterr()
    assert out.startswith(b"ab")
    assert len(out) < 200
    assert b"<|endoftext|>" not in out
    assert b"the text ended at end of text; --ignore-eot goes on." in err
    assert main([*flags, "--ignore-eot"]) == 0
    on, err = capfdbinary.readouterr()
    assert on.startswith(out + b"<|endoftext|>")
    assert b"200 tokens in" in err
    assert b"ended" not in err


def test_logits_that_are_not_finite_write_no_text(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = initial_parameters(BYTES, 42)
    params = cut_packed(weights, parameter_specs(BYTES))
    params.lnfb[:] = params.wte[:257] = 1e30
    save_model(tmp_path / "huge.bin", BYTES, weights, "fp32")
    assert main([str(tmp_path / "huge.bin"), "--device", "cpu"]) == 1
    assert "error: no text can be written: the model's logits" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("prompt", "start", "ids", "note"),
    [
        ("", None, [256], "training data are not known"),
        ("", [256], [256], "as the documents of the training data do"),
        ("", [65, 10], [65, 10], "with the first line of the training data"),
        ("a", None, [256, 97], ""),
        ("a", [256], [256, 97], ""),
        ("a", [65, 10], [97], ""),
    ],
)
def test_where_a_text_begins(
    prompt: str, start: list[int] | None, ids: list[int], note: str
) -> None:
    """End of text is left out where the training data has too few of it to learn from."""
    found, words = text_prompt(prompt, ByteTokenizer(), start)
    assert found == ids
    assert note in words
    assert bool(words) == bool(note)


@pytest.mark.parametrize(("documents", "start"), [(1, b"To be, or not to be\n"), (150, b"")])
def test_a_run_knows_how_its_documents_begin(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], documents: int, start: bytes
) -> None:
    text = [256, *b"To be, or not to be\nthat is the question.\n"] * documents
    write_shard(tmp_path / "train.bin", np.array(text * (150 // documents), np.uint16)[: 43 * 150])
    if documents == 1:
        write_shard(tmp_path / "train.bin", np.array([*text, *text[1:] * 100], np.uint16))
    run = tmp_path / "run"
    flags = ["-i", str(tmp_path / "train.bin"), "-e", str(model_file(tmp_path)), "-t", "16"]
    assert train([*flags, "--device", "cpu", "-n", "2", "-s", "2", "-o", str(run)]) == 0
    (event,) = metrics(run, "sample")
    assert str(event["text"]).startswith(start.decode())
    capfdbinary.readouterr()
    assert main([str(run), "--device", "cpu", "--tokens", "4"]) == 0
    assert capfdbinary.readouterr()[0].startswith(start)


def test_a_run_writes_from_the_positions_that_it_trained(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model has 100 positions and trained 8: the others would turn the text to gibberish."""
    monkeypatch.chdir(tmp_path)
    write_shard(tmp_path / "train.bin", np.frombuffer(b"to be or not to be. " * 40, np.uint8))
    flags = ["-e", str(model_file(tmp_path)), "-i", "train.bin", "-b", "2", "-t", "8", "-n", "2"]
    assert train([*flags, "-s", "0", "--device", "cpu", "--no-bar", "-o", "run"]) == 0
    assert "the model has 100 positions, of which 8 are trained" in " ".join(
        capfd.readouterr().out.split()
    )
    asked = ["--prompt", "to be or not ", "--tokens", "30", "--temperature", "0", "--device", "cpu"]
    texts = []
    for source in (["run"], ["run/model_00000002.bin"], ["run", "--window", "8"]):
        assert main([*source, *asked]) == 0
        out, err = capfd.readouterr()
        texts.append(out)
        assert "written from 8 of the model's 100 positions" in err
    assert texts[0] == texts[1] == texts[2]
    assert main(["run", "--window", "100", *asked]) == 0
    out, err = capfd.readouterr()
    assert out != texts[0]
    assert "written from" not in err


def test_the_reader_of_a_pipe_may_leave_and_a_disk_be_full(tmp_path: Path) -> None:
    words = f"{shlex.quote(sys.executable)} -m cupygpt.sample {model_file(tmp_path)} --device cpu"
    for where, message in (
        ("--tokens 20000 | head -c 9", b""),
        ("> /dev/full", b"error: stdout cannot be written to (No space left on device).\n"),
    ):
        result = subprocess.run(
            ["bash", "-o", "pipefail", "-c", f"{words} {where}"],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 1
        lines = result.stderr.splitlines(keepends=True)
        assert b"".join(lines[2:]) == message


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["absent"], "there is no such model"),
        (["{folder}"], "this folder holds no model"),
        (["{model}", "--tokens", "0"], "--tokens is 0"),
        (["{model}", "--top-p", "0"], "--top-p is 0"),
        (["{model}", "--temperature", "-1"], "--temperature is -1"),
        (["{model}", "--temperature", "nan"], "--temperature is nan"),
        (["{model}", "--temperature", "inf"], "--temperature is inf, but must be 0 or more, and"),
        (["{model}", "--top-p", "nan"], "--top-p is nan"),
        (["{model}", "--top-p", "1.5"], "--top-p is 1.5, but must be above 0 and at most 1"),
        (["{model}", "--top-k", "-1"], "--top-k is -1"),
        (["{model}", "--num", "0"], "--num is 0"),
        (["{model}", "--window", "0"], "--window is 0"),
        (["{model}", "--window", "101"], "--window is 101, but the model has 100 positions"),
        (["{model}", "--seed", "-1"], "--seed is -1"),
        (["{model}", "--seed", "4294967296"], "--seed is 4294967296, but must be 0 or more, and"),
        (["{model}", "--tokenizer", "{model}"], "magic"),
        (["{odd}"], "no tokenizer is known for a vocabulary of 65"),
        (["{odd}", "--tokenizer", "bytes"], "tokenizer bytes has 257 ids, but the model 65"),
    ],
)
def test_bad_input_gets_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    odd = GPTConfig(maxT=8, V=65, L=1, NH=1, C=8)
    save_model(tmp_path / "odd.bin", odd, initial_parameters(odd, 1), "fp32")
    names = {"folder": tmp_path, "model": model_file(tmp_path), "odd": tmp_path / "odd.bin"}
    arguments = [flag.format(**names) for flag in flags]
    assert main([*arguments, "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [("21", "20", [21]), ("23", "20", [20, 23]), ("5", "2", [2, 5]), ("3", "1", [1, 2, 3])],
)
def test_no_sample_comes_just_before_that_of_the_last_step(
    tmp_path: Path, steps: str, every: str, expected: list[int]
) -> None:
    flags = [*write_files(tmp_path), "-v", "0", "-g", "4", "-n", steps, "-s", every]
    assert train([*flags, "-o", str(tmp_path / "run")]) == 0
    assert [event["step"] for event in metrics(tmp_path / "run", "sample")] == expected
