"""Models that go to transformers and come from it compute the same there and here.

Needs transformers and torch, which only these tests use: pip install transformers torch.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange.exchanged_models import (
    convert,
    greedy,
    mixed_text,
    random_weights,
    trained_run,
)
from support.data_files import use_gpt2_files, write_ranks
from support.small_runs import command, metrics

import cupygpt
from cupygpt.arrays import from_bfloat16, to_bfloat16
from cupygpt.checkpoint.checkpoint import load_model
from cupygpt.checkpoint.model_file import save_model
from cupygpt.config import GPTConfig
from cupygpt.data.tokenizer import load_tokenizer
from cupygpt.data.tokenizer_files import pattern_file, pattern_path
from cupygpt.exchange.hf_folder import load_hugging_face
from cupygpt.exchange.safetensors_file import read_tensor_table
from cupygpt.exchange.source import find_weights
from cupygpt.files import HEADER_BYTES

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def hf() -> Any:
    """The module transformers, with torch on one thread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch", reason="torch is not installed")
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    return transformers


def hf_model(folder: Path) -> Any:
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def hf_logits(model: Any, ids: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(ids[None].astype(np.int64))).logits[0].numpy()


def our_logits(path: Path, ids: np.ndarray) -> np.ndarray:
    return np.asarray(cupygpt.load(path, device="cpu").logits(ids))


@pytest.fixture(scope="module", params=["bytes", "gpt2", "bpe:512"])
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A run that was trained here, and the tokenizer of its data."""
    folder = tmp_path_factory.mktemp(request.param.replace(":", ""))
    run = trained_run(request.param, folder)
    learnt = folder / "text.tiktoken"
    return str(learnt) if learnt.exists() else request.param, run


@pytest.fixture(scope="module")
def exported(trained: tuple[str, Path]) -> Path:
    run = trained[1]
    convert("run", "hf", cwd=run.parent)
    return run.parent / "hf"


@pytest.fixture(autouse=True)
def _gpt2_files(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "gpt2" in request.node.name:
        use_gpt2_files(monkeypatch)


def test_the_logits_agree_and_so_does_the_greedy_text(
    hf: Any, trained: tuple[str, Path], exported: Path
) -> None:
    import torch

    tokenizer = load_tokenizer(trained[0])
    convert("run", "copy.bin", cwd=exported.parent)
    path = exported.parent / "copy.bin"
    model = hf_model(exported)
    ids = tokenizer.encode("Train on your own text. The")[:40]
    difference = np.abs(hf_logits(model, ids) - our_logits(path, ids)).max()
    assert difference < 1e-4
    count = load_model(path).config.maxT - len(ids)
    ours = greedy(path, [int(i) for i in ids], count)
    theirs = model.generate(
        torch.from_numpy(ids[None].astype(np.int64)), do_sample=False, max_new_tokens=count,
        min_new_tokens=count,
    )[0, len(ids) :].tolist()  # fmt: skip
    stop = ours.index(tokenizer.eot) if tokenizer.eot in ours else count
    assert ours[:stop] == theirs[:stop]
    assert len(set(ours)) > 3


def test_the_tokenizer_gives_the_same_ids_on_a_megabyte(
    hf: Any, trained: tuple[str, Path], exported: Path
) -> None:
    ours = load_tokenizer(trained[0])
    theirs = hf.AutoTokenizer.from_pretrained(exported)
    text = mixed_text(1_000_000)
    wanted = ours.encode(text)
    found = theirs(text, split_special_tokens=True)["input_ids"]
    assert np.array_equal(found, wanted)
    assert theirs.decode(found, clean_up_tokenization_spaces=False) == text
    assert theirs.eos_token_id == ours.eot
    assert theirs.convert_tokens_to_ids("<|endoftext|>") == ours.eot


@pytest.mark.parametrize("kept", ["tokenizer.json", "vocab.json"])
def test_each_form_of_the_tokenizer_files_is_enough(
    hf: Any, trained: tuple[str, Path], exported: Path, tmp_path: Path, kept: str
) -> None:
    names = {"tokenizer.json": ["tokenizer.json"], "vocab.json": ["vocab.json", "merges.txt"]}
    for name in [*names[kept], "tokenizer_config.json", "config.json"]:
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    text = mixed_text(20_000)
    found = hf.AutoTokenizer.from_pretrained(tmp_path)(text, split_special_tokens=True)
    assert np.array_equal(found["input_ids"], load_tokenizer(trained[0]).encode(text))


def test_a_folder_that_transformers_saved_again_comes_back_bit_for_bit(
    hf: Any, trained: tuple[str, Path], exported: Path, tmp_path: Path
) -> None:
    hf_model(exported).save_pretrained(tmp_path / "again")
    hf.AutoTokenizer.from_pretrained(exported).save_pretrained(tmp_path / "again")
    convert("again", "back.bin", cwd=tmp_path)
    back = (tmp_path / "back.bin").read_bytes()
    model = load_model(tmp_path / "back.bin")
    assert back[1024:] == model.parameters.tobytes()
    convert(trained[1], "copy.bin", cwd=tmp_path)
    assert (tmp_path / "copy.bin").read_bytes() == back
    noted = find_weights(str(tmp_path / "back.bin")).tokenizer
    assert load_tokenizer(str(noted)).sha256 == load_tokenizer(trained[0]).sha256


CONFIG = {"vocab_size": 257, "n_positions": 64, "n_embd": 64, "n_layer": 3, "n_head": 2}


def fresh(hf: Any, folder: Path, **more: Any) -> Any:
    """A model that transformers made: large weights, noise everywhere; saved in `folder`."""
    import torch

    torch.manual_seed(3)
    model = hf.GPT2LMHeadModel(hf.GPT2Config(**CONFIG, bos_token_id=256, eos_token_id=256)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder, **more)
    return model


def test_a_model_of_transformers_has_the_same_validation_loss_here(hf: Any, tmp_path: Path) -> None:
    import torch

    model = fresh(hf, tmp_path / "theirs")
    (tmp_path / "text.txt").write_text(mixed_text(60_000))
    for words in (
        ["cupygpt.prepare", "text.txt", "--tokenizer", "bytes"],
        ["cupygpt.convert", "theirs", "theirs.bin"],
        ["cupygpt.train", "-e", "theirs.bin", "-i", "text_train.bin", "-j", "text_val.bin", "-o",
         "run", "-b", "4", "-t", "64", "-v", "1", "-m", "10", "-n", "1", "-s", "0", "-l", "1e-9",
         "--device", "cpu", "--no-shuffle"],
    ):  # fmt: skip
        result = command(words[0], *words[1:], cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    ours = metrics(tmp_path / "run", "val")[0]["loss"]
    tokens = np.fromfile(tmp_path / "text_val.bin", np.uint16, offset=HEADER_BYTES)
    rows = np.array([tokens[64 * i : 64 * i + 65] for i in range(40)]).astype(np.int64)
    with torch.no_grad():
        logits = model(torch.from_numpy(rows[:, :-1])).logits
        theirs = torch.nn.functional.cross_entropy(
            logits.reshape(-1, 257).double(), torch.from_numpy(rows[:, 1:]).reshape(-1)
        ).item()
    assert abs(ours - theirs) < 1e-5


def test_export_after_import_is_bit_for_bit(hf: Any, tmp_path: Path) -> None:
    fresh(hf, tmp_path / "theirs")
    convert("theirs", "ours.bin", cwd=tmp_path)
    convert("ours.bin", "out", "--tokenizer", "bytes", cwd=tmp_path)
    theirs = read_tensor_table(tmp_path / "theirs" / "model.safetensors")
    ours = read_tensor_table(tmp_path / "out" / "model.safetensors")
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert tensor.read().tobytes() == ours[name].read().tobytes(), name


def test_shards_of_transformers_are_read(hf: Any, tmp_path: Path) -> None:
    fresh(hf, tmp_path / "one")
    fresh(hf, tmp_path / "many", max_shard_size="200KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    convert("one", "one.bin", cwd=tmp_path)
    convert("many", "many.bin", cwd=tmp_path)
    assert (tmp_path / "one.bin").read_bytes() == (tmp_path / "many.bin").read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_comes_in_exactly(hf: Any, tmp_path: Path, dtype: str) -> None:
    import torch

    model = fresh(hf, tmp_path / "full").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "half")
    convert("half", "half.bin", cwd=tmp_path)
    loaded = load_model(tmp_path / "half.bin")
    assert loaded.precision == ("bf16" if dtype == "bfloat16" else "fp32")
    wte = model.transformer.wte.weight.detach().float().numpy()
    assert np.array_equal(loaded.parameters[: wte.size], wte.reshape(-1))
    if dtype == "bfloat16":
        convert("half.bin", "out", cwd=tmp_path)
        convert("out", "again.bin", cwd=tmp_path)
        assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "half.bin").read_bytes()
        assert np.array_equal(from_bfloat16(to_bfloat16(loaded.parameters)), loaded.parameters)


def test_gpt2s_shape_goes_in_is_fine_tuned_and_goes_out(hf: Any, tmp_path: Path) -> None:
    """124M parameters, random weights, 20 steps; the logits of the result agree."""
    config = GPTConfig(maxT=1024, V=50257, L=12, NH=12, C=768)
    save_model(tmp_path / "random.bin", config, random_weights(config, scale=1.0), "fp32")
    convert("random.bin", "theirs", cwd=tmp_path)
    (tmp_path / "random.bin").unlink()
    hf_model(tmp_path / "theirs").save_pretrained(tmp_path / "saved")
    (tmp_path / "text.txt").write_text(mixed_text(20_000))
    for words in (
        ["cupygpt.prepare", "text.txt"],
        ["cupygpt.train", "-e", "saved", "-i", "text_train.bin", "-o", "run", "-b", "1", "-t",
         "16", "-n", "20", "-s", "0", "--device", "cpu"],
    ):  # fmt: skip
        result = command(words[0], *words[1:], cwd=tmp_path, timeout=1200)
        assert result.returncode == 0, result.stderr
    assert "learning rate 5e-05 after 2 warm-up steps" in " ".join(result.stdout.split())
    convert("run", "out", cwd=tmp_path)
    convert("run", "out.bin", cwd=tmp_path)
    ids = np.arange(8) * 1000
    difference = np.abs(
        hf_logits(hf_model(tmp_path / "out"), ids) - our_logits(tmp_path / "out.bin", ids)
    )
    assert difference.max() < 1e-4
    before = load_hugging_face(tmp_path / "saved").parameters
    assert not np.array_equal(before, load_model(tmp_path / "out.bin").parameters)


CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
"""The pattern of another tokenizer of OpenAI (tiktoken)."""


def test_another_split_pattern_goes_there_and_comes_back(hf: Any, tmp_path: Path) -> None:
    ranks = write_ranks(tmp_path / "own.tiktoken", [b"th", b"the", b" the", b"12", b"123", b"(x"])
    pattern_path(ranks).write_bytes(pattern_file(CL100K))
    ours = load_tokenizer(str(ranks))
    config = GPTConfig(maxT=16, V=ours.vocab_size, L=1, NH=2, C=16)
    save_model(tmp_path / "m.bin", config, random_weights(config), "fp32")
    convert("m.bin", "hf", "--tokenizer", "own.tiktoken", cwd=tmp_path)
    text = "the 12345 (x) (the)\n\n" + mixed_text(50_000)
    theirs = hf.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert np.array_equal(theirs(text, split_special_tokens=True)["input_ids"], ours.encode(text))
    assert load_tokenizer(str(tmp_path / "hf/tokenizer.json")).sha256 == ours.sha256
    convert("hf", "back.bin", cwd=tmp_path)
    assert load_tokenizer(str(tmp_path / "back.tokenizer")).sha256 == ours.sha256
