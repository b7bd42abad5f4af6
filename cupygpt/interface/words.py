"""Errors in the words of a Python program: `overwrite=True`, where the command has --overwrite."""

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from cupygpt.errors import CupyGPTError
from cupygpt.flags.keywords import is_switch, keyword_of

_FLAGS = re.compile(r"(?<![\w-])-(?:[a-z]{1,2}|-[a-z][a-z0-9-]+)(?:/--?[a-z0-9-]+)*(?![\w-])")
"""One flag, or all names of one: -b/--batch-size."""

_RESUME = re.compile(r"--resume ([^\s,;]*[^\s,;:.])")
"""The flag with the run that it names."""

_VALUE = re.compile(r"(?<![\w-])--([a-z-]+) (N|FILE)\b")
"""A flag with its value, as in --extend N."""

_COMMAND = re.compile(r"python -m |hf download ")

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def in_python_words(text: str) -> str:
    """`text` with keywords for the flags; a command, and what follows it, stays."""
    found = _COMMAND.search(text)
    first = found.start() if found else len(text)
    before = _RESUME.sub(r'resume="\1"', text[:first])
    before = _VALUE.sub(lambda found: f"{found[1].replace('-', '_')}={found[2]}", before)
    return _FLAGS.sub(_keyword, before) + text[first:]


def speaking_python(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function, with the messages of its errors in the words of a Python program."""

    @functools.wraps(function)
    def call(*args: Parameters.args, **keywords: Parameters.kwargs) -> Result:
        try:
            return function(*args, **keywords)
        except CupyGPTError as error:
            error.args = (in_python_words(str(error)),)
            raise

    return call


def _keyword(found: "re.Match[str]") -> str:
    flag = found[0].rpartition("/")[2]
    name = keyword_of(flag)
    if name is None:
        return flag.lstrip("-").replace("-", "_") if flag.startswith("--") else found[0]
    return f"{name}=True" if is_switch(name) else name
