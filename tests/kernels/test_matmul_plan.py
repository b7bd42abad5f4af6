"""How a product is described to cuBLASLt and what is refused; which algorithm it then takes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gpu import require_gpu

from cupygpt.errors import KernelError
from cupygpt.kernels import cublaslt, matmul_plan
from cupygpt.kernels import matmul as matmul_module
from cupygpt.kernels.matmul_plan import cache_file, choose_algorithm, measuring, problem_of


def key(
    out: tuple[int, ...],
    a: tuple[int, ...],
    b: tuple[int, ...],
    *,
    types: str = "fff",
    bias: Any = None,
    aux: Any = None,
    flags: tuple[Any, ...] = (False, False, False, None, False),
    strides: dict[str, tuple[int, ...]] | None = None,
    devices: tuple[int, ...] = (0, 0, 0),
) -> tuple[Any, ...]:
    """What `matmul` looks plans up by, for contiguous arrays unless `strides` says otherwise."""
    strides = strides or {}
    signatures = []
    for name, shape, dtype, device in zip("oab", (out, a, b), types, devices, strict=True):
        own = strides.get(name) or np.empty(shape, dtype).strides
        signatures.append((shape, own, dtype, 256, device))
    return (*signatures, bias, aux, *flags)


def test_row_major_becomes_column_major_with_the_operands_exchanged() -> None:
    problem = problem_of(key((5, 3), (5, 2), (2, 3)))
    assert (problem.A.rows, problem.A.cols, problem.A.leading) == (3, 2, 3)  # b
    assert (problem.B.rows, problem.B.cols, problem.B.leading) == (2, 5, 2)  # a
    assert (problem.D.rows, problem.D.cols, problem.D.leading) == (3, 5, 3)
    assert (problem.transpose_A, problem.transpose_B, problem.k) == (False, False, 2)


def test_transposes_are_exchanged_too() -> None:
    problem = problem_of(key((5, 3), (5, 2), (3, 2), flags=(False, True, False, None, False)))
    assert (problem.transpose_A, problem.transpose_B, problem.k) == (True, False, 2)
    problem = problem_of(key((5, 3), (2, 5), (2, 3), flags=(True, False, False, None, False)))
    assert (problem.transpose_A, problem.transpose_B, problem.k) == (False, True, 2)


def test_rows_may_lie_apart() -> None:
    problem = problem_of(key((5, 3), (5, 2), (2, 3), strides={"a": (44, 4)}))
    assert problem.B.leading == 11


def test_strides_of_single_rows_and_columns_do_not_matter() -> None:
    problem = problem_of(key((1, 3), (1, 1), (1, 3), strides={"a": (400, 36), "b": (8, 4)}))
    assert (problem.B.leading, problem.A.leading) == (1, 3)


def test_tf32_concerns_float32_only() -> None:
    flags = (False, False, False, None, True)
    shapes = ((4, 4), (4, 4), (4, 4))
    assert problem_of(key(*shapes, flags=flags)).compute == cublaslt.COMPUTE_TF32
    assert problem_of(key(*shapes)).compute == cublaslt.COMPUTE_FLOAT32
    assert problem_of(key(*shapes, types="HHH", flags=flags)).compute == cublaslt.COMPUTE_FLOAT32


def test_epilogues() -> None:
    shapes = ((4, 8), (4, 4), (4, 8))
    bias, aux = ((8,), (4,), "f", 16, 0), ((4, 8), (64, 4), "f", 256, 0)
    gelu_flags = (False, False, False, "gelu", False)
    dgelu_flags = (False, False, False, "dgelu", False)
    assert problem_of(key(*shapes)).epilogue == 1
    assert problem_of(key(*shapes, bias=bias)).epilogue == 4
    assert problem_of(key(*shapes, flags=gelu_flags)).epilogue == 32
    problem = problem_of(key(*shapes, bias=bias, aux=aux, flags=gelu_flags))
    assert (problem.epilogue, problem.bias_alignment, problem.aux_leading) == (164, 16, 16)
    assert problem_of(key(*shapes, aux=aux, flags=dgelu_flags)).epilogue == 192


WRONG = {
    "inner lengths": (key((5, 3), (5, 2), (4, 3)), r"out \(5, 3\) from a \(5, 2\) @ b \(4, 3\)"),
    "result": (key((3, 5), (5, 2), (2, 3)), "shapes do not fit"),
    "empty sum": (key((5, 3), (5, 0), (0, 3)), r"a has shape \(5, 0\): .* nothing"),
    "1-D": (key((5, 3), (10,), (2, 3)), r"a has shape \(10,\): products take 2-D"),
    "float64": (key((5, 3), (5, 2), (2, 3), types="fdf"), "a has dtype 'd'"),
    "mixed": (key((5, 3), (5, 2), (2, 3), types="ffH"), "float32 from float32 @ bfloat16"),
    "narrowed": (key((5, 3), (5, 2), (2, 3), types="Hff"), "bfloat16 from float32 @ float32"),
    "transposed view": (
        key((5, 3), (5, 2), (2, 3), strides={"a": (4, 20)}),
        r"a \(5, 2\) has strides \(4, 20\) bytes: its rows must be contiguous",
    ),
    "overlapping rows": (key((5, 3), (5, 2), (2, 3), strides={"a": (4, 4)}), "must not overlap"),
    "reversed rows": (key((5, 3), (5, 2), (2, 3), strides={"a": (-8, 4)}), "must not overlap"),
    "two GPUs": (key((5, 3), (5, 2), (2, 3), devices=(0, 1, 0)), r"different GPUs: \[0, 1\]"),
    "bias length": (key((5, 3), (5, 2), (2, 3), bias=((5,), (4,), "f", 256, 0)), r"\(3,\)"),
    "bias type": (key((5, 3), (5, 2), (2, 3), bias=((3,), (2,), "H", 256, 0)), "result's type"),
    "bias stride": (key((5, 3), (5, 2), (2, 3), bias=((3,), (8,), "f", 256, 0)), "contiguous"),
    "aux alone": (key((4, 8), (4, 4), (4, 8), aux=((4, 8), (32, 4), "f", 256, 0)), "epilogue"),
    "aux shape": (
        key(
            (4, 8), (4, 4), (4, 8),
            aux=((8, 4), (16, 4), "f", 256, 0), flags=(False, False, False, "gelu", False),
        ),
        "shape of out",
    ),
    "aux rows": (
        key(
            (4, 6), (4, 4), (4, 6),
            aux=((4, 6), (24, 4), "f", 256, 0), flags=(False, False, False, "gelu", False),
        ),
        "6 elements from row to row.*multiple of 8",
    ),
    "dgelu without aux": (
        key((4, 8), (4, 4), (4, 8), flags=(False, False, False, "dgelu", False)), "takes aux",
    ),
    "accumulated gelu": (
        key((4, 8), (4, 4), (4, 8), flags=(False, False, True, "gelu", False)), "does not add",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named(name: str) -> None:
    arguments, message = WRONG[name]
    with pytest.raises(KernelError, match=message):
        problem_of(arguments)


def test_description_reads_as_the_caller_wrote_it() -> None:
    problem = problem_of(key((5, 3), (2, 5), (2, 3), flags=(True, False, True, None, True)))
    assert problem.describe() == "product out (5, 3) float32 += (2, 5)ᵀ @ (2, 3) float32, TF32"


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(matmul_plan, "_choices", {})
    monkeypatch.setenv("CUPYGPT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Measuring takes the last candidate; the repeats asked for are noted."""
    asked: list[int] = []

    def fastest(candidates: Any, repeats: int, stream: Any) -> int:
        asked.append(repeats)
        return len(candidates) - 1

    monkeypatch.setattr(matmul_plan, "_fastest", fastest)
    return asked


def three() -> list[Any]:
    return [lambda: None] * 3


def test_unmeasured_products_take_the_first(timed: list[int]) -> None:
    assert choose_algorithm("p", three(), 1, None) == 0
    assert timed == []


def test_a_choice_is_kept_for_the_run_and_for_the_next(tmp_path: Path, timed: list[int]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with measuring(run):
        assert choose_algorithm("small", three(), 10**6, None) == 2
        assert choose_algorithm("large", three(), 10**12, None) == 2
        assert choose_algorithm("small", three(), 10**6, None) == 2
    assert timed == [8, 1]
    for file in (cache_file(), run / "products.json"):
        assert json.loads(file.read_text()) == {"small": 2, "large": 2}
    matmul_plan._choices.clear()
    with measuring(None):
        assert choose_algorithm("small", three(), 10**6, None) == 2
    assert len(timed) == 2


def test_one_rank_keeps_the_choices(tmp_path: Path, timed: list[int]) -> None:
    """Other ranks may see a cache that another run has filled since: they write nothing."""
    cache_file().parent.mkdir()
    cache_file().write_text('{"another run": 1}')
    with measuring(tmp_path, keep=False):
        assert choose_algorithm("mine", three(), 1, None) == 2
    assert not (tmp_path / "products.json").exists()
    assert cache_file().read_text() == '{"another run": 1}'


def test_choices_of_runs_that_start_together_are_all_kept(timed: list[int]) -> None:
    with measuring(None):
        choose_algorithm("mine", three(), 1, None)
        choose_algorithm("both", three(), 1, None)
        cache_file().parent.mkdir()
        cache_file().write_text('{"another run": 1, "both": 0}')
    assert json.loads(cache_file().read_text()) == {"another run": 1, "both": 0, "mine": 2}


def test_the_runs_own_choices_count_most(tmp_path: Path, timed: list[int]) -> None:
    cache_file().parent.mkdir()
    cache_file().write_text('{"p": 1, "q": 1}')
    (tmp_path / "products.json").write_text('{"p": 0}')
    with measuring(tmp_path):
        assert [choose_algorithm(name, three(), 1, None) for name in "pq"] == [0, 1]
    assert timed == []


@pytest.mark.parametrize("content", ["", "[1]", '{"p": "x"}', "\x00"])
def test_a_damaged_cache_is_measured_again(content: str, timed: list[int]) -> None:
    cache_file().parent.mkdir()
    cache_file().write_text(content)
    with measuring(None):
        assert choose_algorithm("p", three(), 1, None) == 2
    assert json.loads(cache_file().read_text()) == {"p": 2}


def test_a_cache_that_cannot_be_written_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, timed: list[int]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CUPYGPT_CACHE_DIR", str(tmp_path / "file"))
    with measuring(tmp_path):
        assert choose_algorithm("p", three(), 1, None) == 2
    assert json.loads((tmp_path / "products.json").read_text()) == {"p": 2}


@pytest.mark.gpu
def test_products_are_measured_and_still_right(monkeypatch: pytest.MonkeyPatch) -> None:
    device = require_gpu()
    device.activate()
    monkeypatch.setattr(matmul_module._context(device.index), "plans", {})
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((512, 512)).astype(np.float32) for _ in range(2))
    on_gpu = [device.zeros(512 * 512, np.float32).reshape(512, 512) for _ in range(3)]
    with measuring(None):
        matmul_module.matmul(*on_gpu)
    for array, values in zip(on_gpu[1:], (a, b), strict=True):
        device.upload(array, values)
    matmul_module.matmul(*on_gpu)
    np.testing.assert_allclose(device.download(on_gpu[0]), a @ b, atol=1e-3)
    (name,) = json.loads(cache_file().read_text())
    assert "product out (512, 512) float32 = (512, 512) @ (512, 512) float32" in name


def test_without_a_cache_folder_the_run_folder_keeps_the_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timed: list[int]
) -> None:
    monkeypatch.setattr("cupygpt.kernels.matmul_plan.cache_dir", lambda: None)
    with measuring(tmp_path):
        choose_algorithm("p", three(), 1, None)
    assert json.loads((tmp_path / "products.json").read_text()) == {"p": 2}
