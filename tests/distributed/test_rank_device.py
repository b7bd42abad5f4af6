"""Ranks need a GPU each, or --device cpu; on the CPU they share the memory of their host."""

from types import SimpleNamespace
from typing import Any

import pytest
from support.rank_threads import run_ranks

from cupygpt.device import cuda_check
from cupygpt.device.cpu import CPU
from cupygpt.distributed.rank_device import check_launch, choose_rank_device, free_memory
from cupygpt.distributed.ranks import ONE_RANK
from cupygpt.errors import ConfigError, DeviceError


def driver(monkeypatch: pytest.MonkeyPatch, version: int | None, gpus: int = 0) -> None:
    monkeypatch.setattr(cuda_check, "driver_cuda_version", lambda: version)
    monkeypatch.setattr(cuda_check, "gpus_of_driver", lambda: gpus)


@pytest.mark.parametrize(
    ("version", "gpus", "reason"),
    [
        (None, 0, "no NVIDIA driver was found"),
        (12080, 0, "the NVIDIA driver shows no GPU"),
        (12080, 3, "this machine shows 3."),
    ],
)
@pytest.mark.parametrize("spec", ["auto", "cuda"])
def test_more_ranks_than_gpus_are_not_started(
    monkeypatch: pytest.MonkeyPatch, spec: str, version: int | None, gpus: int, reason: str
) -> None:
    driver(monkeypatch, version, gpus)
    with pytest.raises(DeviceError, match=rf"--gpus 4 needs 4 GPUs: {reason}.*--device cpu"):
        check_launch(spec, 4)
    check_launch("cpu", 4)


def test_as_many_ranks_as_gpus_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    driver(monkeypatch, 12080, 4)
    check_launch("auto", 4)
    with pytest.raises(ConfigError, match="--device cuda:1: with 4 ranks"):
        check_launch("cuda:1", 4)
    with pytest.raises(DeviceError, match="--device gpu: not a device"):
        check_launch("gpu", 4)


@pytest.mark.parametrize("spec", ["auto", "cuda"])
def test_ranks_of_any_launcher_use_the_cpu_only_if_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    driver(monkeypatch, None)
    ranks: Any = SimpleNamespace(rank=1, world=4, local_rank=1)
    with pytest.raises(DeviceError, match=r"4 ranks need 4 GPUs: no NVIDIA .* --device cpu asks"):
        choose_rank_device(spec, ranks)
    assert isinstance(choose_rank_device("cpu", ranks).device, CPU)


class Machine(CPU):
    """A CPU whose machine has so much memory left."""

    def __init__(self, free: int | None) -> None:
        self.free = free

    def free_bytes(self) -> int | None:
        return self.free


def test_ranks_on_the_cpu_share_the_memory_of_their_host() -> None:
    """Each looks at another moment; the least that one of them sees is shared by all."""
    shares = run_ranks(4, lambda ranks: free_memory(Machine(8000 - ranks.rank), ranks))
    assert shares == [(7997 // 4, 4)] * 4
    assert run_ranks(2, lambda ranks: free_memory(Machine(None), ranks)) == [(None, 1)] * 2
    assert free_memory(Machine(8000), ONE_RANK) == (8000, 1)


def test_the_host_that_has_least_decides_for_all_ranks() -> None:
    seen = [[["a"], 900], [["b"], 800], [["b"], 620], [["a"], 910], [["c"], 320]]
    ranks: Any = SimpleNamespace(rank=1, world=5, all_gather_object=lambda _: seen)
    assert free_memory(Machine(800), ranks) == (310, 2)


def test_a_gpu_is_not_shared_and_the_fullest_one_decides() -> None:
    """All ranks must plan the same batch."""

    def plan(ranks: Any) -> Any:
        gpu: Any = SimpleNamespace(is_gpu=True, free_bytes=lambda: 500 + ranks.rank)
        return free_memory(gpu, ranks)

    assert run_ranks(3, plan) == [(500, 1)] * 3
