"""The limits of containers count, as files of control groups that a test writes."""

import subprocess
import sys
from pathlib import Path

import pytest

from cupygpt.device import container, cpu, cpu_threads

MIB = 1 << 20


class Groups:
    """A made-up /proc/self and /sys/fs/cgroup."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mounts: list[str] = []
        self.groups: list[str] = []

    def mount(self, name: str, kind: str, *, root: str = "/", group: str = "/") -> Path:
        """A file system of control groups: `name` is its controllers, empty for version 2."""
        place = self.folder / (name or "unified")
        place.mkdir()
        self.mounts.append(f"33 31 0:30 {root} {place} rw,relatime - {kind} {kind} rw,{name}\n")
        self.groups.append(f"{len(self.groups) + 1 if name else 0}:{name}:{group}\n")
        (self.folder / "mountinfo").write_text(
            "".join(["1 0 0:1 / / rw - ext4 a b\n", *self.mounts])
        )
        (self.folder / "cgroup").write_text("".join(self.groups))
        return place


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    monkeypatch.setattr(container, "PROCESS", tmp_path)
    return Groups(tmp_path)


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".", 1)).write_text(f"{text}\n")


def test_without_groups_there_is_no_limit(groups: Groups) -> None:
    assert container.memory_left_bytes() is None
    assert container.cpu_limit() is None


def test_version_2(groups: Groups) -> None:
    """In a container, its own group is the root. The page cache counts as free."""
    place = groups.mount("", "cgroup2")
    stat = f"anon {90 * MIB}\ninactive_file {6 * MIB}\nactive_file {4 * MIB}"
    write(place, memory__max=300 * MIB, memory__high="max", memory__current=100 * MIB)
    write(place, memory__stat=stat, cpu__max="150000 100000")
    assert container.memory_left_bytes() == 210 * MIB
    assert container.cpu_limit() == 1.5


def test_the_smallest_limit_of_all_groups_around_counts(groups: Groups) -> None:
    """As in a job of Slurm, where the job has a limit and the step has none."""
    place = groups.mount("", "cgroup2", group="/slurm/job_7/step_0")
    job = place / "slurm" / "job_7"
    write(place / "slurm", memory__max="max", memory__current=900 * MIB, cpu__max="max 100000")
    write(job, memory__max=800 * MIB, memory__current=500 * MIB, cpu__max="300000 100000")
    write(job / "step_0", memory__max="max", memory__high=700 * MIB, memory__current=20 * MIB)
    assert container.memory_left_bytes() == 300 * MIB
    write(job / "step_0", memory__high=100 * MIB)
    assert container.memory_left_bytes() == 80 * MIB
    assert container.cpu_limit() == 3.0


@pytest.mark.parametrize(
    ("root", "group", "inside"),
    [("/docker/1f", "/docker/1f", ""), ("/", "/docker/1f", "docker/1f"), ("/", "/../..", "")],
)
def test_version_1(groups: Groups, root: str, group: str, inside: str) -> None:
    """Docker shows a container its own group as the root, with the name that it has outside."""
    memory = groups.mount("memory", "cgroup", root=root, group=group) / inside
    write(memory, memory__limit_in_bytes=256 * MIB, memory__usage_in_bytes=64 * MIB)
    write(memory, memory__stat=f"inactive_file 1\ntotal_inactive_file {8 * MIB}")
    cpus = groups.mount("cpu,cpuacct", "cgroup", root=root, group=group) / inside
    write(cpus, cpu__cfs_quota_us=250000, cpu__cfs_period_us=100000)
    assert container.memory_left_bytes() == 200 * MIB
    assert container.cpu_limit() == 2.5


def test_groups_of_version_1_without_limits(groups: Groups) -> None:
    memory = groups.mount("memory", "cgroup")
    write(memory, memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=64 * MIB)
    cpus = groups.mount("cpu", "cgroup")
    write(cpus, cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    assert (container.memory_left_bytes() or 0) > 1 << 60
    assert container.cpu_limit() is None
    assert 0 < (cpu.available_memory_bytes() or 0) < 1 << 50


def test_a_group_that_uses_more_than_its_limit_has_nothing_left(groups: Groups) -> None:
    write(groups.mount("", "cgroup2"), memory__max=10 * MIB, memory__current=11 * MIB)
    assert container.memory_left_bytes() == 0


@pytest.mark.parametrize("text", ["", "max", "x 100000", "-1"])
def test_what_cannot_be_read_is_no_limit(groups: Groups, text: str) -> None:
    write(groups.mount("", "cgroup2"), memory__max=text, memory__current=1, cpu__max=text)
    assert container.memory_left_bytes() is None
    assert container.cpu_limit() is None


def test_the_memory_that_a_container_leaves_counts_as_free(groups: Groups) -> None:
    write(groups.mount("", "cgroup2"), memory__max=90 * MIB, memory__current=30 * MIB)
    assert cpu.CPU().free_bytes() == 60 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's figures")
def test_what_ulimit_leaves_counts_as_free() -> None:
    program = (
        "import resource\n"
        "from cupygpt.device.cpu import CPU\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        "print(CPU().free_bytes())\n"
    )
    command = [sys.executable, "-c", program]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert 0 < int(out) < 3 << 30


@pytest.mark.parametrize(
    ("limit", "cores"), [(None, 8), (0.2, 1), (1.0, 1), (1.5, 2), (3.0, 3), (64.0, 8)]
)
def test_the_cores_that_a_container_may_use(
    monkeypatch: pytest.MonkeyPatch, limit: float | None, cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cpu_threads, "cpu_limit", lambda: limit)
    assert cpu_threads.num_cores.__wrapped__() == cores
