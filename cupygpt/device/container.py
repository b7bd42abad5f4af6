"""The limits that Linux sets a group of processes: those of a container, or of a job of Slurm.

A process that takes more memory than its group may have is killed, however much the machine has.
Groups are nested and each may have a limit, so the smallest one counts. Both versions of control
groups are read; the kernel's documents cgroup-v1/memory.rst and cgroup-v2.rst describe the files.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

PROCESS = Path("/proc/self")


def memory_left_bytes() -> int | None:
    """What this process and its group may still allocate; None without a limit.

    Files in the page cache count as free: the kernel drops them when memory runs short.
    """
    left = []
    for folder in _folders("memory", version=2):
        limits = [_number(folder / name) for name in ("memory.max", "memory.high")]
        left += [_left(limit, folder, "memory.current", "") for limit in limits]
    for folder in _folders("memory", version=1):
        limit = _number(folder / "memory.limit_in_bytes")
        left.append(_left(limit, folder, "memory.usage_in_bytes", "total_"))
    return min((value for value in left if value is not None), default=None)


def address_space_left_bytes() -> int | None:
    """What `ulimit -v` lets this process still allocate; None without such a limit."""
    if sys.platform == "win32":
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _text(PROCESS / "statm").partition(" ")[0]
    if limit == resource.RLIM_INFINITY or not pages.isdecimal():
        return None
    return max(0, limit - int(pages) * resource.getpagesize())


def cpu_limit() -> float | None:
    """The cores' worth of time that this process and its group may use; None without a limit."""
    limits = []
    for folder in _folders("cpu", version=2):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        limits.append(_ratio(quota, period))
    for folder in _folders("cpu", version=1):
        quota, period = (_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        limits.append(_ratio(quota, period))
    return min((limit for limit in limits if limit is not None), default=None)


def _left(limit: int | None, folder: Path, used_name: str, prefix: str) -> int | None:
    """`limit` less what the group uses, its page cache not counted."""
    used = _number(folder / used_name)
    if limit is None or used is None:
        return None
    for line in _text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in (f"{prefix}inactive_file", f"{prefix}active_file") and value.isdecimal():
            used -= int(value)
    return max(0, limit - used)


def _ratio(quota: str, period: str) -> float | None:
    """Cores; None for the `max` and -1 of a group without a limit."""
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):
        return None
    return int(quota) / int(period)


def _folders(controller: str, *, version: int) -> Iterator[Path]:
    """The folder of this process's group, and of each group around it that can be seen."""
    group = _group(controller, version)
    if group is None:
        return
    for line in _text(PROCESS / "mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        fields, kind = mount.split(), system.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] != ("cgroup", "cgroup2")[version - 1]:
            continue
        if version == 1 and controller not in kind[2].split(","):
            continue
        root, place = fields[3], Path(fields[4])
        # A container often sees its own group as the root, under a name that it cannot see.
        inside = group == root or group.startswith(root.rstrip("/") + "/")
        folder = place / group[len(root) :].strip("/") if inside else place
        yield folder
        yield from (parent for parent in folder.parents if place in (parent, *parent.parents))


def _group(controller: str, version: int) -> str | None:
    """The name of this process's group for a controller."""
    for line in _text(PROCESS / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if (number == "0") if version == 2 else (controller in controllers.split(",")):
            return group
    return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    """The text of a small file of the kernel; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
