"""Generated text: equal to a whole forward pass, repeatable, within its window, and stopped."""

from collections.abc import Iterator

import numpy as np
import pytest

from cupygpt.config import GPTConfig
from cupygpt.device.cpu import CPU
from cupygpt.device.precision import FP32
from cupygpt.errors import DeviceError, RunError
from cupygpt.model.generate import ENDED, Generator, Sampling, one_after_the_other
from cupygpt.model.init_weights import initial_parameters
from cupygpt.model.memory_plan import (
    MEMORY_MARGIN,
    RunShape,
    check_decoding_fits,
    rows_that_fit,
)
from cupygpt.model.tensors import arena_bytes, cut_packed, decoder_specs, parameter_specs
from cupygpt.training.trainer import OptimizerSettings, Trainer

BYTES = GPTConfig(maxT=100, V=257, L=2, NH=2, C=16)
GREEDY = Sampling(temperature=0.0)


def make_generator(window: int | None = None, rows: int = 1) -> tuple[Generator, np.ndarray]:
    parameters = initial_parameters(BYTES, 42) * np.float32(5)
    params = cut_packed(parameters, parameter_specs(BYTES))
    return Generator(CPU(), BYTES, params, FP32, window=window, rows=rows), parameters


def likeliest_next(parameters: np.ndarray, tokens: list[int]) -> int:
    """By a whole forward pass over the tokens."""
    trainer = Trainer(CPU(), RunShape(BYTES, 1, len(tokens)), OptimizerSettings())
    trainer.params.flat[:] = parameters
    trainer.model.forward(np.array([tokens], np.int32))
    return int((trainer.model.acts.lnf[0, -1] @ trainer.params.wte[:257].T).argmax())


@pytest.mark.parametrize("length", [1, 5, 64, 67, 100])
def test_decoding_with_the_cache_equals_a_whole_forward(length: int) -> None:
    generator, parameters = make_generator()
    tokens = np.random.default_rng(length).integers(0, 257, length).tolist()
    (drawn,) = generator.generate(tokens, 1, GREEDY, (0,))
    assert drawn == likeliest_next(parameters, tokens)


def test_a_prompt_in_pieces_gives_the_same_text() -> None:
    generator, _ = make_generator()
    text = list(generator.generate([3], 40, GREEDY, (0,)))
    for cut in (1, 7, 30):
        rest = list(generator.generate([3, *text[:cut]], 40 - cut, GREEDY, (0,)))
        assert rest == text[cut:]


def test_text_continues_beyond_the_context() -> None:
    generator, _ = make_generator()
    tokens = list(generator.generate([256], 3 * BYTES.maxT, Sampling(), (1,)))
    assert len(tokens) == 300
    assert all(0 <= token < 257 for token in tokens)


def test_a_seed_repeats_a_text() -> None:
    generator, _ = make_generator()
    texts = [tuple(generator.generate([256], 30, Sampling(), seed)) for seed in ((1,), (1,), (2,))]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("window", [1, 2, 7, 12])
@pytest.mark.parametrize("length", [1, 12, 30])
def test_a_window_equals_recomputing_it(window: int, length: int) -> None:
    """When it is full, it starts again with its last half."""
    generator, parameters = make_generator(window)
    prompt = np.random.default_rng(length).integers(0, 257, length).tolist()
    wanted, seen = [], prompt[-window:]
    for _ in range(25):
        wanted.append(likeliest_next(parameters, seen))
        seen = [*seen, wanted[-1]]
        if len(seen) > window:
            seen = seen[-max(1, window // 2) :]
    assert list(generator.generate(prompt, 25, GREEDY, (0,))) == wanted


def test_positions_behind_the_window_are_never_used() -> None:
    generator, parameters = make_generator(window=40)
    text = list(generator.generate([256] * 60, 120, Sampling(), (1,)))
    generator.params.wpe[40:] = np.nan
    assert list(generator.generate([256] * 60, 120, Sampling(), (1,))) == text
    generator.window = 41
    with pytest.raises(RunError, match="logits are not finite"):
        list(generator.generate([256] * 60, 120, Sampling(), (1,)))
    assert np.isnan(parameters).any()  # the generator reads this array


def test_a_window_is_at_most_the_model() -> None:
    assert make_generator()[0].window == make_generator(1000)[0].window == BYTES.maxT


def test_a_text_ends_before_the_token_that_stops_it() -> None:
    generator, _ = make_generator()
    whole = list(generator.generate([3], 30, Sampling(), (0,)))
    for stop in (whole[0], whole[12], whole[29]):
        text = list(generator.generate([3], 30, Sampling(), (0,), stop=stop))
        assert text == whole[: whole.index(stop)]
    absent = min({*range(257)} - {*whole})
    assert list(generator.generate([3], 30, Sampling(), (0,), stop=absent)) == whole


def test_a_batch_writes_each_text_as_it_would_be_written_alone() -> None:
    """Prompts of different lengths, each with its own seed; a text that ended stays ended."""
    generator, _ = make_generator(window=20, rows=3)
    prompts, seeds = [[3], list(range(17)), [5] * 40], [(7, number) for number in range(3)]
    alone = [
        list(generator.generate(p, 60, Sampling(), s)) for p, s in zip(prompts, seeds, strict=True)
    ]
    stop = alone[1][9]
    steps = list(generator.generate_batch(prompts, 60, Sampling(), seeds, stop=stop))
    assert all(step.shape == (3,) and step.dtype == np.int32 for step in steps)
    for number, text in enumerate(alone):
        length = text.index(stop) if stop in text else 60
        column = [int(step[number]) for step in steps]
        assert column == text[:length] + [ENDED] * (len(steps) - length)


def test_a_batch_ends_when_all_texts_have_ended() -> None:
    generator, _ = make_generator(rows=2)
    (first,) = generator.generate([3], 1, GREEDY, (0,))
    assert list(generator.generate_batch([[3], [3]], 9, GREEDY, [(0,), (1,)], stop=first)) == []


def test_another_text_ends_the_one_before() -> None:
    """They share the cache: going on with the first one would continue the second."""
    generator, _ = make_generator()
    alone = list(generator.generate([5], 6, GREEDY, (0,)))
    first, second = (generator.generate([start], 6, GREEDY, (0,)) for start in (3, 5))
    next(first)
    begun = [next(second)]
    with pytest.raises(RunError, match="left unfinished when another one was begun"):
        list(first)
    assert begun + list(second) == alone


def test_texts_of_a_batch_are_read_one_after_the_other() -> None:
    """The first one as it is written; a text without tokens is a text too."""
    steps = [[1, 5, ENDED], [2, ENDED, ENDED], [3, ENDED, ENDED]]
    taken = []

    def written() -> Iterator[np.ndarray]:
        for step in steps:
            taken.append(step)
            yield np.array(step, np.int32)

    texts = one_after_the_other(written(), 3)
    first = next(texts)
    assert next(first) == 1
    assert taken == steps[:1]
    assert list(first) == [2, 3]
    assert [list(text) for text in texts] == [[5], []]


def test_memory_says_how_many_texts_are_written_at_once() -> None:
    def needed(rows: int) -> int:
        buffers = arena_bytes(decoder_specs(BYTES, rows), lambda name: FP32.dtypes[name].itemsize)
        return int((4 * BYTES.num_parameters + buffers) / MEMORY_MARGIN) + 1

    assert rows_that_fit(BYTES, FP32, None, 64) == 64
    assert rows_that_fit(BYTES, FP32, needed(64), 64) == 64
    assert rows_that_fit(BYTES, FP32, needed(9), 64) == 9
    check_decoding_fits(BYTES, FP32, needed(3), 3)
    with pytest.raises(DeviceError, match="GiB to write 3 texts at once"):
        check_decoding_fits(BYTES, FP32, needed(3) - 100, 3)
    with pytest.raises(DeviceError, match="GiB to write text, "):
        rows_that_fit(BYTES, FP32, needed(1) - 100, 64)
