"""The device of each rank: GPU number `local_rank` of its host, or the CPU in tests."""

import socket

from cupygpt.device.choose import DeviceChoice, choose_device, find_device
from cupygpt.device.cpu import CPU
from cupygpt.distributed.ranks import Ranks, check_equal_on_ranks
from cupygpt.errors import ConfigError, DeviceError


def choose_rank_device(spec: str, ranks: Ranks) -> DeviceChoice:
    """Device of this rank for `--device`; every rank must call.

    Raises ConfigError for a GPU named by number, DeviceError where there are more ranks than GPUs
    on a host, and ConfigError where ranks differ in kind of device or versions of the libraries.
    """
    if ranks.world == 1:
        return choose_device(spec)
    if spec.startswith("cuda:"):
        raise ConfigError(
            f"--device {spec}: with {ranks.world} ranks each takes the GPU of its number on the "
            f"host. Use --device cuda, and CUDA_VISIBLE_DEVICES to choose among GPUs."
        )
    index, reason = find_device(spec)
    if index is not None:
        return _own_gpu(ranks)
    check_equal_on_ranks(ranks, "devices", {"device": "cpu"})
    return DeviceChoice(CPU(), f"{reason}; ranks on the CPU are for tests, and slow")


def _own_gpu(ranks: Ranks) -> DeviceChoice:
    import cupy

    from cupygpt.device.cuda_check import find_gpu

    count, host = int(cupy.cuda.runtime.getDeviceCount()), socket.gethostname()
    # A launcher may show each rank a GPU of its own, which then is number 0 to everyone.
    index = ranks.local_rank if count > 1 else 0
    if index >= count:
        raise DeviceError(
            f"this rank is number {ranks.local_rank} on {host}, which shows {count} GPUs "
            f"(0 to {count - 1}). Start at most {count} ranks there."
        )
    from cupygpt.device.cuda import CUDA
    from cupygpt.distributed.nccl import identity, versions

    find_gpu(index)
    check_equal_on_ranks(ranks, "devices", {"device": "cuda", **versions()})
    owners: dict[tuple[str, str], int] = {}
    for rank, (where, address) in enumerate(ranks.all_gather_object([host, identity(index)])):
        if (where, address) in owners:
            raise DeviceError(
                f"ranks {owners[where, address]} and {rank} both have GPU {address} of {where}: "
                f"start at most one rank per GPU (this host shows {count})."
            )
        owners[where, address] = rank
    return DeviceChoice(CUDA(index), f"the GPU of rank {ranks.rank} on {host}")
