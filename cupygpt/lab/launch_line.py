"""The launch of a kernel, written as a comment in its file.

    // lab: grid = (ceil_div(N, 32), ceil_div(M, 8)), block = (32, 8), shared = 4 * C, ROWS = 2

Each line launches one kernel of the file, in the file's order. `grid` and `block` must be there;
`shared` is dynamic shared memory in bytes, and a name in capitals that is no size of the op becomes
-DNAME=VALUE. A line without a grid, `// lab: scores = N * C`, gives the kernels a scratch array
`scores` of so many floats.

An expression has whole numbers, names of sizes, + - * // %, ceil_div, min, max, and tuples. It is
read as a syntax tree and computed here: nothing in it is ever executed.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cupygpt.errors import LabError
from cupygpt.kernels.launch import Launch, ceil_div

_LINE = re.compile(r"^[ \t]*//[ \t]*lab:(.*)$", re.MULTILINE)
_OPERATORS: dict[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., int]] = {"ceil_div": ceil_div, "min": min, "max": max}
_LARGEST = 2**40
"""No size of a launch is larger; so an expression cannot eat the memory."""


@dataclass(frozen=True)
class LaunchLine:
    """One line `// lab:`; `settings` are its expressions by name."""

    line: int
    text: str
    settings: Mapping[str, ast.expr]

    def launch(self, sizes: Mapping[str, int]) -> Launch:
        """The launch for these sizes. Raises LabError for what cannot be computed."""
        values = {name: self._value(name, sizes) for name in self.settings}
        own = {name: self._number(name, values[name]) for name in values if name.isupper()}
        shared = self._number("shared", values.get("shared", 0))
        return Launch(
            self._dimensions("grid", values["grid"], sizes),
            self._dimensions("block", values["block"], sizes),
            shared_bytes=shared,
            defines=own,
        )

    @property
    def is_launch(self) -> bool:
        """Whether it launches a kernel; else it names scratch arrays."""
        return "grid" in self.settings

    def number(self, name: str, sizes: Mapping[str, int]) -> int:
        """The value of one setting that is a single number."""
        return self._number(name, self._value(name, sizes))

    def _value(self, name: str, sizes: Mapping[str, int]) -> Any:
        try:
            return _compute(self.settings[name], sizes)
        except RecursionError:
            raise LabError(f"line {self.line}: {name} is too long an expression.") from None
        except (ValueError, ZeroDivisionError) as error:
            raise LabError(f"line {self.line}, {name} of `// lab:{self.text}`: {error}.") from None

    def _number(self, name: str, value: Any) -> int:
        if isinstance(value, int) and value >= 0:
            return value
        raise LabError(f"line {self.line}: {name} is {value}, not a whole number of 0 or more.")

    def _dimensions(self, name: str, value: Any, given: Mapping[str, int]) -> tuple[int, ...]:
        sizes = value if isinstance(value, tuple) else (value,)
        if len(sizes) > 3 or any(not isinstance(n, int) or n < 1 for n in sizes):
            words = ", ".join(f"{word} {size}" for word, size in given.items())
            raise LabError(
                f"line {self.line}: {name} is {value} where {words}, but must be one to three "
                "numbers of 1 or more."
            )
        return sizes


def launch_lines(source: str) -> list[LaunchLine]:
    """All lines `// lab:` of a kernel file, in its order.

    Raises LabError for one that cannot be read.
    """
    return [
        _parse(source.count("\n", 0, match.start()) + 1, match[1].rstrip())
        for match in _LINE.finditer(source)
    ]


def _parse(line: int, text: str) -> LaunchLine:
    where = f"line {line}, `// lab:{text if len(text) <= 80 else text[:77] + '...'}`"
    example = "Such a line is `// lab: grid = ceil_div(N, 256), block = 256`."
    try:
        call = ast.parse(f"launch({text})", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise LabError(f"{where} cannot be read. {example}") from None
    if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
        raise LabError(f"{where}: each part must be NAME = EXPRESSION. {example}")
    settings = {str(keyword.arg): keyword.value for keyword in call.keywords}
    if len(settings) < len(call.keywords):
        raise LabError(f"{where} gives a name twice.")
    if not settings:
        raise LabError(f"{where} is empty. {example}")
    if not _KNOWN & set(settings):  # scratch arrays
        return LaunchLine(line, text, settings)
    unknown = [n for n in settings if n not in _KNOWN and not n.isupper()]
    if unknown:
        raise LabError(
            f"{where}: {unknown[0]} is unknown. There are grid, block, shared, and names in "
            "capitals, which become constants of the file."
        )
    if not {"grid", "block"} <= set(settings):
        raise LabError(f"{where}: grid and block are both needed. {example}")
    return LaunchLine(line, text, settings)


_KNOWN = {"grid", "block", "shared"}


def _compute(node: ast.expr, sizes: Mapping[str, int]) -> Any:
    """The value of an expression: a whole number, or a tuple of them."""
    if isinstance(node, ast.Tuple):
        return tuple(_compute(item, sizes) for item in node.elts)
    value = _compute_number(node, sizes)
    if abs(value) > _LARGEST:
        raise ValueError(f"{value} is larger than any launch")
    return value


def _compute_number(node: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        if node.id not in sizes:
            known = ", ".join(sorted(sizes))
            raise ValueError(f"{node.id} is unknown; there are {known}")
        return sizes[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _compute(node.left, sizes), _compute(node.right, sizes)
        if isinstance(left, int) and isinstance(right, int):
            return _OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        numbers = [_compute(argument, sizes) for argument in node.args]
        if node.func.id in _FUNCTIONS and len(numbers) == 2:
            return _FUNCTIONS[node.func.id](*numbers)
    raise ValueError(
        f"`{ast.unparse(node)}` is not allowed: take whole numbers, names, + - * // %, and "
        "ceil_div, min, max of two numbers"
    )
