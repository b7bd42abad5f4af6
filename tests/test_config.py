import pytest

from cupygpt.config import GPTConfig, config_from_descriptor, small_config
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
        ("gpt3:c768", 125_262_336),
        ("gpt3:c2560", 2_651_673_600),
    ],
)
def test_descriptors_have_the_parameter_counts_of_llmc(descriptor: str, parameters: int) -> None:
    assert config_from_descriptor(descriptor).num_parameters == parameters


@pytest.mark.parametrize("descriptor", ["d7", "gpt4", "", "d", "gpt3:c5140", "model"])
def test_unknown_descriptors_list_the_known_ones(descriptor: str) -> None:
    with pytest.raises(ConfigError, match=r"d12.*gpt3:c768"):
        config_from_descriptor(descriptor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"C": 130}, "130 channels do not divide by 4 heads"),
        ({"NH": 0}, "heads must be at least 1, got 0"),
        ({"L": -1}, "layers must be at least 1, got -1"),
        ({"maxT": 0}, "sequence length must be at least 1"),
        ({"V": 70000}, "65536"),
        ({"C": 48, "NH": 4}, "head size 12"),
        ({"C": 1024, "NH": 4}, "head size 256"),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, int], message: str) -> None:
    shape = {"maxT": 64, "V": 257, "L": 2, "NH": 4, "C": 128} | changes
    with pytest.raises(ConfigError, match=message):
        GPTConfig(**shape)
