"""Damaged files of all kinds: one message each, and no memory beyond the size of the files."""

import json
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from exchange.exchanged_models import random_weights
from exchange.hugging_face_files import TINY, write_folder
from exchange.mangle import mangle_bytes, mangle_header, mangle_json
from support.data_files import write_ranks

from cupygpt.checkpoint.model_file import save_model
from cupygpt.data import hf_tokenizer
from cupygpt.data.tokenizer import load_tokenizer
from cupygpt.errors import CheckpointError, TokenizerError
from cupygpt.exchange.hf_folder import load_hugging_face
from cupygpt.exchange.hf_tokenizer_files import tokenizer_files
from cupygpt.exchange.note import ModelNote, note_path, read_note, write_note

COUNT = 500
SLACK_BYTES = 1 << 20
"""For Python's own objects: the files have 70 kB."""

Mangle = Callable[[np.random.Generator, bytes], bytes]
CASES: list[tuple[str, Mangle]] = [
    ("model-00001-of-00002.safetensors", mangle_bytes),
    ("model-00002-of-00002.safetensors", mangle_header),
    ("model.safetensors.index.json", mangle_json),
    ("config.json", mangle_json),
]


def test_500_damaged_folders_give_one_message_each(tmp_path: Path) -> None:
    weights = random_weights(TINY)
    write_folder(tmp_path, weights, num_files=2, index=True)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    total = sum(map(len, whole.values()))
    rng = np.random.default_rng(16)
    refused: Counter[str] = Counter()
    harmless = 0
    tracemalloc.start()
    try:
        while refused.total() < COUNT:
            name, mangle = CASES[(refused.total() + harmless) % len(CASES)]
            damaged = mangle(rng, whole[name])
            (tmp_path / name).write_bytes(damaged)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                load_hugging_face(tmp_path)
            except CheckpointError as error:
                refused[name] += 1
                check_message(str(error), tmp_path)
                peak = tracemalloc.get_traced_memory()[1] - before
                assert peak < total + len(damaged) + SLACK_BYTES, (peak, str(error))
            else:  # a renamed setting, other weights, another total size
                harmless += 1
            (tmp_path / name).write_bytes(whole[name])
    finally:
        tracemalloc.stop()
    assert harmless < COUNT
    assert min(refused[name] for name, _ in CASES) > COUNT // 10
    assert load_hugging_face(tmp_path).parameters.tobytes() == weights.tobytes()


def check_message(text: str, folder: Path) -> None:
    """One short line that names the place, and cannot control a terminal."""
    assert str(folder) in text
    assert text.isprintable(), repr(text)
    assert len(text) < 600 + 2 * len(str(folder)), text
    assert text.endswith(".")


def test_sizes_that_would_fill_the_memory_are_refused_unread(tmp_path: Path) -> None:
    """A consistent lie about terabytes: config, shapes and offsets agree, the file is short."""
    write_folder(tmp_path, random_weights(TINY))
    path = tmp_path / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, end = json.loads(raw[8 : 8 + size]), 0
    for entry in header.values():
        entry["shape"] = [extent * 2**10 for extent in entry["shape"]]
        stop = end + 4 * int(np.prod(entry["shape"], dtype=object))
        entry["data_offsets"], end = [end, stop], stop
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + raw[8 + size :])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"cut short"):
            load_hugging_face(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < SLACK_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("damaged", "others"),
    [("tokenizer.json", []), ("vocab.json", ["merges.txt"]), ("merges.txt", ["vocab.json"])],
)
def test_damaged_tokenizers_give_one_message_each(
    tmp_path: Path, damaged: str, others: list[str]
) -> None:
    own = load_tokenizer(str(write_ranks(tmp_path / "own.tiktoken", [b"th", b"the", b" t"])))
    files = tokenizer_files(own.vocabulary(), 8)
    for name in [damaged, *others]:
        (tmp_path / name).write_text(files[name], encoding="utf-8", newline="")
    path, rng, refused = tmp_path / damaged, np.random.default_rng(3), 0
    whole = path.read_bytes()
    for _ in range(150):
        path.write_bytes((mangle_json if damaged.endswith("json") else mangle_bytes)(rng, whole))
        try:
            hf_tokenizer.read_folder(tmp_path)
        except TokenizerError as error:
            refused += 1
            check_message(str(error), tmp_path)
    assert refused > 60


def test_damaged_notes_give_one_message_each(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    checksum = save_model(path, TINY, random_weights(TINY), "fp32")
    write_note(path, ModelNote("run x", "bytes", [256], 5), checksum)
    whole, rng, refused = note_path(path).read_bytes(), np.random.default_rng(3), 0
    for _ in range(200):
        note_path(path).write_bytes(mangle_json(rng, whole))
        try:
            read_note(path)
        except CheckpointError as error:
            refused += 1
            check_message(str(error), tmp_path)
    assert refused > 100
