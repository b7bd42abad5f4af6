"""Initial weights equal those of llm.c."""

import numpy as np
import pytest

from cupygpt.config import GPTConfig, config_from_descriptor
from cupygpt.model.init_weights import fill_normal, initial_parameters
from cupygpt.model.tensors import Tensors, cut_packed, parameter_specs


def parameters(config: GPTConfig) -> Tensors:
    return cut_packed(initial_parameters(config, 42), parameter_specs(config))


def test_normals_equal_llmc() -> None:
    generator = np.random.RandomState(42)
    out = np.zeros(20, np.float32)
    fill_normal(out, 1.0, generator)
    known = [1.926915, 1.487284, 0.9007172, -2.105521, -0.7581311]
    np.testing.assert_allclose(out[:5], known, rtol=1e-6)
    assert out[-1] == pytest.approx(-0.6215954, rel=1e-6)
    assert generator.randint(0, 2**32, dtype=np.uint32) == 1855189739


def test_d6_equals_llmc() -> None:
    p = parameters(config_from_descriptor("d6"))
    values = [p.wpe[0, 0], p.qkvw[0, 0, 0], p.attprojw[0, 0, 0], p.qkvw[1, 0, 0]]
    known = [-0.0059967316, -0.023607381, 0.0069261342, 0.016766792]
    np.testing.assert_allclose(values, known, rtol=2e-6)


@pytest.mark.slow
def test_d12_equals_llmc() -> None:
    p = parameters(config_from_descriptor("d12"))
    np.testing.assert_allclose(p.wte[0, :2], [0.0385383, 0.029745683], rtol=2e-6)
    assert p.wte[50256, -1] == pytest.approx(0.0017037853, rel=2e-6)
    np.testing.assert_allclose(p.wpe[0, :2], [-0.0091623552, -0.018614769], rtol=2e-6)
    for layer, known in enumerate(
        [
            [-0.0045566773, 0.0011327435, -0.011178779, 0.0043775216],
            [0.024865491, -0.0043521696, 0.030694405, -0.0051564714],
        ]
    ):
        firsts = [w[layer].flat[0] for w in (p.qkvw, p.attprojw, p.fcw, p.fcprojw)]
        np.testing.assert_allclose(firsts, known, rtol=2e-6)


def test_padding_rows_and_biases_are_zero_and_norms_one() -> None:
    config = GPTConfig(maxT=8, V=65, L=2, NH=2, C=16)
    p = parameters(config)
    assert not p.wte[65:].any()
    assert p.wte[:65].all()
    for bias in (p.ln1b, p.qkvb, p.attprojb, p.ln2b, p.fcb, p.fcprojb, p.lnfb):
        assert not bias.any()
    for weight in (p.ln1w, p.ln2w, p.lnfw):
        assert (weight == 1).all()


def test_another_seed_gives_other_weights() -> None:
    config = GPTConfig(maxT=8, V=65, L=1, NH=2, C=16)
    assert not np.array_equal(initial_parameters(config, 1), initial_parameters(config, 2))
