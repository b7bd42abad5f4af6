import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cupygpt.errors import ConfigError
from cupygpt.flags.config import TrainConfig
from cupygpt.flags.keywords import ONLY_OF_THE_COMMAND, given_by_keywords, signature_parameters


def test_every_flag_is_a_keyword() -> None:
    names = [parameter.name for parameter in signature_parameters()]
    assert {*names, *ONLY_OF_THE_COMMAND} == {item.name for item in fields(TrainConfig)}
    assert all(isinstance(one, inspect.Parameter) for one in signature_parameters())


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"steps": np.int64(5), "learning_rate": 1}, {"steps": 5, "learning_rate": 1.0}),
        ({"out": Path("runs/a")}, {"out": "runs/a"}),
        ({"resume": True}, {"resume": "newest"}),
        ({"resume": False, "overwrite": False, "steps": None}, {}),
        ({"no_shuffle": True, "overfit": True}, {"no_shuffle": True, "overfit": 1}),
    ],
)
def test_values_are_those_of_the_flags(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    found = given_by_keywords(given)
    assert found == wanted
    assert [type(value) for value in found.values()] == [type(x) for x in wanted.values()]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batchsize": 4}, "batchsize is no option. Did you mean batch_size?"),
        ({"b": 4}, "Did you mean batch_size?"),
        ({"lr": 4}, "Did you mean learning_rate?"),
        ({"max_iters": 4}, "Did you mean steps?"),
        ({"gpus": 4}, "python -m cupygpt.train --gpus N"),
        ({"xyz": 4}, "xyz is no option. help"),
        ({"steps": 2.5}, "steps must be a whole number, not 2.5"),
        ({"steps": True}, "steps must be a whole number, not True"),
        ({"learning_rate": "1e-3"}, "learning_rate must be a number, not '1e-3'"),
        ({"schedule": "cos"}, "must be one of 'cosine', 'linear'"),
        ({"overwrite": 1}, "overwrite must be True or False"),
        ({"out": 5}, "out must be text or a path"),
        ({"val_every": 0, "patience": 2}, "--patience has no effect"),
    ],
)
def test_a_wrong_keyword_gets_one_sentence(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        given_by_keywords(given)
    assert message in str(error.value)
