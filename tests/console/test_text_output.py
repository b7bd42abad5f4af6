import io

import pytest

from cupygpt.console.text_output import TextOutput

TEXT = "a\t\x1b[2Jé€\r\n\u202e日\xa0".encode() + b"\xff\xe2"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Notebook(io.StringIO):
    """A stream that has no buffer of bytes."""


def test_a_file_gets_the_bytes() -> None:
    data = io.BytesIO()
    stream = io.TextIOWrapper(data, "ascii")
    output = TextOutput(stream)
    for byte in TEXT:
        output.write(bytes([byte]))
    output.end()
    output.line("--- 2 of 2")
    assert data.getvalue() == TEXT + b"--- 2 of 2\n"


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_terminal_gets_whole_characters_that_do_not_control_it(size: int) -> None:
    stream = Terminal()
    output = TextOutput(stream)
    for start in range(0, len(TEXT), size):
        output.write(TEXT[start : start + size])
    output.end()
    assert stream.getvalue() == "a\t·[2Jé€\r\n·日\xa0\ufffd\ufffd"
    output.write(b"\r")
    output.end()
    output.write(b"b")
    assert stream.getvalue().endswith("\ufffd·b")


def test_a_character_waits_for_its_last_byte() -> None:
    stream = Terminal()
    output = TextOutput(stream)
    shown = []
    for byte in "é€a".encode():
        output.write(bytes([byte]))
        shown.append(stream.getvalue())
    assert shown == ["", "é", "é", "é", "é€", "é€a"]


def test_a_notebook_gets_text() -> None:
    stream = Notebook()
    output = TextOutput(stream)
    output.write(TEXT)
    output.end()
    assert stream.getvalue() == TEXT.decode(errors="replace")
