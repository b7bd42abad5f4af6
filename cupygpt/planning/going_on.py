"""The plan of a run that goes on, perhaps after steps of another size."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cupygpt.checkpoint.state_file import Progress
from cupygpt.data.loader import START
from cupygpt.planning.open_data import Data
from cupygpt.planning.plan import Plan, train_loader


def going_on(plan: Plan, data: Data, progress: Progress, record: Mapping[str, Any]) -> Plan:
    """The `plan` of a resumed run from `progress` on; `record` is that of the run.

    A state of llm.c does not tell how many tokens came before, nor does a run that repeats one
    batch: there all steps count as ones of today's size.
    """
    config, step = plan.config, progress.step
    all_of_today = step * plan.tokens_per_step
    tokens = all_of_today
    if progress.position is not None and not config.overfit:
        loader = train_loader(plan, data, START, rank=0)
        tokens = loader.rows_before(progress.position) * plan.shape.T
    plan = replace(plan, first_step=step, tokens_before=tokens)
    if tokens == all_of_today or config.steps is not None or config.minutes is not None:
        return plan
    return replace(plan, steps=_steps_of_epochs(plan, record) + sum(plan.extensions))


def _steps_of_epochs(plan: Plan, record: Mapping[str, Any]) -> int:
    """The steps of a run of so many epochs whose steps had another size before.

    They are counted when the size changes, and recorded.
    """
    recorded: int | None = record.get("steps")
    if recorded and record.get("tokens_per_step") == plan.tokens_per_step:
        return recorded
    rows = (plan.config.epochs or 1.0) * plan.rows_per_epoch - plan.tokens_before / plan.shape.T
    return plan.first_step + max(0, int(rows / (plan.tokens_per_step // plan.shape.T)))
