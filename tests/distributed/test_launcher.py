"""What --gpus gives to the processes that it starts; tests/runs has whole runs."""

import json
from pathlib import Path

import pytest

from cupygpt.distributed.launcher import launch
from cupygpt.distributed.launcher_env import find_rank_info

PROGRAM = """
import json, os, pathlib, sys
folder = pathlib.Path(sys.argv[1])
(folder / os.environ["RANK"]).write_text(json.dumps(dict(os.environ)))
sys.exit(int(sys.argv[2]) if os.environ["RANK"] == "1" else 0)
"""


def environments(folder: Path, count: int) -> list[dict[str, str]]:
    """The environment of each of `count` launched processes."""
    folder.mkdir()
    assert launch(["-c", PROGRAM, str(folder), "0"], count) == 0
    return [json.loads((folder / str(rank)).read_text()) for rank in range(count)]


def test_the_ranks_share_a_port_and_a_secret_that_no_other_run_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUPYGPT_PORT", "4711")  # of an outer run, like a key
    monkeypatch.setenv("CUPYGPT_KEY", "of an outer run")
    infos = [find_rank_info(environ) for environ in environments(tmp_path / "first", 2)]
    assert [info and (info.rank, info.world, info.local_rank) for info in infos] == [
        (0, 2, 0),
        (1, 2, 1),
    ]
    assert len({info and (info.port, info.key) for info in infos}) == 1
    other = find_rank_info(environments(tmp_path / "second", 2)[0])
    assert other
    assert infos[0]
    assert len({infos[0].key, other.key, "of an outer run"}) == 3
    assert len(other.key) >= 32
    assert infos[0].port != 4711


def test_the_exit_code_is_that_of_the_rank_that_failed(tmp_path: Path) -> None:
    assert launch(["-c", PROGRAM, str(tmp_path), "7"], 2) == 7
