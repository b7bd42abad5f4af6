"""What a resumed run may change, and what it may not."""

from typing import Any

from cupygpt.errors import ConfigError
from cupygpt.training.flags import TrainConfig, flags_of

# Another value of these would make another run of it: the losses would not be those of the run
# that never stopped. Everything else (batch size, cadences, device ...) may change.
_FIXED = (
    "seq_len", "learning_rate", "schedule", "warmup", "final_fraction", "weight_decay", "overfit",
    "precision", "master_weights", "seed", "beta1", "beta2", "grad_clip", "dropout", "no_shuffle", "tokenizer",
)  # fmt: skip
_LENGTH = ("steps", "epochs")


def resumed_config(saved: dict[str, Any], given: dict[str, Any], *, world: int = 1) -> TrainConfig:
    """The run's own settings with the given flags on top; one rank has nobody to share with.

    Raises ConfigError with a list of what differs where a flag would change the run.
    """
    config = TrainConfig(**saved)
    differences = [
        f"  {flags_of(name)}: {getattr(config, name)} in the run, {given[name]} asked for"
        for name in _FIXED
        if name in given and given[name] != getattr(config, name)
    ]
    # A rate that follows the length of the run would jump; a level one goes on.
    if config.schedule != "constant" and config.final_fraction != 1.0:
        differences += [
            f"  {flags_of(name)}: {getattr(config, name)} in the run, {given[name]} asked for "
            f"(the {config.schedule} schedule depends on it)"
            for name in _LENGTH
            if name in given and given[name] != getattr(config, name)
        ]
    if differences:
        raise ConfigError(
            "a resumed run cannot change these:\n"
            + "\n".join(differences)
            + "\nLeave them out, or start a new run from its weights with -e."
        )
    length = dict.fromkeys(_LENGTH) if any(name in given for name in _LENGTH) else {}
    changes = {
        name: value for name, value in given.items() if name not in ("resume", "out", "model")
    }
    if world == 1:
        saved = {**saved, "zero_stage": 0}
    return TrainConfig(**{**saved, **length, **changes})


def check_same(kind: str, saved: Any, found: Any) -> None:
    """Raise ConfigError if the model or the data is not what the run was started with."""
    if saved == found:
        return
    if isinstance(saved, dict) and isinstance(found, dict):
        lines = [
            f"  {name}: {saved.get(name)} in the run, {found.get(name)} now"
            for name in sorted({*saved, *found})
            if saved.get(name) != found.get(name)
        ]
    else:
        lines = [f"  {saved} in the run", f"  {found} now"]
    raise ConfigError(
        f"the {kind} is not the one this run was started with:\n"
        + "\n".join(lines)
        + "\nBring back the old files, or start a new run with -e."
    )
