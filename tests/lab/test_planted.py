"""Planted mistakes: each gets the verdict, and the line, that it should; right kernels pass."""

from pathlib import Path

import pytest
from lab.planted import MISTAKES, WASTES, Planted, written
from lab.right_kernels import RIGHT

from cupygpt.emulator.compiler import missing_toolchain
from cupygpt.errors import LabError
from cupygpt.lab import kernel_file
from cupygpt.lab.contracts.contract import Contract
from cupygpt.lab.contracts.table import (
    COLUMN_SUM,
    GELU_FORWARD,
)
from cupygpt.lab.judge import judge
from cupygpt.lab.kernel_file import KernelFile
from cupygpt.lab.ladders import LADDERS
from cupygpt.lab.rung_counts import counted, summary

pytestmark = pytest.mark.skipif(bool(missing_toolchain()), reason=str(missing_toolchain()))


@pytest.mark.parametrize("planted", MISTAKES, ids=lambda p: f"{p.rung}-{p.verdict[:24].strip()}")
def test_a_mistake_gets_its_verdict(planted: Planted) -> None:
    file = planted.write()
    dtypes = [planted.verdict.split()[1].strip(",")] if "wrong: " in planted.verdict else []
    verdict = judge(file, planted.contract, dtypes or planted.contract.dtypes[:1])
    assert planted.verdict in verdict.message
    if planted.place:
        number = int(verdict.message.partition("line ")[2].partition(":")[0])
        assert planted.place in file.source.splitlines()[number - 1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no line says how the kernel is launched"),
        ("// lab: grid = N, block = 2048", "2048"),
        ("// lab: grid = M, block = 32", "M is unknown"),
        ("// lab: grid = 1, block = 32\n// lab: grid = 1, block = 32", "each kernel needs one"),
        ("// lab: grid = 1, block = 32, shared = 1000000", "shared memory"),
    ],
)
def test_a_wrong_launch_line_is_named(line: str, message: str) -> None:
    source = LADDERS["gelu"].rungs[0].path.read_text()
    source = "\n".join([line, *(x for x in source.splitlines() if "lab:" not in x), ""])
    with pytest.raises(LabError, match=message):
        judge(written("launch", source), GELU_FORWARD, ["float32"])


@pytest.mark.parametrize("planted", WASTES, ids=lambda p: p.rung)
def test_waste_is_named_with_its_line(planted: Planted) -> None:
    file = planted.write()
    contract = planted.contract
    assert judge(file, contract, ["float32"]).is_right
    waste = summary(counted(contract, "float32", file, contract.axes))["waste"]
    assert any(planted.verdict in line for line in waste), waste


@pytest.mark.parametrize(("contract", "name", "source"), RIGHT, ids=[x[1] for x in RIGHT])
def test_right_kernels_of_another_shape_pass(contract: Contract, name: str, source: str) -> None:
    verdict = judge(written(name.replace(" ", "_"), source), contract)
    assert verdict.is_right, verdict


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    binary, long = tmp_path / "binary.cu", tmp_path / "long.cu"
    binary.write_bytes(b"\xff\xfe")
    long.write_bytes(b" " * ((1 << 20) + 1))
    for path, message in [
        (tmp_path / "none.cu", "No such file"),
        (tmp_path, "Is a directory"),
        (binary, "byte 0: not UTF-8"),
        (long, "more than 1 MiB"),
    ]:
        with pytest.raises(LabError, match=message):
            KernelFile.read(path)


def test_an_endless_loop_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_file, "TIMEOUT_S", 1)
    source = LADDERS["column_sum"].rungs[1].path.read_text()
    file = written("endless", source.replace("n < N; n++", "n < N; n += 0"))
    assert judge(file, COLUMN_SUM, ["float32"]).message.startswith("endless loop")
