"""The runs whose losses PyTorch has computed (see make_golden_losses.py)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cupygpt.config import GPT2_VOCAB, GPTConfig, small_config
from support.data_files import shakespeare_file


@dataclass(frozen=True)
class GoldenCase:
    """A model, a batch shape and an optimizer; the weights are those of llm.c with seed 42."""

    config: GPTConfig
    B: int
    T: int
    lr: float
    weight_decay: float
    text: bool = False
    steps: int = 20


CASES = {
    "tiny": GoldenCase(GPTConfig(maxT=32, V=65, L=3, NH=4, C=64), 4, 24, 3e-3, 0.1),
    "small": GoldenCase(small_config(GPT2_VOCAB), 4, 64, 1e-3, 0.0, text=True),
}


def batches(case: GoldenCase) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(tokens, targets) (B, T) int32 of each step."""
    if case.text:
        # Pairs of bytes of TinyShakespeare are the ids: real statistics without a tokenizer.
        raw = np.frombuffer(shakespeare_file().read_bytes(), np.uint8)
        ids = (raw[0::2].astype(np.int32) * 256 + raw[1::2]) % case.config.V
    else:
        walk = np.random.RandomState(11).randint(-3, 4, 20_000)
        ids = (np.cumsum(walk) % case.config.V).astype(np.int32)
    for step in range(case.steps):
        start = step * case.B * case.T
        rows = ids[start : start + case.B * case.T + 1]
        yield rows[:-1].reshape(case.B, case.T), rows[1:].reshape(case.B, case.T)
