"""The README's commands run as they stand there, only shorter."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.data_files import shakespeare_file, use_gpt2_files

from cupygpt.training.finish import OWN_TEXT

ROOT = Path(__file__).parents[1]
SHORTER = {
    "cupygpt.train": ["-n", "4", "-v", "2", "-m", "1", "-s", "0"],
    "cupygpt.sample": ["--tokens", "5"],
}


def blocks() -> list[list[list[str]]]:
    """The README's sh blocks: each line split into words, without comments."""
    found = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [
        [shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines()]
        for block in found
    ]


def commands() -> list[list[str]]:
    """Each `python …` line of the README's sh blocks."""
    return [words for block in blocks() for words in block if words[:1] == ["python"]]


def run(words: list[str], cwd: Path, *more: str) -> None:
    shorter = SHORTER.get(words[2], []) if words[1] == "-m" else []
    words = [sys.executable, *words[1:], *shorter, *more]
    result = subprocess.run(words, cwd=cwd, capture_output=True, timeout=300, check=False)
    assert result.returncode == 0, (words, result.stderr)


def mentions(*wanted: str) -> list[list[str]]:
    return [words for words in commands() if any(part in words for part in wanted)]


def test_the_demo_and_the_users_own_text(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text() * 4
    (tmp_path / "mytext.txt").write_text(text)
    run(["python", "-m", "cupygpt.train"], tmp_path)
    for words in mentions("mytext.txt", "mytext_train.bin", "--prompt"):
        run(words, tmp_path)


def test_the_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = shakespeare_file()
    use_gpt2_files(monkeypatch)
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    wanted = mentions("tools/create_small_model.py", "tinyshakespeare", "small_model.bin")
    assert len(wanted) == 3
    for words in wanted:
        more = ["--source", str(source)] if "tinyshakespeare" in words else []
        # -b and -t as well: the CPU needs minutes for the full batch.
        more += ["-b", "2", "-t", "32"] if "small_model.bin" in words else []
        run(words, tmp_path, *more)


def test_the_demo_ends_with_the_commands_of_the_readme() -> None:
    for command in OWN_TEXT:
        assert shlex.split(command) in commands()


def test_every_command_names_a_file_that_exists() -> None:
    assert len(commands()) >= 8
    for words in commands():
        if words[1] == "-m":
            name = words[2]
            assert name == "pytest" or (ROOT / (name.replace(".", "/") + ".py")).exists(), name
        else:
            assert (ROOT / words[1]).exists(), words[1]


TEXTS = ["README.md", ".github/CONTRIBUTING.md", "cupygpt/emulator/README.md", "cuda/lab/README.md"]


@pytest.mark.parametrize("name", TEXTS)
def test_every_path_in_a_text_exists(name: str) -> None:
    text = (ROOT / name).read_text()
    folders = "|".join(["cupygpt", "cuda", "tests", "tools", r"\.github", r"\.ci"])
    paths = re.findall(rf"`((?:{folders})/[\w./]*)`", text)
    paths += re.findall(r"\]\((\.?\w[\w./]*)\)", text)
    planned = {path for path in paths if "swish" in path}  # the example of CONTRIBUTING
    missing = {path for path in paths if not (ROOT / path).exists()} - planned
    assert paths
    assert not missing, missing


def test_the_readme_shows_every_room() -> None:
    text = (ROOT / "README.md").read_text()
    shown = set(re.findall(r"^\| `([\w/]+)/` \|", text, re.MULTILINE))
    rooms = {"cupygpt", "cuda", "tests", "tools"}
    rooms |= {file.parent.relative_to(ROOT).as_posix() for file in ROOT.glob("cupygpt/**/*.py")}
    rooms |= {file.parent.relative_to(ROOT).as_posix() for file in ROOT.glob("cuda/*/*.cu*")}
    assert rooms <= shown, rooms - shown


def lines_of_ci() -> list[list[str]]:
    """Each line of .ci/run, split into words, without `--quiet`."""
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    return [[word for word in line.split() if word != "--quiet"] for line in lines]


def test_ci_runs_the_test_commands_of_the_readme() -> None:
    (block,) = [block for block in blocks() if ["python", "-m", "pytest"] in block]
    assert len(block) > 1
    in_ci = [shlex.split(" ".join(words)) for words in lines_of_ci() if words[:1] != ["#"]]
    positions = [in_ci.index(words) for words in block]
    assert positions == sorted(positions)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_ci_checks_what_a_commit_checks() -> None:
    """The hooks of .pre-commit-config.yaml mend files; .ci/run only looks at them."""
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert len(hooks) >= 4
    for hook in hooks:
        words = [word for word in hook.split() if not word.startswith("-")]
        assert any(set(words) <= set(line) for line in lines_of_ci()), hook
