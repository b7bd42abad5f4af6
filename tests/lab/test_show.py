"""The report of a rung, for people and for programs."""

import json

import pytest

from cupygpt.emulator.compiler import missing_toolchain
from cupygpt.lab.__main__ import main
from cupygpt.lab.ladders import LADDERS
from cupygpt.lab.rung_counts import rung_counts

pytestmark = pytest.mark.skipif(bool(missing_toolchain()), reason=str(missing_toolchain()))


def test_strides_are_those_of_the_sizes_that_are_shown() -> None:
    (counts,) = rung_counts(LADDERS["matmul"].rungs[0], "float32")
    strides = {access.array: access.stride for access in counts.accesses}
    assert strides == {"a": 0, "b": 2048 * 4, "out": 4}


def test_both_reports_of_a_rung_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "column_sum", "2", "--gpu", "a100"]) == 0
    text = capsys.readouterr().out
    assert main(["show", "column_sum", "2", "--gpu", "a100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dtype"] == "float32"
    assert (found["ladder"], found["rung"]) == ("column_sum", 2)
    assert "/lab/column_sum/2_" in found["file"]
    (launch,) = found["launches"]
    assert f"\n{launch['kernel']} " in text
    assert "estimate for an A100: " in text
    assert f"limited by {launch['estimate']['limit']}" in text
    assert launch["estimate"]["gpu"] == "A100"
    assert launch["total"]["global_loads"]["requests"] > 0
    assert all(f"\n{line['line']:4d}  " in text for line in launch["lines"])
