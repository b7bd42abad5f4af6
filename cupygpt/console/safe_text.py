"""Text that a terminal can show without being controlled by it."""


def printable(text: str) -> str:
    """`text` with control characters made visible, because a model may write any byte."""
    return "".join(c if c.isprintable() or c == "\n" else _visible(c) for c in text)


def _visible(character: str) -> str:
    return "    " if character == "\t" else "\N{MIDDLE DOT}"
