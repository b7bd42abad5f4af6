"""Files of questions: what they hold, and one message for each that is damaged."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from evaluation.question_files import EXAMPLES, header, llmc_file, numbers_of, write_jsonl
from support.data_files import use_gpt2_files, write_ranks

from cupygpt.data.tokenizer import ByteTokenizer, load_tokenizer
from cupygpt.errors import DataError
from cupygpt.evaluation.questions import is_question_file, read_questions

BYTES = ByteTokenizer()


def test_llmc_s_file_is_read(tmp_path: Path) -> None:
    path = llmc_file(tmp_path / "val.bin")
    assert zlib.crc32(path.read_bytes()) == 0xEA643F9E  # the file that llm.c's own loader read
    assert is_question_file(path)
    questions = read_questions(path, BYTES, 257)
    assert len(questions) == 20
    for question, (context, choices, label) in zip(questions, EXAMPLES, strict=True):
        assert question.context.tolist() == context
        assert [choice.tolist() for choice in question.choices] == choices
        assert question.label == label
        texts = [bytes(choice).decode(errors="replace") for choice in choices]
        assert question.characters == tuple(len(text.removeprefix(" ")) for text in texts)
    assert read_questions(path, None, 257)[0].characters is None
    assert len(read_questions(path, BYTES, 257, most=7)) == 7


def test_llmc_s_file_is_refused_for_a_vocabulary_above_65536(tmp_path: Path) -> None:
    """Its ids have 2 bytes, so they were made with another tokenizer; jsonl has no such limit."""
    path = llmc_file(tmp_path / "val.bin")
    with pytest.raises(DataError, match=r"ids of 2 bytes.* vocabulary of 70,000 ids.*jsonl"):
        read_questions(path, None, 70_000)
    ranks = write_ranks(tmp_path / "b.tiktoken", [b"%05d" % i for i in range(70_000)])
    big = load_tokenizer(str(ranks))
    path = write_jsonl(tmp_path / "q.jsonl", {"ctx": "69999", "endings": ["a", "b"], "label": 0})
    [question] = read_questions(path, big, big.vocab_size)
    assert question.context.tolist() == [70_255]


def test_jsonl_is_read(tmp_path: Path) -> None:
    """The context as it is, a choice after a space, in characters without it."""
    path = write_jsonl(
        tmp_path / "q.jsonl",
        {"ctx": "To be", "endings": ["or not", "é"], "label": 1, "ind": 4},
        {"context": "a ", "choices": ["b", "c", "d"], "label": "2"},
        {"question": "Why?", "choices": ["yes", "no"], "label": 0},
    )
    path.write_text(path.read_text().replace("\n", "\r\n\n"))
    first, second, third = read_questions(path, BYTES, 257)
    assert bytes(first.context.tolist()) == b"To be"
    assert [bytes(choice.tolist()) for choice in first.choices] == [b" or not", " é".encode()]
    assert first.characters == (6, 1)
    assert (first.label, second.label, third.label) == (1, 2, 0)
    assert len(second.choices) == 3
    assert bytes(third.context.tolist()) == b"Why?"


GOOD = {"ctx": "a", "endings": ["b", "c"], "label": 0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: it is not JSON in UTF-8"),
        ("[" * 100_000, "line 2: it is not JSON in UTF-8"),
        ("[]", "line 2: it is not a JSON object"),
        ('{"text": "a"}', "it needs a text in ctx or context or question. It has: 'text'."),
        (json.dumps({**GOOD, "ctx": ""}), "it needs a text in ctx"),
        (json.dumps({**GOOD, "ctx": 5}), "it needs a text in ctx"),
        (json.dumps({**GOOD, "endings": "bc"}), "it needs a list of texts in endings or choices"),
        (json.dumps({**GOOD, "endings": ["b", ""]}), "it needs a list of texts in endings"),
        (json.dumps({**GOOD, "endings": ["b"]}), "it has 1 choices; 2 to 64 can be"),
        (json.dumps({**GOOD, "endings": ["b"] * 65}), "it has 65 choices"),
        (json.dumps({**GOOD, "label": ""}), "it has no label, as in a test split"),
        (json.dumps({"ctx": "a", "endings": ["b", "c"]}), "it has no label"),
        (json.dumps({**GOOD, "label": 2}), "its label is '2'; it must be the index"),
        (json.dumps({**GOOD, "label": True}), "its label is 'True'"),
        (json.dumps({**GOOD, "label": 1.0}), "its label is '1.0'"),
        (json.dumps({**GOOD, "label": "B"}), "its label is 'B'"),
        (json.dumps({**GOOD, "label": "9" * 9999}), "its label is '99999999999999999999'"),
        ('"' + "a" * 2**20 + '"', "line 2: it has more than 1,048,576 bytes"),
    ],
)
def test_a_wrong_line_gets_one_message(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n")
    with pytest.raises(DataError) as error:
        read_questions(path, BYTES, 257)
    assert str(error.value).startswith(f"{path}: line 2: ")
    assert message in str(error.value)
    assert len(str(error.value)) < 600


def test_names_of_a_wrong_line_cannot_control_the_terminal(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "q.jsonl", {"\x1b[2J": 1})
    with pytest.raises(DataError) as error:
        read_questions(path, BYTES, 257)
    assert "\x1b" not in str(error.value)


def test_bytes_that_are_no_text_and_empty_files(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"ctx": "\xff\xfe"}\n')
    with pytest.raises(DataError, match="line 1: it is not JSON in UTF-8"):
        read_questions(path, BYTES, 257)
    path.write_bytes(b"\n\n")
    with pytest.raises(DataError, match="there is no question in this file"):
        read_questions(path, BYTES, 257)
    with pytest.raises(DataError, match="questions in words need the model's tokenizer"):
        read_questions(path, None, 257)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 65534, "example 0: it begins with 65534, not with 65535"),
        (1, 50000, "example 0: its size is given as 50,000 bytes"),
        (1, 41, "example 0: its size is given as 41 bytes"),
        (1, 8, "example 0: it is cut short"),
        (2, 7, "example 0: its number is given as 7"),
        (3, 4, "example 0: its right choice is number 4 of 4, counted from 0"),
        (4, 1, "example 0: it has 1 choices; 2 to 64 can be"),
        (4, 65535, "example 0: it has 65,535 choices"),
        (4, 3, "bytes are used"),
        (5, 0, "example 0: the context has 0 tokens, where 1 to"),
        (5, 60000, "example 0: the context has 60,000 tokens, where 1 to"),
        (6, 257, "the context of example 0 has token id 257, but the model's vocabulary has 257"),
        (-1, 300, "choice 3 of example 19 has token id 300"),
    ],
)
def test_a_wrong_number_gets_one_message(
    tmp_path: Path, place: int, value: int, message: str
) -> None:
    numbers = numbers_of(EXAMPLES)
    numbers[place] = value
    path = tmp_path / "val.bin"
    path.write_bytes(header(20, 96) + numbers.tobytes())
    with pytest.raises(DataError) as error:
        read_questions(path, BYTES, 257)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("head", "cut", "message"),
    [
        (header(20, 96, version=2), None, "evaluation file of version 2"),
        (header(0, 96), None, "its header counts 0 examples"),
        (header(-3, 96), None, "its header counts -3 examples"),
        (header(2**31 - 1, 96), None, "its header counts 2,147,483,647 examples"),
        (header(20, 2**31 - 1), None, "of at most 2,147,483,647 bytes"),
        (header(20, 4), None, "of at most 4 bytes"),
        (header(60000, 96), None, "which cannot hold its 60,000 examples"),
        (header(19, 96), None, "bytes follow the last of its 19 examples"),
        (header(21, 96), None, "example 20: it is cut short"),
        (header(20, 94), None, "its size is given as 96 bytes"),
        (header(20, 96), -1, "which cannot hold its 20 examples"),
        (header(20, 96), -2, "example 19: its size is given as"),
        (header(20, 96), 0, "0 bytes follow the header"),
        (b"\x02", 0, "1 bytes, but the header alone has 1,024"),
    ],
)
def test_a_wrong_header_or_size_gets_one_message(
    tmp_path: Path, head: bytes, cut: int | None, message: str
) -> None:
    path = tmp_path / "val.bin"
    path.write_bytes(head + numbers_of(EXAMPLES).tobytes()[:cut])
    with pytest.raises(DataError) as error:
        read_questions(path, BYTES, 257)
    assert message in str(error.value)


def test_a_file_that_is_damaged_anywhere_is_read_or_refused(tmp_path: Path) -> None:
    """Never another error, and never a read outside the file."""
    good = llmc_file(tmp_path / "good.bin").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        raw = bytearray(good)
        for place in rng.integers(4, len(raw), 3):
            raw[place] = rng.integers(256)
        path = tmp_path / "val.bin"
        path.write_bytes(raw[: rng.integers(1, len(raw) + 1)] if rng.random() < 0.3 else raw)
        try:
            questions = read_questions(path, BYTES, 257)
        except DataError as error:
            refused += 1
            assert str(path) in str(error)
        else:
            assert all(q.label < len(q.choices) and len(q.context) for q in questions)
    assert 100 < refused < 400


def test_words_become_what_llmcs_script_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With GPT-2's tokenizer: the same ids and characters from jsonl as from llm.c's file."""
    use_gpt2_files(monkeypatch)
    gpt2 = load_tokenizer("gpt2")
    lines = [
        {"ctx": "A man sits on a roof. He", "endings": ["is using wrap.", "rips 3 tiles ☂"]},
        {"ctx": "[header] How to", "endings": ["  smile", "[title] Naïve", "!"]},
    ]
    of_words = write_jsonl(tmp_path / "q.jsonl", *({**line, "label": 1} for line in lines))
    examples = [
        (
            gpt2.encode(str(line["ctx"])).tolist(),
            [gpt2.encode(f" {text}").tolist() for text in line["endings"]],
            1,
        )
        for line in lines
    ]
    of_ids = llmc_file(tmp_path / "q.bin", examples)
    pairs = zip(
        read_questions(of_words, gpt2, 50257), read_questions(of_ids, gpt2, 50257), strict=True
    )
    for words, ids in pairs:
        np.testing.assert_array_equal(words.context, ids.context)
        for one, other in zip(words.choices, ids.choices, strict=True):
            np.testing.assert_array_equal(one, other)
        assert words.characters == ids.characters
