"""The device of each rank: the GPU whose number is the local rank, or the CPU in tests."""

import socket

from cupygpt.device.choose import DeviceChoice, choose_device, gpu_number
from cupygpt.device.cpu import CPU
from cupygpt.device.cuda_check import check_gpus, find_gpu
from cupygpt.device.device import Device
from cupygpt.distributed.messages import escaped
from cupygpt.distributed.ranks import Ranks, check_equal_on_ranks
from cupygpt.errors import ConfigError, DeviceError

ASK_FOR_CPU = "Ranks on the CPU are slow, and only for tests: --device cpu asks for them."


def check_launch(spec: str, count: int) -> None:
    """Raise DeviceError before --gpus starts `count` ranks that find no GPU.

    Looks at the driver only: CuPy, which takes a second to load, is the ranks' affair.
    """
    if spec == "cpu":
        return
    if gpu_number(spec) is not None:
        raise _numbered(spec, count)
    try:
        check_gpus(count)
    except DeviceError as error:
        raise DeviceError(f"--gpus {count} needs {_gpus(count)}: {error} {ASK_FOR_CPU}") from error


def choose_rank_device(spec: str, ranks: Ranks) -> DeviceChoice:
    """This rank's device for `--device`; every rank must call.

    Raises ConfigError if a GPU is named by number, or if the ranks differ in the kind of device or
    in library versions, and DeviceError if a host has more ranks than GPUs. Ranks are on the CPU
    only if it is asked for.
    """
    if ranks.world == 1:
        return choose_device(spec)
    if spec == "cpu":
        return DeviceChoice(CPU(), "asked for with --device cpu; slow, and only for tests")
    if gpu_number(spec) is not None:
        raise _numbered(spec, ranks.world)
    try:
        find_gpu(None)
    except DeviceError as error:
        raise DeviceError(
            f"{ranks.world} ranks need {_gpus(ranks.world)}: {error} {ASK_FOR_CPU}"
        ) from error
    return _gpu_of_rank(ranks)


def free_memory(device: Device, ranks: Ranks) -> tuple[int | None, int]:
    """The bytes that each rank may allocate on its device, and how many ranks share a device.

    All ranks get the same figures, those of the rank that has least: they must plan the same batch.
    A GPU belongs to one rank. Ranks on the CPU share the memory of their host in equal parts; all
    look at it before one of them allocates anything. Every rank must call.
    """
    free = device.free_bytes()
    if ranks.world == 1:
        return free, 1
    host = socket.gethostname()
    owner = [host, ranks.rank] if device.is_gpu else [host]
    seen = ranks.all_gather_object([owner, free])
    shares = []
    for where, bytes_left in seen:
        sharing = sum(other == where for other, _ in seen)
        if bytes_left is not None:
            shares.append((bytes_left // sharing, sharing))
    return min(shares, default=(None, 1))


def _gpus(count: int) -> str:
    return "a GPU" if count == 1 else f"{count} GPUs"


def _numbered(spec: str, world: int) -> ConfigError:
    return ConfigError(
        f"--device {spec}: with {world} ranks, each takes the GPU that has its number on "
        f"the host. Use --device cuda, and select GPUs with CUDA_VISIBLE_DEVICES."
    )


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
                f"ranks {owners[where, address]} and {rank} both have GPU {escaped(address)} of "
                f"{escaped(where)}: "
                f"start at most one rank per GPU (this host shows {count})."
            )
        owners[where, address] = rank
    return DeviceChoice(CUDA(index), f"the GPU of rank {ranks.rank} on {host}")
