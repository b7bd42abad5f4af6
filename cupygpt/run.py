"""The training loop: what happens at which step, what is kept, and what a person is told."""

import math
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cupygpt import build
from cupygpt.build import Data, Plan
from cupygpt.checkpoint import checkpoint_steps, prune_checkpoints, save_checkpoint
from cupygpt.console import Console, StepLine
from cupygpt.data.loader import Position, TrainLoader
from cupygpt.data.prefetch import Prefetcher
from cupygpt.errors import ConfigError, RunError
from cupygpt.feed import StepLoader
from cupygpt.generate import Generator, Sampling
from cupygpt.interrupt import StopSignal
from cupygpt.runfolder import RunLog
from cupygpt.statefile import Progress
from cupygpt.step import OptimizerSettings, PendingStep, StepResult, Trainer
from cupygpt.warmup import warm_up

MAX_PENDING = 3
"""Steps whose loss may still be on its way while the next one is queued."""

TRAIN_SAMPLING = Sampling(temperature=0.8, top_p=0.95)


class Run:
    """One run in one folder, from `progress.step` to `plan.steps`.

    At a step index s (0-based, as in llm.c): validate, sample, save, and unless s is the last,
    train. A resumed run repeats the first three at the step it was saved at, so its log equals
    that of a run that never stopped.
    """

    def __init__(
        self, plan: Plan, data: Data, folder: Path, console: Console, progress: Progress
    ) -> None:
        if progress.step >= plan.steps:
            raise ConfigError(
                f"this run already has its {plan.steps} steps. Pass a larger -n where the "
                f"schedule allows it, or start a new run from its weights with -e."
            )
        config = plan.config
        self.plan, self.data, self.folder, self.console = plan, data, folder, console
        self.progress = progress
        console.memory = plan.device.used_bytes
        self._saved_step: int | None = progress.step if checkpoint_steps(folder) else None
        self.trainer = Trainer(
            plan.device,
            plan.shape,
            OptimizerSettings(
                config.beta1, config.beta2 or 0.0, config.weight_decay or 0.0, config.grad_clip
            ),
            accumulation=plan.accumulation,
            dropout_p=config.dropout,
            seed=config.seed,
            tf32=plan.precision == "tf32",
            graph=plan.device.name == "cuda" and not config.no_graph,
        )
        self._generator = Generator(
            plan.device, plan.shape.config, self.trainer.params, tf32=plan.precision == "tf32"
        )
        warm_up(plan.device, self.trainer, self._generator, console, folder)
        self._validation = build.validation_batches(plan, data)
        self._bytes_per_token = build.bytes_per_token(data)
        position = Position(progress.epoch or 0, progress.rows or 0)
        loader = TrainLoader(
            data.train,
            plan.shape.B,
            plan.shape.T,
            plan.shape.config.V,
            seed=config.seed,
            shuffle=not config.no_shuffle,
            position=position,
        )
        self._batches = Prefetcher(StepLoader(loader, plan.accumulation))
        self._overfit_batch: np.ndarray | None = None
        self._pending: deque[_Queued] = deque()
        self._last_report = 0.0
        self._log = RunLog(
            folder, resume_step=progress.step if self._saved_step is not None else None
        )

    def loop(self, stop: StopSignal) -> None:
        """Train until the last step or a signal; either way a checkpoint is left behind."""
        config, console = self.plan.config, self.console
        console.start(self.progress.step, self.plan.steps)
        self._last_report = time.perf_counter()
        while True:
            is_last = self.progress.step == self.plan.steps
            validates = self._due(config.val_every, is_last=is_last) and not stop.received
            samples = self._due(config.sample_every, is_last=is_last) and not stop.received
            saves = self._due(config.checkpoint_every, is_last=is_last) or stop.received
            if validates or samples or saves or is_last:
                self._report(0)
                improved = validates and self._validate()
                if samples and self.progress.step:
                    self._sample()
                if is_last or stop.received or ((saves or improved) and self.progress.step):
                    self._save()
                self._last_report = time.perf_counter()
            if is_last or stop.received:
                break
            self._train_step()
        console.finish()

    def close(self) -> None:
        """Stop the bar and the loader's thread, close the log."""
        self.console.finish()
        self._batches.close()
        self._log.close()

    def _due(self, every: int | None, *, is_last: bool) -> bool:
        return bool(every) and (is_last or self.progress.step % every == 0)  # type: ignore[operator]

    def _train_step(self) -> None:
        """Queue one step; report those that are done."""
        step, plan = self.progress.step, self.plan
        rate = plan.schedule(step)
        pending = self.trainer.step(self._next_input(), step, rate)
        position = self._batches.position
        self._pending.append(_Queued(step, rate, position, pending))
        self.progress = replace(
            self.progress, step=step + 1, epoch=position.epoch, rows=position.rows
        )
        self._report(MAX_PENDING)

    def _next_input(self) -> np.ndarray:
        if self._overfit_batch is not None:
            return self._overfit_batch
        packed = self._batches.next_batch().packed
        if self.plan.config.overfit:
            self._overfit_batch = packed
        return packed

    def _report(self, most_pending: int) -> None:
        """Show and log finished steps, waiting only for those beyond `most_pending`."""
        pending = self._pending
        while pending and (len(pending) > most_pending or pending[0].result.ready()):
            self._report_step(pending.popleft())

    def _report_step(self, queued: "_Queued") -> None:
        result, position, plan = queued.result.result(), queued.position, self.plan
        self._require_finite(queued.step, result)
        now = time.perf_counter()
        elapsed, self._last_report = now - self._last_report, now
        epoch = position.epoch + position.rows / plan.rows_per_epoch
        self._log.step(
            queued.step,
            result.loss,
            queued.rate,
            result.norm,
            ms=round(1e3 * elapsed, 3),
            epoch=round(epoch, 4),
        )
        self.console.step(
            StepLine(
                queued.step + 1,
                epoch,
                result.loss,
                queued.rate,
                result.norm,
                elapsed,
                plan.tokens_per_step,
                None
                if plan.peak_flops is None
                else plan.flops_per_step / plan.peak_flops / elapsed,
            )
        )

    def _require_finite(self, step: int, result: StepResult) -> None:
        if math.isfinite(result.loss) and math.isfinite(result.norm):
            return
        raise RunError(
            f"step {step}: loss {result.loss}, gradient norm {result.norm}. The run stops; "
            f"{self._last_checkpoint()} Try a smaller learning rate (-l), more warm-up (-u), or "
            f"gradient clipping."
        )

    def _validate(self) -> bool:
        """Evaluate, print and log; True if this is the lowest loss so far."""
        if self._validation is None:
            return False
        step = self.progress.step
        loss = self.trainer.evaluate((x, y) for x, y, _ in self._validation)
        improved = loss < self.progress.best_loss
        if improved:
            self.progress = replace(self.progress, best_loss=loss, best_step=step)
        bits = build.bits_per_byte(loss, self._bytes_per_token)
        self.console.validation(step, loss, bits, best=improved)
        more = {} if bits is None else {"bits_per_byte": bits}
        self._log.validation(step, loss, **more)
        return improved

    def _sample(self) -> None:
        step, tokenizer = self.progress.step, self.data.tokenizer
        length = self.plan.config.sample_length or 64
        prompt = [tokenizer.eot if tokenizer and tokenizer.eot is not None else 0]
        seed = (self.plan.config.seed, step)
        ids = list(self._generator.generate(prompt, length, TRAIN_SAMPLING, seed))
        text = tokenizer.decode(ids) if tokenizer else " ".join(map(str, ids))
        self.console.sample(step, text)
        self._log.sample(step, text)

    def _save(self) -> None:
        """Write the checkpoint of this step, unless the run was resumed from it."""
        step, trainer, device = self.progress.step, self.trainer, self.plan.device
        if step == self._saved_step:
            return
        try:
            self._log.flush()
            save_checkpoint(
                self.folder,
                self.plan.shape.config,
                self.progress,
                device.download(trainer.params.flat),
                device.download(trainer.m.flat),
                device.download(trainer.v.flat),
                None if trainer.master is None else device.download(trainer.master),
            )
        except RunError as error:
            raise RunError(f"{error} {self._last_checkpoint()}") from error
        self._saved_step = step
        best = self.progress.best_step if self._validation is not None else None
        prune_checkpoints(self.folder, self.plan.config.keep, best)
        self.console.saved(step, str(self.folder))

    def _last_checkpoint(self) -> str:
        steps = checkpoint_steps(self.folder)
        if not steps:
            return "No checkpoint was saved yet."
        return (
            f"The last complete checkpoint is step {steps[-1]}: "
            f"go on from it with --resume {self.folder}."
        )


@dataclass(frozen=True)
class _Queued:
    """A step that was handed to the device, and what to log with its result."""

    step: int
    rate: float
    position: Position
    result: PendingStep


def closing_lines(
    run: Run, signal_name: str | None, levels: tuple[float, float] | None
) -> list[str]:
    """What came of the run, and what to do next."""
    progress, plan, folder = run.progress, run.plan, run.folder
    lines = [f"{progress.step} of {plan.steps} steps in {run.console.elapsed_s():.0f} s."]
    if math.isfinite(progress.best_loss):
        best = (
            f"best validation loss {progress.best_loss:.4f} nats/token at step {progress.best_step}"
        )
        if levels:
            best += f" (unigram {levels[0]:.4f}, bigram {levels[1]:.4f})"
        lines.append(best)
    if signal_name:
        lines.append(f"stopped by {signal_name}; go on:  python -m cupygpt.train --resume {folder}")
    lines.append(f"write text:  python -m cupygpt.sample {folder}")
    if plan.config.train_data is None:
        lines += [
            "your own text:  python -m cupygpt.prepare mytext.txt --tokenizer bytes",
            "                python -m cupygpt.train -i mytext_train.bin -j mytext_val.bin "
            "--tokenizer bytes -t 128",
        ]
    return lines
