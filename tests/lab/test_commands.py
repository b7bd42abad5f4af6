"""The commands of the lab, as a learner calls them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cupygpt.emulator.compiler import missing_toolchain
from cupygpt.lab.__main__ import main
from cupygpt.lab.exercises.course.all import COURSE, EXERCISES
from cupygpt.lab.ladders import LADDERS
from cupygpt.performance.gpus import GPUS

needs_emulator = pytest.mark.skipif(bool(missing_toolchain()), reason=str(missing_toolchain()))

Lab = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Lab:
    """Calls a command in an empty folder; returns its exit code, stdout and stderr."""
    folder = tmp_path / "my (own) folder"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        out, err = capsys.readouterr()
        if not {"--json", "--debug", "show"} & set(arguments):
            width = max(map(len, (x for x in out.splitlines() if "/" not in x)), default=0)
            assert width <= 80, out
        return code, out, err

    return call


def answer(name: str, text: str) -> None:
    path = Path("lab") / f"{name}.cu"
    path.write_text(path.read_text().replace("= ?", f"= {text}"))


@needs_emulator
def test_an_exercise_from_start_to_solved(lab: Lab) -> None:
    code, out, _ = lab("start", "warm_up")
    assert code == 0
    assert out.startswith("lab/warm_up_copy.cu: predict\n32 neighbouring lanes")
    code, out, _ = lab("check", "warm_up")
    assert code == 1
    assert out.startswith("the answer is still ?")
    assert out.endswith("A hint: python -m cupygpt.lab check warm_up_copy --hint\n")
    answer("warm_up_copy", "4")
    assert "warm_up_copy (not checked)" in lab()[1]
    code, out, _ = lab("check", "lab/warm_up_copy.cu")
    assert code == 0
    assert out == (
        "solved: sectors per load = 4\nNext: python -m cupygpt.lab start warm_up_packs\n"
    )
    assert "warm_up       1 of 8 solved" in lab()[1]
    code, out, _ = lab("check", "warm_up")
    assert code == 0
    assert out == ("warm_up: 1 of 8 solved\nNext: python -m cupygpt.lab start warm_up_packs\n")
    assert lab("start", "warm_up")[1].startswith("lab/warm_up_packs.cu")
    Path("lab/mine.cu").touch()
    code, out, _ = lab("check")
    assert code == 1
    assert out.splitlines() == [
        "warm_up_copy: solved: sectors per load = 4",
        "warm_up_packs: the answer is still ?: write a number into the line `// answer:`",
        "lab/mine.cu: not the file of an exercise",
        f"1 of 2 solved, of {len(EXERCISES)} exercises",
    ]
    Path("lab/warm_up_copy.cu").write_text(Path("lab/warm_up_copy.cu").read_text() + "\n")
    assert "warm_up_copy (not checked)" in lab()[1]


def test_hints_come_one_after_the_other(lab: Lab) -> None:
    lab("start", "layernorm_2")
    hints = EXERCISES["layernorm_2"].hints
    for number in range(1, len(hints) + 1):
        out = lab("check", "layernorm", "2", "--hint")[1]
        assert out.startswith(f"hint {number} of {len(hints)}: {hints[number - 1][:40]}")
    assert lab("check", "--hint", "layernorm_2")[1].count("hint ") == len(hints)
    assert lab("check", "layernorm_2", "--hint", "2")[1].startswith("hint 2 of 3")
    Path("lab/.hints.json").write_text("[1")
    assert lab("check", "layernorm_2", "--hint")[1].startswith("hint 1 of 3")


def test_the_list_names_every_exercise_and_runs_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    for exercise in COURSE["gelu"]:
        lab("start", exercise.name)
    monkeypatch.setenv("PATH", "")
    code, out, _ = lab()
    assert code == 0
    words = set(out.replace(",", " ").split())
    assert set(EXERCISES) <= words
    assert out.count("(not checked)") == len(COURSE["gelu"])
    assert "Nothing can be judged here" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ladder", "foo"), f"there is no ladder foo. There are: {', '.join(LADDERS)}."),
        (("ladder", "gelu", "--gpu", "GTX 280"), f"only of {', '.join(GPUS)}."),
        (("ladder", "gelu", "--measure"), "--measure needs a GPU"),
        (("show", "gelu", "5"), "gelu has the rungs 1 to 4, not 5."),
        (("start", "foo"), "there is no exercise foo."),
        (("start", "gelu_9"), "There are: gelu_2, gelu_3,"),
        (("check",), "no exercise has been started here: python -m cupygpt.lab start warm_up"),
        (("check", "gelu_2"), "is not there: python -m cupygpt.lab start gelu_2"),
        (("check", "my.cu"), "try my.cu --as OP"),
        (("check", "--hint"), "a hint for which exercise?"),
        (("try", "none.cu", "--as", "adamw"), "none.cu: No such file or directory."),
        (("try", "none.cu", "--as", "foo"), "there is no op foo."),
        (("try", "none.cu"), "for which op is the kernel?"),
        (("try", "none.cu", "--as", "adamw", "--train", "0"), "at least one step"),
        (("try", __file__, "--as", "adamw", "--dtype", "bf16"), "judged in float32, not in bf"),
    ],
)
def test_what_cannot_be_done_gets_one_message(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("cupygpt.lab.__main__.missing_toolchain", lambda: None)
    code, out, err = lab(*arguments)
    assert code == 2
    assert not out
    assert err.startswith("error: ")
    assert message in err


@pytest.mark.parametrize("arguments", [("ladder", "gelu"), ("check", "gelu_2"), ("try", "x.cu")])
def test_without_a_compiler_one_message_says_what_to_install(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    lab("start", "gelu_2")
    monkeypatch.setenv("PATH", "")
    code, out, err = lab(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "apt-get install g++" in err


def test_started_exercises_stay(lab: Lab) -> None:
    lab("start", "gelu_2")
    answer = Path("lab/gelu_2.cu")
    answer.write_text("mine")
    code, _, err = lab("start", "gelu_2")
    assert code == 2
    assert "is there already" in err
    assert answer.read_text() == "mine"
    assert lab("start", "gelu_2", "--again")[0] == 0
    assert "HOLE(1)" in answer.read_text()


def test_the_parameters_of_an_op_are_shown_as_a_kernel_declares_them(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cupygpt.lab.__main__.missing_toolchain", lambda: None)
    err = lab("try", "none.cu")[2]
    assert "\n    (float* dbias, const floatX* dout, int N, int OC)\n" in err
    assert "(floatX* out, const floatX* inp, long long N)" in err


def test_a_ladder_that_is_climbed_says_what_comes_next(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cupygpt.lab.__main__.is_solved", lambda exercise: True)
    code, out, _ = lab("start", "matmul")
    assert code == 0
    following = next(iter(COURSE["attention"])).name
    assert out == (
        f"All exercises of matmul are solved.\nNext: python -m cupygpt.lab start {following}\n"
    )
    assert not Path("lab").exists()


def test_where_nothing_can_be_written_the_message_says_so(lab: Lab) -> None:
    Path("lab").write_text("a file")
    code, _, err = lab("start", "gelu_2")
    assert code == 2
    assert "lab/gelu_2.cu cannot be written (" in err


@needs_emulator
def test_a_ladder_and_a_rung_for_people_and_for_programs(lab: Lab) -> None:
    code, out, _ = lab("ladder", "adamw", "--gpu", "rtx4090")
    assert code == 0
    assert "estimate for RTX 4090" in out
    assert "128-bit accesses (cupygpt)" in out
    found = json.loads(lab("ladder", "adamw", "--json")[1])
    assert [rung["rung"] for rung in found["rungs"]] == [1, 2]
    assert set(found["rungs"][0]["estimates"]) == set(GPUS)
    out = lab("show", "adamw", "1")[1]
    assert "estimate for an H100" in out
    assert "This rung takes" not in out
    assert "\nThis rung takes float only.\n" in lab("show", "adamw", "1", "--dtype", "bf16")[1]
    found = json.loads(lab("show", "adamw", "1", "--json")[1])
    assert found["launches"][0]["estimate"]["gpu"] == "H100"
    assert "Read it there" in lab("show", "matmul", "8")[1]


@needs_emulator
def test_a_kernel_of_ones_own_passes_the_gates_and_is_named_where_it_fails(lab: Lab) -> None:
    source = LADDERS["adamw"].rungs[0].path.read_text()
    Path("own.cu").write_text(source)
    code, out, _ = lab("try", "own.cu", "--as", "adamw", "--train", "1")
    assert code == 0
    assert [line[:12].strip() for line in out.splitlines() if line[0] != " "] == [
        *("1 compiles", "2 no faults", "3 values", "4 speed", "5 training"),
    ]
    found = json.loads(lab("try", "own.cu", "--as", "adamw", "--json")[1])
    assert [gate["passed"] for gate in found["gates"]] == [True] * 4
    assert set(found["gates"][-1]["figures"]) == {"kernel", "own"}
    Path("beside.cuh").write_text("#define LIMIT N")
    Path("own.cu").write_text('#include "beside.cuh"\n' + source.replace("i >= N", "i >= LIMIT"))
    assert lab("try", "own.cu", "--as", "adamw")[0] == 0
    Path("beside.cuh").write_text("#define LIMIT (N + 1)")
    code, out, _ = lab("try", "own.cu", "--as", "adamw")
    assert code == 1
    assert out.splitlines()[1].startswith("2 no faults  no: out of bounds in line ")
    Path("own.cu").write_text(source.replace("(i >= N)", "(i >= N"))
    number = source[: source.index("(i >= N)")].count("\n") + 1
    code, out, _ = lab("try", "own.cu", "--as", "adamw")
    assert code == 1
    assert out.startswith(f"1 compiles   no: line {number}: expected")


@needs_emulator
def test_parameters_in_another_order_are_named_before_the_kernel_runs(lab: Lab) -> None:
    source = LADDERS["matmul"].rungs[0].path.read_text()
    order = "float* out, const float* a, const float* b, int M"
    assert order in source
    Path("own.cu").write_text(
        source.replace(order, "const float* a, const float* b, float* out, int M")
    )
    code, _, err = lab("try", "own.cu", "--as", "matmul", "--dtype", "fp32")
    assert code == 2
    assert "op's order, which is out, a, b, M, N, K; that of matmul_1 is a, b, out, M, N, K" in err


@needs_emulator
def test_a_fault_and_an_empty_grid_name_the_sizes(lab: Lab) -> None:
    source = LADDERS["matmul"].rungs[0].path.read_text()
    Path("own.cu").write_text(source.replace("ceil_div(M, 8)", "M // 8"))
    assert "grid is (1, 0) where M 1, N 8, K 8" in lab("try", "own.cu", "--as", "matmul")[2]
    Path("own.cu").write_text(source.replace("m >= M || n >= N", "m >= M"))
    code, out, _ = lab("try", "own.cu", "--as", "matmul")
    assert code == 1
    assert "the call has float32, M 1, N 8, K 8\n" in out


@needs_emulator
def test_a_long_complaint_of_the_compiler_shows_the_own_lines_first(lab: Lab) -> None:
    source = LADDERS["layernorm"].rungs[3].path.read_text()
    wrong = "    load_pack(1, inp);\n" * 8
    Path("own.cu").write_text(source.replace("    const int n", wrong + "    const int n", 1))
    code, out, _ = lab("try", "own.cu", "--as", "layernorm_forward")
    assert code == 1
    assert len(out.splitlines()) <= 16
    assert "more lines: python -m cupygpt.lab --debug" in out
    assert "lib/packs.cuh" not in out
    everything = lab("--debug", "try", "own.cu", "--as", "layernorm_forward")[1]
    assert "lib/packs.cuh" in everything
    assert "more lines" not in everything
