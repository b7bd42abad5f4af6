"""Which algorithm a product takes: measured once, and then the same for the run and the next."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gpu import require_gpu

from cupygpt.kernels import matmul as matmul_module
from cupygpt.kernels.matmul import cache_file, choose_algorithm, measuring


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(matmul_module, "_choices", {})
    monkeypatch.setenv("CUPYGPT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Measuring takes the last candidate; the repeats asked for are noted."""
    asked: list[int] = []

    def fastest(candidates: Any, repeats: int, stream: Any) -> int:
        asked.append(repeats)
        return len(candidates) - 1

    monkeypatch.setattr(matmul_module, "_fastest", fastest)
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
    matmul_module._choices.clear()
    with measuring(None):
        assert choose_algorithm("small", three(), 10**6, None) == 2
    assert len(timed) == 2


def test_what_another_thread_computes_is_not_measured() -> None:
    found: list[int] = []
    thread = threading.Thread(
        target=lambda: found.append(choose_algorithm("elsewhere", three(), 1, None))
    )
    with measuring(None):
        thread.start()
        thread.join()
    assert found == [0]


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
    monkeypatch.setattr("cupygpt.kernels.matmul.cache_dir", lambda: None)
    with measuring(tmp_path):
        choose_algorithm("p", three(), 1, None)
    assert json.loads((tmp_path / "products.json").read_text()) == {"p": 2}
