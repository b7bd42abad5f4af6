import os
import shlex
import subprocess

import pytest

from cupygpt.console.paste import shell_command

FOLDERS = [
    "runs/x",
    "my run",
    "a&b",
    "run (2)",
    "[new]",
    "it's",
    "$HOME",
    "a;b",
    "*",
    "~/x",
    "日本",
]


@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX")
def test_a_printed_command_can_be_pasted() -> None:
    command = shell_command(["printf", "%s\\n", *FOLDERS])
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == FOLDERS
    assert shlex.split(command)[2:] == FOLDERS
    assert shell_command(["--resume", "runs/x_1.0-a"]) == "--resume runs/x_1.0-a"


def test_windows_gets_double_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cupygpt.console.paste.os.name", "nt")
    assert shell_command([r"C:\runs\x-1", "my run", "a&b", "(2)", "it's"]) == (
        r"""C:\runs\x-1 "my run" "a&b" "(2)" "it's" """.strip()
    )
