import numpy as np
import pytest
from support.devices import Device

from cupygpt.lab import oracle
from cupygpt.ops.dropout import dropout, philox

SEED, STEP, SITE = 0x123456789ABCDEF0, 17, 3 << 16 | 5

# Known answers of the reference implementation (Random123 1.14, kat_vectors): counter, key, words.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_known_answers(counter: list[int], key: list[int], words: list[int]) -> None:
    index = np.array([counter[0] | counter[1] << 32], np.uint64)
    assert philox(index, counter[2], counter[3], *key)[0].tolist() == words
    assert oracle.philox_words(counter, key) == words


def state(dev: Device) -> object:
    return dev.input([SEED & 0xFFFFFFFF, SEED >> 32, STEP, 0], "uint32")


@pytest.mark.parametrize("p", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("size", [8, 24, 2056])
def test_dropout(dev: Device, rng: np.random.Generator, size: int, p: float) -> None:
    inp, out = dev.input(rng.standard_normal(size)), dev.output(size)
    dropout(out, inp, state(dev), SITE, p)
    want = oracle.dropout(dev.values(inp), SEED, STEP, SITE, p)
    np.testing.assert_array_equal(dev.values(out) == 0.0, want == 0.0)  # the very same mask
    dev.agree("out", out, want, want, 1)


def test_in_place(dev: Device, rng: np.random.Generator) -> None:
    array = dev.array(rng.standard_normal(64))
    want = oracle.dropout(dev.values(array), SEED, STEP, SITE, 0.5)
    dropout(array, array, state(dev), SITE, 0.5)
    dev.agree("out", array, want, want, 1)


def test_steps_and_sites_have_masks_of_their_own(dev: Device) -> None:
    ones, masks = dev.input(np.ones(256)), set()
    for step, site in [(1, 1), (1, 2), (2, 1), (2, 2)]:
        out = dev.output(256)
        dropout(out, ones, dev.input([1, 0, step, 0], "uint32"), site, 0.5)
        masks.add(dev.get(out).tobytes())
    assert len(masks) == 4


def test_ranks_draw_the_parts_of_one_mask(dev: Device) -> None:
    """Rank r of n drops what one array with the elements of all would lose in its part r."""
    size, p = 264, 0.5
    whole = oracle.dropout(np.ones(3 * size), SEED, STEP, SITE, p)
    for first in (0, size, 2 * size):
        out = dev.output(size)
        dropout(out, dev.input(np.ones(size)), state(dev), SITE, p, first)
        np.testing.assert_array_equal(dev.values(out), whole[first : first + size])
