"""The device of each rank: the GPU whose number is the local rank, or the CPU in tests."""

import socket

from cupygpt.device.choose import DeviceChoice, choose_device, find_device
from cupygpt.device.cpu import CPU
from cupygpt.device.cuda_check import find_gpu
from cupygpt.distributed.ranks import Ranks, check_equal_on_ranks
from cupygpt.errors import ConfigError, DeviceError


def choose_rank_device(spec: str, ranks: Ranks) -> DeviceChoice:
    """This rank's device for `--device`; every rank must call.

    Raises ConfigError if a GPU is named by number, or if the ranks differ in the kind of device or
    in library versions, and DeviceError if a host has more ranks than GPUs.
    """
    if ranks.world == 1:
        return choose_device(spec)
    if spec.startswith("cuda:"):
        raise ConfigError(
            f"--device {spec}: with {ranks.world} ranks, each takes the GPU that has its number on "
            f"the host. Use --device cuda, and select GPUs with CUDA_VISIBLE_DEVICES."
        )
    index, reason = find_device(spec)
    if index is not None:
        return _gpu_of_rank(ranks)
    check_equal_on_ranks(ranks, "devices", {"device": "cpu"})
    return DeviceChoice(CPU(), f"{reason}; several ranks on the CPU are slow, and only for tests")


def _gpu_of_rank(ranks: Ranks) -> DeviceChoice:
    """This rank's own GPU. Raises ConfigError and DeviceError; see `choose_rank_device`."""
    import cupy

    from cupygpt.device.cuda import CUDA
    from cupygpt.distributed.nccl import pci_address, versions

    count, host = int(cupy.cuda.runtime.getDeviceCount()), socket.gethostname()
    # Some launchers show each rank a single GPU, which then has number 0 on every rank.
    index = ranks.local_rank if count > 1 else 0
    if index >= count:
        raise DeviceError(
            f"this rank is number {ranks.local_rank} on {host}, which shows {count} GPUs "
            f"(0 to {count - 1}). Start at most {count} ranks there."
        )
    find_gpu(index)
    check_equal_on_ranks(ranks, "devices", {"device": "cuda", **versions()})
    owners: dict[tuple[str, str], int] = {}
    for rank, (where, address) in enumerate(ranks.all_gather_object([host, pci_address(index)])):
        if (where, address) in owners:
            raise DeviceError(
                f"ranks {owners[where, address]} and {rank} both have GPU {address} of {where}: "
                f"start at most one rank per GPU (this host shows {count})."
            )
        owners[where, address] = rank
    return DeviceChoice(CUDA(index), f"the GPU of rank {ranks.rank} on {host}")
