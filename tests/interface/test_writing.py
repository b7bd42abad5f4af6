"""Text of the interface: that of the command, in whole characters, of several at once."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interface.loaded import NAMES, ON_HARDWARE, device_named, model_on, tiny_file

import cupygpt
from cupygpt.interface.model import Model
from cupygpt.interface.writing import Characters
from cupygpt.sample import main as sample


@pytest.fixture
def model() -> Model:
    return model_on("cpu", "fp32")


def test_the_text_is_that_of_the_command(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = tiny_file(tmp_path)
    model = cupygpt.load(path, device="cpu")
    flags = ["--tokens", "40", "--top-k", "50", "--top-p", "0.9", "--temperature", "0.7"]
    settings: dict[str, Any] = {"tokens": 40, "top_k": 50, "top_p": 0.9, "temperature": 0.7}
    for prompt, given in (("It was", ["--prompt", "It was"]), (None, [])):
        assert sample([str(path), *given, *flags, "--seed", "7", "--device", "cpu"]) == 0
        printed = capfdbinary.readouterr().out.decode(errors="replace")
        assert model.generate(prompt, seed=7, **settings) == printed


@pytest.mark.parametrize("where", ON_HARDWARE)
def test_pieces_make_the_text(where: tuple[str, str]) -> None:
    model = model_on(*where)
    settings: dict[str, Any] = {"tokens": 12, "ignore_eot": True}
    text = model.generate("é", **settings)
    assert "".join(model.generate("é", stream=True, **settings)) == text
    texts = model.generate(["é", "abc"], **settings)
    assert texts[0] == text
    pieces = list(model.generate(["é", "abc"], stream=True, **settings))
    assert ["".join(of_text) for of_text in zip(*pieces, strict=True)] == texts
    assert pieces[0] == ["é", "abc"]


@pytest.mark.parametrize("where", ON_HARDWARE)
def test_ids_are_continued_as_they_are(where: tuple[str, str]) -> None:
    """End of text stands before a text, but not before ids: each id is the likeliest of the last
    logits."""
    model = model_on(*where)
    ids = model.tokenizer.encode("It was").astype(int)
    start, expected = len(ids), ids
    for _ in range(8):
        expected = np.append(expected, model.logits(expected)[-1].argmax())
    settings: dict[str, Any] = {"tokens": 8, "temperature": 0, "ignore_eot": True}
    wanted = model.tokenizer.decode_bytes(expected[expected != 256].tolist()).decode(
        errors="replace"
    )
    for prompt in (ids, ids.tolist()):
        assert model.generate(prompt, **settings) == wanted
    assert "".join(model.generate(ids, stream=True, **settings)) == wanted
    assert model.generate([ids, ids[:start]], **settings) == [wanted, wanted]
    after_end = np.append(256, ids)
    assert model.generate(after_end, **settings) == model.generate("It was", **settings)
    assert model.generate("It was", **settings) != wanted


def test_texts_of_one_prompt_differ_and_repeat(model: Model) -> None:
    texts = model.generate(["a"] * 3, tokens=20)
    assert len(set(texts)) == 3
    assert model.generate(["a"] * 3, tokens=20) == texts
    assert model.generate("a", tokens=20) == texts[0]
    assert model.generate("a", tokens=20, seed=43) != texts[0]


def test_a_character_is_held_until_it_is_whole(model: Model) -> None:
    characters = Characters(model.tokenizer)
    assert characters.begin([256, *"aé".encode()]) == "aé"
    assert [characters.add(byte) for byte in "€z".encode()] == ["", "", "€", "z"]
    assert characters.add("€".encode()[0]) == ""
    assert characters.add(-1) == "\ufffd"
    assert characters.add(-1) == characters.end() == ""


def test_two_streams_of_one_model_do_not_mix(model: Model) -> None:
    alone = [model.generate(prompt, tokens=15) for prompt in ("ab", "xyz")]
    streams = [model.generate(prompt, tokens=15, stream=True) for prompt in ("ab", "xyz")]
    found = ["", ""]
    waiting = [0, 1]
    while waiting:
        for number in list(waiting):
            piece = next(streams[number], None)
            if piece is None:
                waiting.remove(number)
            else:
                found[number] += piece
    assert found == alone


def test_a_stream_that_is_left_early_disturbs_nothing(model: Model) -> None:
    text = model.generate("ab", tokens=15)
    next(model.generate("ab", tokens=15, stream=True))
    assert model.generate("ab", tokens=15) == text


def test_more_prompts_than_fit_are_written_in_turns(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["a", "b", "c", "d", "e"]
    texts = model.generate(prompts, tokens=10)
    model = model_on("cpu", "fp32")

    monkeypatch.setattr("cupygpt.interface.writing.rows_that_fit", lambda *_: 2)
    assert model.generate(prompts, tokens=10) == texts


def test_one_generator_is_kept(model: Model) -> None:
    """A larger one writes fewer texts too; memory does not grow with each number of prompts."""
    texts = {count: model.generate(["a"] * count, tokens=5) for count in (3, 1, 2, 4, 2)}
    assert texts[1] == texts[4][:1]
    assert texts[2] == texts[4][:2]
    writers = model._text_writers()
    assert writers._idle is not None
    assert writers._idle.rows == 4


@pytest.mark.parametrize("name", NAMES)
def test_two_models_on_two_threads(tmp_path: Path, name: str) -> None:
    device = device_named(name)
    models = [cupygpt.load(tiny_file(tmp_path, seed), device) for seed in (1, 2)]
    alone = [model.generate("a", tokens=30) for model in models]
    losses = [model.loss("abc") for model in models]
    assert alone[0] != alone[1]
    found: dict[int, list[Any]] = {0: [], 1: []}

    def work(number: int) -> None:
        for _ in range(3):
            text = models[number].generate("a", tokens=30)
            found[number].append((text, models[number].loss("abc").tolist()))

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in (0, 1):
        assert found[number] == [(alone[number], losses[number].tolist())] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((b"text",), r"the prompt must be text, not bytes: decode it, as in data\.decode"),
        (("",), "the prompt is empty. Leave it out"),
        ((5,), r"the prompt must be text \(str\), not int"),
        (([],), "the list of prompts is empty"),
        ((np.array(["a", "b"]),), "ids must be whole numbers, not <U1"),
        (([1, 257],), r"id 257 at \[1\] is not in the vocabulary"),
        ((np.ones((2, 3), int),), r"ids have the shape \(2, 3\), but must have \(T,\)"),
        ((["a", ""],), "prompt 1 of the list is empty"),
        ((["a", None],), "prompt 1 of the list must be text"),
    ],
)
def test_a_wrong_prompt_gets_one_sentence(model: Model, arguments: Any, message: str) -> None:
    with pytest.raises(cupygpt.ConfigError, match=message):
        model.generate(*arguments)
    with pytest.raises(cupygpt.ConfigError, match=message):
        model.generate(*arguments, stream=True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"tokens": 0}, "tokens is 0, but must be at least 1"),
        ({"tokens": 2.5}, "tokens must be a whole number"),
        ({"temperature": -1}, "temperature is -1, but must be 0 or more"),
        ({"temperature": "hot"}, "temperature must be a number, not str"),
        ({"top_p": 0}, "top_p is 0, but must be above 0"),
        ({"top_k": None}, "top_k must be a number, not None"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_a_wrong_setting_gets_one_sentence(model: Model, setting: Any, message: str) -> None:
    with pytest.raises(cupygpt.ConfigError, match=message):
        model.generate("a", **setting)
