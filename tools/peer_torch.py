"""The same GPT in PyTorch: the tools time it, and the golden losses come from it."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cupygpt.config import GPTConfig
from cupygpt.model.tensors import cut_packed, parameter_specs


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C = config.C
        self.NH = config.NH
        self.ln1, self.ln2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv, self.attproj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.fc, self.fcproj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) to (B, T, C)."""
        B, T, C = x.shape
        heads = self.qkv(self.ln1(x)).view(B, T, 3, self.NH, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x = x + self.attproj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.fcproj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))


class PeerGPT(nn.Module):
    """GPT-2 with the LM head tied to the token embedding."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.Vp, config.C)
        self.wpe = nn.Embedding(config.maxT, config.C)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.L))
        self.lnf = nn.LayerNorm(config.C)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over the V real columns."""
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.lnf(x) @ self.wte.weight[: self.config.V].T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def load(self, parameters: np.ndarray) -> None:
        """Copy parameters (P,) in llm.c's order."""
        p = cut_packed(parameters, parameter_specs(self.config))
        targets: dict[str, list[nn.Module]] = {
            "ln1": [b.ln1 for b in self.blocks], "ln2": [b.ln2 for b in self.blocks],
            "qkv": [b.qkv for b in self.blocks], "attproj": [b.attproj for b in self.blocks],
            "fc": [b.fc for b in self.blocks], "fcproj": [b.fcproj for b in self.blocks],
        }  # fmt: skip
        for name, modules in targets.items():
            for layer, module in enumerate(modules):
                module.weight.copy_(torch.from_numpy(getattr(p, f"{name}w")[layer]))
                module.bias.copy_(torch.from_numpy(getattr(p, f"{name}b")[layer]))
        self.wte.weight.copy_(torch.from_numpy(p.wte))
        self.wpe.weight.copy_(torch.from_numpy(p.wpe))
        self.lnf.weight.copy_(torch.from_numpy(p.lnfw))
        self.lnf.bias.copy_(torch.from_numpy(p.lnfb))

    def optimizer(
        self, lr: float, betas: tuple[float, float], weight_decay: float
    ) -> torch.optim.Optimizer:
        """AdamW with weight decay on the matrices only, as in llm.c."""
        decayed = [p for p in self.parameters() if p.ndim >= 2]
        others = [p for p in self.parameters() if p.ndim < 2]
        groups = [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        fused = self.wte.weight.is_cuda
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, fused=fused)


class Peer:
    """Optimizer steps on new batches: forward, backward, clipping at norm 1, AdamW."""

    def __init__(
        self,
        config: GPTConfig,
        batches: Iterator[np.ndarray],
        device: str,
        *,
        precision: str = "fp32",
        compiled: str | None = None,
        ranks: int = 1,
    ) -> None:
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        self._autocast = precision == "bf16"
        self._device, self._batches = device, batches
        self._model = PeerGPT(config).to(device)
        self._optimizer = self._model.optimizer(1e-4, (0.9, 0.95), 0.0)
        model = distributed(self._model) if ranks > 1 else self._model
        self._loss: Callable[[Tensor, Tensor], Tensor] = (
            torch.compile(model, mode=compiled) if compiled else model
        )

    def step(self) -> None:
        """Queue one step."""
        tokens, targets, _ = next(self._batches)[:, 0]
        x = torch.from_numpy(tokens).to(self._device, non_blocking=True).long()
        y = torch.from_numpy(targets).to(self._device, non_blocking=True).long()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._device, torch.bfloat16, enabled=self._autocast):
            loss = self._loss(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()

    def window_ms(self, steps: int) -> float:
        """Milliseconds per step, from an idle device to an idle device."""
        self._synchronize()
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        self._synchronize()
        return 1e3 * (time.perf_counter() - started) / steps

    def memory(self) -> str:
        """The most memory that PyTorch held at one time."""
        if self._device != "cuda":
            return "not known"
        return f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB at most"

    def _synchronize(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def distributed(model: nn.Module) -> nn.Module:
    """`model` with gradients averaged over the ranks that the launcher has started."""
    from torch.nn.parallel import DistributedDataParallel

    if torch.cuda.is_available():
        torch.distributed.init_process_group("nccl")
    else:
        torch.distributed.init_process_group("gloo")
    return DistributedDataParallel(model, gradient_as_bucket_view=True)
