"""An exercise: a rung with something missing, broken or asked for, and what counts as solved.

Its file is made from the rung whenever it is started, so it cannot fall behind the rung. The rung's
lines are edited by their text; a test holds each edit to exactly one place.
"""

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field

from cupygpt.errors import LabError
from cupygpt.lab.ladders import Rung

KINDS = ("predict", "fill", "repair", "improve")


@dataclass(frozen=True)
class Hole:
    """A piece of a rung that is cut out: `text`, in the one place where `within` stands."""

    within: str
    text: str


@dataclass(frozen=True)
class WrongAnswer:
    """What people typically write, and the beginning or a part of the verdict that it must get."""

    answer: Mapping[int, str]
    """The text for each hole (fill), or {1: the answer} (predict); empty: the file as started."""
    verdict: str


@dataclass(frozen=True)
class Goal:
    """A limit on a counter: `sectors per load` <= 4.5; see goals.py for the counters."""

    counter: str
    at_most: float


@dataclass(frozen=True)
class Exercise:
    """One exercise. `rung` is the solution of fill and repair, the start of improve."""

    name: str
    kind: str
    rung: Rung
    question: str
    """What to do; it stands in the file, before the code."""
    hints: tuple[str, ...]
    """Shown one after the other."""
    holes: tuple[Hole, ...] = ()
    """Of fill; numbered from 1."""
    faults: tuple[tuple[str, str], ...] = ()
    """Of repair: what is replaced by what, each in exactly one place of the rung."""
    goals: tuple[Goal, ...] = ()
    """What the counters must show; of predict, the counter that is asked for."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """The sizes at which goals are counted; by default the last awkward ones of the op."""
    wrong: tuple[WrongAnswer, ...] = ()

    @property
    def file_name(self) -> str:
        """Of the learner's file."""
        return f"{self.name}.cu"

    def start(self) -> str:
        """The learner's file as it is when it is started."""
        return self._header() + self._code({})

    def solution(self) -> str:
        """The same with all holes filled and all faults repaired: the rung behind the question."""
        return self._header() + self.rung.path.read_text()

    def answered(self, answer: Mapping[int, str]) -> str:
        """The same with some holes filled; for tests of typical wrong answers."""
        if self.kind == "predict":
            return self.start().replace("= ?", f"= {answer[1]}")
        return self._header() + self._code(answer)

    def _header(self) -> str:
        lines = [f"// Exercise {self.name}: {self.kind}.", "//"]
        lines += [f"// {line}" for line in textwrap.wrap(self.question, 96)]
        if self.kind == "predict":
            lines.append(f"// answer: {self.goals[0].counter} = ?")
        lines += [f"// Then: python -m cupygpt.lab check {self.name}", "//", ""]
        return "\n".join(lines)

    def _code(self, answer: Mapping[int, str]) -> str:
        source = self.rung.path.read_text()
        if self.kind == "predict":  # its comments would give the answer away
            return _without_comments(source)
        for old, new in self.faults:
            source = _replaced(source, old, new)
        for number, hole in enumerate(self.holes, 1):
            filled = answer.get(number, f"HOLE({number})")
            source = _replaced(source, hole.within, _replaced(hole.within, hole.text, filled))
        return source


def _replaced(source: str, old: str, new: str) -> str:
    if source.count(old) != 1:
        raise LabError(f"the text of an exercise stands {source.count(old)} times: {old}")
    return source.replace(old, new)


_COMMENT = re.compile(r"//[^\n]*")
_REMARK = re.compile(r"[ \t]*//(?! lab:)[^\n]*")
_HOLE = re.compile(r"\bHOLE\((\d+)\)")
_ANSWER = re.compile(r"^// answer: (?P<counter>.+?) = (?P<text>.*)$", re.MULTILINE)


def _without_comments(source: str) -> str:
    """The code, and its lines `// lab:`."""
    lines = [(line, _REMARK.sub("", line)) for line in source.splitlines(keepends=True)]
    return "".join(code for line, code in lines if code.strip() or not line.strip())


def empty_hole(source: str) -> str:
    """`hole 2 in line 11 is still empty`, or nothing if all are filled."""
    code = _COMMENT.sub(lambda match: " " * len(match[0]), source)
    match = _HOLE.search(code)
    if match is None:
        return ""
    return f"hole {match[1]} in line {code.count(chr(10), 0, match.start()) + 1} is still empty"


def predicted(source: str) -> float | None:
    """The number behind `// answer:`; None while it is a question mark.

    Raises LabError where the line is gone or holds no number.
    """
    match = _ANSWER.search(source)
    if match is None:
        raise LabError("the line `// answer: … = ?` is gone; `start --again` writes it anew.")
    text = match["text"].strip()
    if text == "?":
        return None
    try:
        return float(text)
    except ValueError:
        raise LabError(f"`{text}` is no number: write one, such as 4 or 0.5.") from None
