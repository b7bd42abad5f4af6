"""The model of a new run: the one that the flags name, or one that suits the time or the text."""

from dataclasses import dataclass

from cupygpt.checkpoint.model_file import ModelFile
from cupygpt.config import GPTConfig, config_from_descriptor
from cupygpt.data.token_files import longest_row, num_tokens
from cupygpt.distributed.ranks import Ranks, broadcast_object
from cupygpt.exchange.source import WeightSource, find_weights, load_weights, names_weights
from cupygpt.flags.config import TrainConfig
from cupygpt.planning.defaults import (
    batch_settings,
    file_settings,
    fine_tuning_step_tokens,
    size_for,
)
from cupygpt.planning.open_data import Data, vocabulary


@dataclass(frozen=True)
class ModelChoice:
    """The model of a new run: its shape, its weights if it has some, and where they come from.

    `notes` say what a person should know of it, one sentence each. `config` has the rows and the
    batch that were chosen with it; `batch_is_open` says that no flag asked for that batch, so that
    it may shrink to fit the memory. `fine_tunes`: the weights are those of a trained model, so what
    is open is chosen for fine-tuning; its first `trained_length` positions were trained.
    """

    config: TrainConfig
    model: GPTConfig
    loaded: ModelFile | None
    origin: str
    notes: tuple[str, ...] = ()
    batch_is_open: bool = False
    fine_tunes: bool = False
    trained_length: int = 0


def find_source(config: TrainConfig, ranks: Ranks) -> WeightSource | None:
    """The weights that -e names, not yet loaded; None if the run begins with new ones.

    All `ranks` call, and get the same checkpoint of a run that is still being trained. Raises
    CheckpointError.
    """
    name, source = None, None
    if ranks.rank == 0 and config.model is not None and names_weights(config.model):
        source = find_weights(config.model)
        name = source.exact_name
    name = broadcast_object(ranks, name)
    return source if name is None or ranks.rank == 0 else find_weights(name)


def choose_model(
    config: TrainConfig,
    data: Data,
    source: WeightSource | None = None,
    *,
    on_gpu: bool,
    world: int,
) -> ModelChoice:
    """The model of `source`, of the descriptor, or one that suits the time (CPU) or text (GPU)."""
    if source is not None:
        return _choose_source(config, data, source, world)
    name = config.model
    tokens, V = num_tokens(data.train), vocabulary(config, data)
    size = size_for(on_gpu=on_gpu, minutes=config.minutes, tokens=tokens, V=V)
    longest = _longest_row(data)
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
        batch_settings(config, T=T, step_tokens=size.step_tokens, world=world),
        model,
        None,
        origin,
        batch_is_open=config.batch_size is None,
    )


def _choose_source(
    config: TrainConfig, data: Data, source: WeightSource, world: int
) -> ModelChoice:
    """Trained weights are fine-tuned; a model file that nothing is known of trains as in llm.c."""
    loaded, origin = load_weights(source), f"weights from {source.origin}"
    if not source.is_trained:
        return ModelChoice(file_settings(config), loaded.config, loaded, origin, source.notes)
    maxT = loaded.config.maxT
    trained = min(source.trained_length or maxT, maxT)
    T = config.seq_len or min(trained, _longest_row(data))
    notes, is_open = source.notes, config.batch_size is None
    if config.seq_len is None and trained == T:
        notes += (f"rows of {T} tokens, as the model was trained (-t changes it)",)
    if trained < T:
        notes += (f"only {trained} positions of this model were trained; -t {T} trains more",)
    step_tokens = fine_tuning_step_tokens(num_tokens(data.train))
    if is_open and config.total_batch is None:
        notes += (f"steps of about {step_tokens:,} tokens, to fine-tune on such a text (-b, -d)",)
    return ModelChoice(
        batch_settings(config, T=T, step_tokens=step_tokens, world=world),
        loaded.config,
        loaded,
        origin,
        notes,
        batch_is_open=is_open,
        fine_tunes=True,
        trained_length=trained,
    )


def _longest_row(data: Data) -> int:
    return min(longest_row(data.train), longest_row(data.val or data.train))
