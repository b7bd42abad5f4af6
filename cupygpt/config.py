"""The shape of a model: what it may be, llm.c's descriptors, and the presets by name."""

import re
from dataclasses import dataclass

from cupygpt.errors import ConfigError

VOCAB_MULTIPLE = 128
"""Vp is V rounded up to a multiple of this: the matmuls of lm_head and 128-bit accesses need it."""

MAX_VOCAB = 2**20
"""Above all known vocabularies; the sampling kernel adds up so many weights without overflow."""

GPT2_VOCAB = 50257
GPT2_CONTEXT = 1024
BYTES_VOCAB = 257
"""The 256 bytes and end of text."""

_GPT2_CHANNELS_HEADS = {
    6: (384, 6),
    12: (768, 12),
    24: (1024, 16),
    36: (1280, 20),
    48: (1600, 25),
    60: (1920, 30),
    72: (2880, 30),
    84: (3456, 36),
}
_GPT3_LAYERS_HEADS = {
    384: (6, 6),
    768: (12, 12),
    1024: (24, 16),
    1536: (24, 16),
    2048: (24, 16),
    2560: (32, 32),
    4096: (32, 32),
    12288: (96, 96),
}

_DESCRIPTOR_LETTERS = {"L": "L", "H": "NH", "C": "C", "T": "maxT", "V": "V"}
_SHAPE_HELP = (
    "Write a shape as L6:H6:C384: layers, heads and channels in any order, and if you like "
    "T (the longest sequence) and V (the vocabulary)."
)


@dataclass(frozen=True)
class GPTConfig:
    """A GPT-2 shape. For numbers that cannot work, ConfigError says which ones can."""

    maxT: int
    V: int
    L: int
    NH: int
    C: int

    def __post_init__(self) -> None:
        for name, value in (
            ("layers", self.L),
            ("heads", self.NH),
            ("channels", self.C),
            ("sequence length", self.maxT),
            ("vocabulary", self.V),
        ):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")
        if self.V > MAX_VOCAB:
            raise ConfigError(
                f"vocabulary {self.V} is over {MAX_VOCAB}, the most that a model can have here."
            )
        if self.C % self.NH:
            raise ConfigError(
                f"{self.C} channels do not divide by {self.NH} heads: "
                f"choose channels as heads × head size."
            )
        if self.HS % 8 or not 8 <= self.HS <= 128:
            raise ConfigError(
                f"head size {self.HS} (= {self.C} channels / {self.NH} heads) is not supported: "
                f"it must be a multiple of 8 from 8 to 128."
            )

    @property
    def Vp(self) -> int:
        """Padded vocabulary: rows of `wte` and columns of the logits."""
        return -(-self.V // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def HS(self) -> int:
        """Head size."""
        return self.C // self.NH

    @property
    def num_parameters(self) -> int:
        """P, counted with Vp as llm.c does."""
        return (
            (self.Vp + self.maxT) * self.C
            + self.L * (12 * self.C * self.C + 13 * self.C)
            + 2 * self.C
        )

    def flops_per_token(self, T: int) -> int:
        """Floating-point operations of one token in forward and backward, by llm.c's estimate."""
        return 6 * self.num_parameters + 6 * self.L * self.C * T

    def describe(self) -> str:
        """One line for the console."""
        return (
            f"{self.L} layers, {self.NH} heads, {self.C} channels, context {self.maxT}, "
            f"vocabulary {self.V:,} (padded {self.Vp:,}), {self.num_parameters:,} parameters"
        )


def small_config(V: int, maxT: int = 256) -> GPTConfig:
    """The shape of the built-in demo and of tools/create_small_model.py (7.3M for GPT-2's V)."""
    return GPTConfig(maxT=maxT, V=V, L=4, NH=4, C=128)


def config_from_descriptor(
    descriptor: str, *, V: int = GPT2_VOCAB, maxT: int = GPT2_CONTEXT
) -> GPTConfig:
    """Shape of llm.c's descriptors `d12` (= `gpt2:d12`) and `gpt3:c768`, `small`, or `L6:H6:C384`.

    `V` and `maxT` are for a descriptor of the last kind that does not name them. Raises ConfigError
    with the list of known ones. After llm.c train_gpt2.cu.
    """
    if descriptor == "small":
        return small_config(GPT2_VOCAB)
    match = re.fullmatch(r"(?:gpt2:d?|d)(\d{1,9})", descriptor)
    if match and int(match[1]) in _GPT2_CHANNELS_HEADS:
        C, NH = _GPT2_CHANNELS_HEADS[int(match[1])]
        return GPTConfig(maxT=GPT2_CONTEXT, V=GPT2_VOCAB, L=int(match[1]), NH=NH, C=C)
    match = re.fullmatch(r"gpt3:c(\d{1,9})", descriptor)
    if match and int(match[1]) in _GPT3_LAYERS_HEADS:
        L, NH = _GPT3_LAYERS_HEADS[int(match[1])]
        return GPTConfig(maxT=2048, V=GPT2_VOCAB, L=L, NH=NH, C=int(match[1]))
    shape = shape_of_descriptor(descriptor)
    if shape is not None:
        return GPTConfig(**{"V": V, "maxT": maxT, **shape})
    known = [f"d{depth}" for depth in _GPT2_CHANNELS_HEADS]
    known += [f"gpt3:c{channels}" for channels in _GPT3_LAYERS_HEADS]
    raise ConfigError(
        f"'{descriptor}' is no known size. Known: small, {', '.join(known)}. "
        f"For another shape write its layers, heads and channels: L6:H6:C384. "
        f"train -e takes weights by their path as well: a model file (.bin), a run folder "
        f"(RUN, RUN@newest or RUN@STEP), or a Hugging Face folder "
        f"(hf download NAME --local-dir FOLDER)."
    )


def shape_of_descriptor(descriptor: str) -> dict[str, int] | None:
    """The fields of GPTConfig that `L6:H6:C384` names, in any order; None for other descriptors.

    L layers, H heads and C channels must be there; T (the longest sequence) and V (the vocabulary)
    may be. Raises ConfigError for a letter that is missing, unknown or there twice, and for a shape
    that cannot work.
    """
    if not re.match(r"[LHCTV]\d", descriptor, re.IGNORECASE):
        return None
    shape: dict[str, int] = {}
    for part in descriptor.split(":"):
        name = _DESCRIPTOR_LETTERS.get(part[:1].upper())
        if name is None or not re.fullmatch(r"[0-9]{1,9}", part[1:]):
            raise ConfigError(f"'{part}' in the model '{descriptor}' is not clear. {_SHAPE_HELP}")
        if name in shape:
            raise ConfigError(f"the model '{descriptor}' names {part[0]} twice. {_SHAPE_HELP}")
        shape[name] = int(part[1:])
    missing = [
        letter
        for letter, name in _DESCRIPTOR_LETTERS.items()
        if letter in "LHC" and name not in shape
    ]
    if missing:
        raise ConfigError(f"the model '{descriptor}' lacks {' and '.join(missing)}. {_SHAPE_HELP}")
    GPTConfig(**{"V": 1, "maxT": 1, **shape})
    return shape
