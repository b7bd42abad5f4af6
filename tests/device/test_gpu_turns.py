"""Tests that measure the memory of a GPU have it alone."""

import threading
from pathlib import Path

import pytest
from support.gpu import turn_on_the_gpu

pytest.importorskip("fcntl", reason="only where files can be locked as on Unix")


def test_a_test_that_needs_the_gpu_alone_waits_and_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUPYGPT_CACHE_DIR", str(tmp_path))
    order: list[str] = []

    def take(name: str, *, alone: bool) -> None:
        with turn_on_the_gpu(alone=alone):
            order.append(name)

    with turn_on_the_gpu(alone=False):
        take("beside the first", alone=False)
        waiting = threading.Thread(target=take, args=("alone",), kwargs={"alone": True})
        waiting.start()
        waiting.join(0.1)
        later = threading.Thread(target=take, args=("later",), kwargs={"alone": False})
        later.start()
        later.join(0.1)
        order.append("end of the first")
    waiting.join()
    later.join()
    assert order == ["beside the first", "end of the first", "alone", "later"]
