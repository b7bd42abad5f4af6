import pytest

from cupygpt.config import GPTConfig, config_from_descriptor, shape_of_descriptor, small_config
from cupygpt.errors import ConfigError


def test_small_model_has_the_known_parameter_count() -> None:
    config = small_config(50257)
    assert (config.Vp, config.HS, config.num_parameters) == (50304, 32, 7_265_024)


@pytest.mark.parametrize(
    ("descriptor", "parameters"),
    [
        ("d6", 30_357_504),
        ("d12", 124_475_904),
        ("gpt2:d48", 1_557_686_400),
        ("gpt2:12", 124_475_904),
        ("gpt3:c768", 125_262_336),
        ("gpt3:c2560", 2_651_673_600),
    ],
)
def test_descriptors_have_the_parameter_counts_of_llmc(descriptor: str, parameters: int) -> None:
    assert config_from_descriptor(descriptor).num_parameters == parameters


@pytest.mark.parametrize(
    "descriptor", ["d7", "d" + "1" * 5000, "gpt4", "", "d", "gpt3:c5140", "model"]
)
def test_unknown_descriptors_list_the_known_ones(descriptor: str) -> None:
    with pytest.raises(ConfigError, match=r"d12.*gpt3:c768.*L6:H6:C384"):
        config_from_descriptor(descriptor)


@pytest.mark.parametrize(
    ("descriptor", "shape"),
    [
        ("L6:H6:C384", {"L": 6, "NH": 6, "C": 384}),
        ("C384:L6:H6", {"L": 6, "NH": 6, "C": 384}),
        ("l2:h4:c64:t128:v257", {"L": 2, "NH": 4, "C": 64, "maxT": 128, "V": 257}),
        ("T2048:L1:H1:C8", {"L": 1, "NH": 1, "C": 8, "maxT": 2048}),
    ],
)
def test_a_descriptor_names_any_shape(descriptor: str, shape: dict[str, int]) -> None:
    assert shape_of_descriptor(descriptor) == shape


def test_what_a_shape_leaves_out_comes_from_the_caller() -> None:
    assert config_from_descriptor("L2:H4:C64") == GPTConfig(maxT=1024, V=50257, L=2, NH=4, C=64)
    named = config_from_descriptor("L2:H4:C64:V300:T96", V=257, maxT=64)
    assert (named.V, named.maxT) == (300, 96)
    assert config_from_descriptor("L2:H4:C64", V=257, maxT=64).Vp == 384


@pytest.mark.parametrize("descriptor", ["d12", "small", "gpt3:c768", "gpt2:d7", "cat", ""])
def test_other_descriptors_are_no_shapes(descriptor: str) -> None:
    assert shape_of_descriptor(descriptor) is None


@pytest.mark.parametrize(
    ("descriptor", "message"),
    [
        ("L6:C384", "lacks H. .*L6:H6:C384"),
        ("L6", "lacks H and C"),
        ("L6:H6:C384:L7", "names L twice"),
        ("L6:H6:C384:X2", "'X2' .* is not clear"),
        ("L6:H6:C384:", "'' .* is not clear"),
        ("L6:H-6:C384", "'H-6' .* is not clear"),
        ("L6:H6:C384.5", "'C384.5' .* is not clear"),
        ("L6:H6:C" + "9" * 5000, "is not clear"),
        ("L6,H6,C384", "'L6,H6,C384' .* is not clear"),
        ("L0:H6:C384", "layers must be at least 1, got 0"),
        ("L6:H5:C384", "384 channels do not divide by 5 heads"),
        ("L6:H6:C384:V2000000", "1048576"),
    ],
)
def test_a_shape_that_is_not_clear_or_not_possible_is_refused(
    descriptor: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        shape_of_descriptor(descriptor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"C": 130}, "130 channels do not divide by 4 heads"),
        ({"NH": 0}, "heads must be at least 1, got 0"),
        ({"L": -1}, "layers must be at least 1, got -1"),
        ({"maxT": 0}, "sequence length must be at least 1"),
        ({"V": 2000000}, "1048576"),
        ({"C": 48, "NH": 4}, "head size 12"),
        ({"C": 1024, "NH": 4}, "head size 256"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, int], message: str) -> None:
    shape = {"maxT": 64, "V": 257, "L": 2, "NH": 4, "C": 128} | changes
    with pytest.raises(ConfigError, match=message):
        GPTConfig(**shape)
