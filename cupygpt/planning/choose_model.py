"""The model of a new run: the one that the flags name, or one that suits the time or the text."""

from dataclasses import dataclass
from pathlib import Path

from cupygpt.checkpoint.checkpoint import load_model
from cupygpt.checkpoint.model_file import ModelFile
from cupygpt.config import GPTConfig, config_from_descriptor
from cupygpt.data.token_files import longest_row, num_tokens
from cupygpt.flags.config import TrainConfig
from cupygpt.planning.defaults import batch_settings, file_settings, size_for
from cupygpt.planning.open_data import Data, vocabulary


@dataclass(frozen=True)
class ModelChoice:
    """The model of a new run: its shape, its file if it has one, and where it comes from.

    `config` has the rows and the batch that were chosen with it; `batch_is_open` says that no flag
    asked for that batch, so that it may shrink to fit the memory.
    """

    config: TrainConfig
    model: GPTConfig
    loaded: ModelFile | None
    origin: str
    batch_is_open: bool = False


def choose_model(config: TrainConfig, data: Data, *, on_gpu: bool, world: int) -> ModelChoice:
    """The model that the flags name, or one that suits the time (CPU) or the text (GPU)."""
    name = config.model
    if name is not None and name.endswith(".bin"):
        loaded = load_model(Path(name))
        return ModelChoice(file_settings(config), loaded.config, loaded, f"weights from {name}")
    tokens, V = num_tokens(data.train), vocabulary(config, data)
    size = size_for(on_gpu=on_gpu, minutes=config.minutes, tokens=tokens, V=V)
    longest = min(longest_row(data.train), longest_row(data.val or data.train))
    T = config.seq_len or min(size.T, longest)
    weights = f"new weights (seed {config.seed})"
    if name is None:
        model = GPTConfig(maxT=T, V=V, L=size.L, NH=size.NH, C=size.C)
        origin = f"sized for {'the text' if on_gpu else 'the time'}, {weights}"
    else:
        model = config_from_descriptor(name, V=V, maxT=T)
        origin = f"{name}, {weights}"
        T = config.seq_len or min(model.maxT, longest)
    return ModelChoice(
        batch_settings(config, T=T, size=size, world=world),
        model,
        None,
        origin,
        batch_is_open=config.batch_size is None,
    )
