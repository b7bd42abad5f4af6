"""Loss curves equal PyTorch's on the same weights and batches."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.golden_cases import CASES, batches

from cupygpt.data.loader import pack
from cupygpt.device.cpu import CPU
from cupygpt.model.init_weights import initial_parameters
from cupygpt.model.memory_plan import RunShape
from cupygpt.planning.schedule import Schedule
from cupygpt.training.trainer import OptimizerSettings, Trainer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "torch_losses.json").read_text())


@pytest.mark.golden
@pytest.mark.parametrize("name", CASES)
def test_losses_equal_pytorch(name: str) -> None:
    case = CASES[name]
    settings = OptimizerSettings(weight_decay=case.weight_decay)
    trainer = Trainer(CPU(), RunShape(case.config, case.B, case.T), settings)
    trainer.params.flat[:] = initial_parameters(case.config, 42)
    schedule = Schedule("cosine", case.lr, 5, case.steps, 0.1)
    losses = [
        trainer.step(pack([batch]), step, schedule(step)).result().loss
        for step, batch in enumerate(batches(case))
    ]
    wanted = GOLDEN["losses"][name]
    assert wanted[0] - wanted[-1] > 0.1  # the curve must move for the comparison to mean anything
    assert np.abs(np.array(losses) - wanted).max() < 2e-4, (losses, wanted)
