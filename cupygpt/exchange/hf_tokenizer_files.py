"""The tokenizer files of a Hugging Face folder, which `AutoTokenizer` and llama.cpp read."""

import json
from typing import Any

from cupygpt.data.hf_tokenizer import MERGES_TXT, TOKENIZER_JSON, VOCAB_JSON
from cupygpt.data.tokenizer_files import GPT2_SPLIT, is_portable
from cupygpt.data.vocabulary import END_OF_TEXT, Vocabulary, in_alphabet
from cupygpt.errors import TokenizerError

TOKENIZER_CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_FILES = (TOKENIZER_JSON, VOCAB_JSON, MERGES_TXT, TOKENIZER_CONFIG, GENERATION_CONFIG)

_EOT = END_OF_TEXT.decode()


def tokenizer_files(vocabulary: Vocabulary, longest: int) -> dict[str, str]:
    """Name and content of each file; `longest` is the number of positions that were trained.

    Both forms are written: tokenizer.json, and vocab.json with merges.txt, which older programs
    read. With another split pattern than GPT-2's there is only the first, as the second cannot
    say so, and the class is the one that leaves the pattern as it is.
    """
    texts = token_texts(vocabulary)
    merges = [(in_alphabet(left), in_alphabet(right)) for left, right in vocabulary.merges]
    vocab = {text: i for i, text in enumerate(texts) if text}
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    is_gpt2 = vocabulary.split == GPT2_SPLIT
    pair = {VOCAB_JSON: _json(vocab), MERGES_TXT: "".join(f"{line}\n" for line in lines)}
    return {
        TOKENIZER_JSON: _json(_tokenizer(vocab, merges, vocabulary)),
        **(pair if is_gpt2 else {}),
        TOKENIZER_CONFIG: _json(
            {
                "tokenizer_class": "GPT2Tokenizer" if is_gpt2 else "PreTrainedTokenizerFast",
                "model_max_length": longest,
                "add_prefix_space": False,
                "clean_up_tokenization_spaces": False,
                **{f"{kind}_token": _EOT for kind in ("bos", "eos", "unk")},
            }
        ),
        GENERATION_CONFIG: _json(
            {f"{kind}_token_id": vocabulary.eot for kind in ("bos", "eos", "pad")}
        ),
    }


def token_texts(vocabulary: Vocabulary) -> list[str]:
    """The text of each id in GPT-2's alphabet; "" for an unused one."""
    return [
        _EOT if i == vocabulary.eot else in_alphabet(token)
        for i, token in enumerate(vocabulary.tokens)
    ]


def _tokenizer(
    vocab: dict[str, int], merges: list[tuple[str, str]], vocabulary: Vocabulary
) -> dict[str, Any]:
    """What tokenizer.json holds."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    end_of_text = {
        "id": vocabulary.eot,
        "content": _EOT,
        **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        "special": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end_of_text],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(vocabulary.split),
        "post_processor": {**byte_level, "trim_offsets": False},
        "decoder": {**byte_level, "trim_offsets": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _pre_tokenizer(split: str) -> dict[str, Any]:
    """How tokenizer.json says by which pattern text is split."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    if split == GPT2_SPLIT:
        return {**byte_level, "use_regex": True}
    if not is_portable(split):
        raise TokenizerError(
            "Hugging Face's tokenizers would read the tokenizer's split pattern in another way: "
            "write {n,m}+ there in parentheses, as an atomic group: (?>x{n,m})."
        )
    pieces = {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [pieces, {**byte_level, "use_regex": False}]}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"
