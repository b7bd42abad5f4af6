"""Write tests/golden/torch_losses.json: 20 losses of PyTorch on our weights and batches.

    python tests/support/make_golden_losses.py

It needs PyTorch, and for the second case the folder $CUPYGPT_TEST_DATA. Run it again only when a
case changes. tests/training/test_golden_losses.py reads the file and needs no PyTorch.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "tools")]

import torch
from peer_torch import PeerGPT

from cupygpt.model.init_weights import initial_parameters
from cupygpt.planning.schedule import Schedule
from support.golden_cases import CASES, GoldenCase, batches

OUT = Path(__file__).parents[1] / "golden" / "torch_losses.json"


def losses(case: GoldenCase) -> list[float]:
    """The losses of PyTorch steps, eager, in float32, on the CPU."""
    model = PeerGPT(case.config)
    model.load(initial_parameters(case.config, 42))
    optimizer = model.optimizer(case.lr, (0.9, 0.95), case.weight_decay)
    schedule = Schedule("cosine", case.lr, 5, case.steps, 0.1)
    out = []
    for step, (tokens, targets) in enumerate(batches(case)):
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        optimizer.zero_grad()
        loss = model(torch.from_numpy(tokens).long(), torch.from_numpy(targets).long())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        out.append(loss.item())
    return out


if __name__ == "__main__":
    golden = {name: losses(case) for name, case in CASES.items()}
    assert all(np.isfinite(values).all() for values in golden.values())
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"torch": torch.__version__, "losses": golden}, indent=1) + "\n")
