import pytest

from cupygpt.console.safe_text import SafeTextStream, safe_text

KEPT = "a\tb\nc\u200cd\u200de\xa0f\u3000g\u2028h\ufffd\u05d0\u200f ع 日本 é 👍"


def test_only_what_controls_a_terminal_is_replaced() -> None:
    assert safe_text(KEPT) == KEPT
    controlling = [*map(chr, range(32)), *map(chr, range(127, 160)), *"\u202a\u202e\u2066\u2069"]
    for character in set(controlling) - {"\t", "\n"}:
        assert safe_text(f"a{character}b") == "a·b", repr(character)
    assert safe_text("a\x1b[31mb\x9b0c") == "a·[31mb·0c"


def test_a_carriage_return_before_a_newline_stays() -> None:
    assert safe_text("a\r\nb\rc\r\r\n") == "a\r\nb·c·\r\n"


@pytest.mark.parametrize("text", [KEPT, "a\r\nb\rc\r\r\n\r", "\r", "", "\x1b\r\n"])
def test_a_text_in_pieces_becomes_the_same(text: str) -> None:
    for size in (1, 2, 3):
        stream = SafeTextStream()
        pieces = [stream.feed(text[i : i + size]) for i in range(0, len(text), size)]
        assert "".join([*pieces, stream.flush()]) == safe_text(text)
