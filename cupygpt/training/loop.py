"""The training loop: what happens at which step, what is kept, and what a person is told."""

import contextlib
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cupygpt.checkpoint.state_file import Progress, TrainState
from cupygpt.console.bar import StepLine
from cupygpt.console.console import Console
from cupygpt.console.stop_signal import StopRequest
from cupygpt.data.document_start import document_start
from cupygpt.data.loader import START, Packed, Position, Prefetcher, StepLoader
from cupygpt.distributed.ranks import Ranks, rank0_first
from cupygpt.errors import ConfigError, RunError
from cupygpt.model.generate import Generator, Sampling
from cupygpt.planning.open_data import Data
from cupygpt.planning.plan import Plan, train_loader
from cupygpt.run_folder.log import RunLog
from cupygpt.run_folder.record import update_record
from cupygpt.training.clock import Clock
from cupygpt.training.compile_ahead import compile_ahead
from cupygpt.training.diverged import diverged, has_finite_moments, is_finite
from cupygpt.training.keeper import keeper_of, last_checkpoint
from cupygpt.training.length import final_plan, fixed_at, measured_plan
from cupygpt.training.trainer import PendingStep, make_trainer
from cupygpt.training.validator import Validator, open_questions

MAX_PENDING = 3
"""Most steps that are queued before their losses are read."""

READER_GONE = "SIGPIPE"
"""What stops a run whose console is a pipe that its reader has closed."""

TRAIN_SAMPLING = Sampling(temperature=0.8, top_p=0.95)


class Run:
    """One run in one folder, from `progress.step` to `plan.steps`.

    For s = `progress.step` … `plan.steps` (0-based, as in llm.c): validate, sample and save where s
    is due, then, if s < `plan.steps`, train step s. A resumed run repeats validation and sample at
    the step that it was saved at, so its log equals that of a run that never stopped.

    With several `ranks` all go through the same steps. Only rank 0 samples, logs, writes the model
    and shows its console.
    """

    def __init__(
        self,
        plan: Plan,
        data: Data,
        folder: Path,
        console: Console,
        progress: Progress,
        ranks: Ranks,
        clock: Clock,
        *,
        is_resumed: bool = False,
    ) -> None:
        if plan.steps_are_fixed and progress.step >= plan.steps:
            raise ConfigError(
                f"this run already has its {plan.steps} steps. Train it longer with --extend N: N "
                f"more steps, for which the learning rate rises and falls again."
            )
        self.plan, self.data, self.folder, self.console = plan, data, folder, console
        self.progress, self.ranks, self.clock = progress, ranks, clock
        self._first_step = progress.step
        self.ran_out_of_patience = False
        self.stopped_by: str | None = None
        ranks.on_abort(self._farewell)
        console.memory = plan.device.used_bytes
        self.trainer = make_trainer(plan, ranks)
        self._generator = Generator(
            plan.device,
            plan.shape.config,
            self.trainer.params,
            plan.shape.precision,
            window=plan.shape.T,
        )
        # Rank 0 compiles, and chooses algorithms, first; the others find its results on disk.
        rank0_first(
            ranks,
            lambda: compile_ahead(plan.device, self.trainer, self._generator, console, folder),
        )
        self.validator = Validator(plan, data, ranks)
        self._questions = open_questions(
            self.trainer, data, ranks, plan.config.hellaswag, console if is_resumed else None
        )
        self._batches = _step_batches(plan, data, progress, ranks.rank)
        self._overfit_batch: np.ndarray | None = None
        self._pending: deque[_Queued] = deque()
        self._last_end: Any = None
        """The end of the step before, or of the pause after it, on the device."""
        self._keeper = keeper_of(
            plan,
            folder,
            console,
            ranks,
            clock,
            self._read_state,
            saved_step=progress.step if is_resumed else None,
        )
        self._log = RunLog(None)
        self._saves_seen, self._save_is_asked = 0, False

    def open_log(self) -> None:
        """Rank 0 logs from now on: the folder belongs to this run."""
        if self.ranks.rank == 0:
            self._log = RunLog(self.folder)

    def measure_steps(self) -> None:
        """Plan a run of so many minutes by steps that are timed, before weights are loaded."""
        if self.plan.steps_are_fixed:
            return
        self.plan, seconds = measured_plan(
            self.plan, self.trainer, self.clock, self.ranks, step=self.progress.step
        )
        self.console.note(
            f"{1e3 * seconds:.1f} ms a step: about {self.plan.steps:,} steps in "
            f"{self.plan.minutes:g} minutes; the number is fixed after the warm-up"
        )

    def load(self, state: TrainState) -> None:
        """Continue from the weights and moments of a checkpoint."""
        if (
            state.zero_shard is not None
            and state.master is not None
            and self.trainer.master is None
        ):
            self.console.warn(
                "this run keeps no master weights, so it continues from the rounded bf16 weights"
            )
        self.trainer.load(state)

    def loop(self, stop: StopRequest) -> None:
        """Train until the last step, a signal, or nobody reads the console; then save."""
        config, console = self.plan.config, self.console
        console.start(self.progress.step, self.plan.steps)
        self._last_end = self.plan.device.record()
        while True:
            if not self.plan.steps_are_fixed and self.progress.step >= fixed_at(
                self.plan, self._first_step
            ):
                self._fix_steps()
            is_last = self.progress.step == self.plan.steps
            stops = self._stops(stop)
            validates = self._due(config.val_every, is_last=is_last) and not stops
            samples = self._samples(is_last=is_last) and not stops
            saves = self._due(config.checkpoint_every or 0, is_last=is_last) or stops
            saves = saves or self._save_is_asked
            if validates or samples or saves or is_last:
                self._report(0)  # also: nothing that is not finite gets saved
                improved = validates and self._validate()
                if not validates or not self.validator.is_there:
                    self._require_finite_loss()
                if samples and self.progress.step and self.ranks.rank == 0:
                    with self.clock.measure("sample"):
                        self._sample()
                stops = self._stops(stop)  # a signal may have come meanwhile
                is_last = is_last or self.ran_out_of_patience
                saves = saves or self._save_is_asked
                if is_last or stops or (saves and self.progress.step):
                    self._keeper.save(self._log, self.progress.step, self._best_step)
                    self._save_is_asked = False
                elif improved and self.progress.step:
                    self._keeper.keep_best(self._log, self.progress.step)
                self._last_end = self.plan.device.record()
            if is_last or stops:
                break
            self._train_step()
        console.finish()
        if self._log.failure:
            raise RunError(f"{self._log.failure} {last_checkpoint(self.folder)}")

    def _fix_steps(self) -> None:
        """From here on a run of so many minutes has its number of steps."""
        self._report(0)
        self.plan = final_plan(
            self.plan,
            self.clock,
            self.ranks,
            step=self.progress.step,
            steps_before=self._first_step,
        )
        steps, minutes = self.plan.steps, self.plan.minutes
        if self.ranks.rank == 0:
            update_record(self.folder, steps=steps)
        self.console.set_total(steps)
        self.console.note(
            f"{steps:,} steps: so many fit into {minutes:g} minutes at "
            f"{1e3 * self.clock.mean('step'):.1f} ms a step"
        )
        self._last_end = self.plan.device.record()

    def close(self) -> None:
        """Stop the bar and the loader's thread, close the log."""
        self.console.finish()
        self._batches.close()
        self._log.close()

    def _stops(self, stop: StopRequest) -> bool:
        """Whether any rank has got a signal: all hear of it here, at the same step."""
        received = stop.received or (READER_GONE if self.console.reader_gone else None)
        asked = stop.saves_asked
        everyone = self.ranks.all_gather_object(
            [received or self._log.failure, asked > self._saves_seen or self._keeper.is_due()]
        )
        self._saves_seen = asked
        self._save_is_asked |= any(is_asked for _, is_asked in everyone)
        names = [name for name, _ in everyone if name]
        self.stopped_by = names[0] if names else None
        return bool(names)

    def _due(self, every: int, *, is_last: bool) -> bool:
        return bool(every) and (is_last or self.progress.step % every == 0)

    def _samples(self, *, is_last: bool) -> bool:
        """Whether a sample is due. Just before the last step none is: that step gets its own."""
        every, left = self.plan.config.sample_every, self.plan.steps - self.progress.step
        is_near = self.plan.steps_are_fixed and every > 1 and 0 < left <= max(1, every // 10)
        return self._due(every, is_last=is_last) and not is_near

    def _train_step(self) -> None:
        """Queue one step; report those that are done."""
        step, plan = self.progress.step, self.plan
        lr = plan.schedule(step)
        pending = self.trainer.step(self._next_input(), step, lr)
        position = self._batches.position
        self._pending.append(_Queued(step, lr, position, pending))
        self.progress = replace(self.progress, step=step + 1, position=position)
        self._report(MAX_PENDING)

    def _next_input(self) -> np.ndarray:
        if self._overfit_batch is not None:
            return self._overfit_batch
        packed = self._batches.next_batch()
        if self.plan.config.overfit:
            self._overfit_batch = packed
        return packed

    def _report(self, most_pending: int) -> None:
        """Show and log finished steps, waiting only for those beyond `most_pending`.

        GPUs of several ranks do not finish a step in the same pass of the loop. But if it has
        diverged, all ranks must see it in the same pass, so none of them looks for it earlier.
        """
        pending = self._pending
        looks = self.ranks.world == 1 or not self.plan.device.is_gpu
        while pending and (len(pending) > most_pending or (looks and pending[0].result.ready())):
            self._report_step(pending.popleft())

    def _report_step(self, queued: "_Queued") -> None:
        result, position, plan = queued.result.result(), queued.position, self.plan
        if not is_finite(result.loss, result.grad_norm):
            raise self._diverged(
                f"step {queued.step}: loss {result.loss}, gradient norm {result.grad_norm}"
            )
        # By the device's clock: the loop may look at a result long after the step's end.
        end = queued.result.event
        elapsed, self._last_end = plan.device.elapsed_ms(self._last_end, end) / 1e3, end
        self.clock.add("step", elapsed)
        epoch = position.epoch + position.rows / plan.rows_per_epoch
        self._log.step(
            queued.step,
            result.loss,
            queued.lr,
            result.grad_norm,
            ms=round(1e3 * elapsed, 3),
            epoch=round(epoch, 4),
        )
        self.console.step(
            StepLine(
                step=queued.step + 1,
                epoch=epoch,
                loss=result.loss,
                lr=queued.lr,
                grad_norm=result.grad_norm,
                step_s=elapsed,
                tokens=plan.tokens_per_step,
                mfu=plan.flops_per_step / plan.peak_flops / elapsed if plan.peak_flops else None,
            )
        )

    def _require_finite_loss(self) -> None:
        """Raise RunError if the run has diverged in its last update."""
        losses = self.ranks.all_gather_object(str(self.trainer.loss_of_input()))
        for loss in map(float, losses):
            if not is_finite(loss):
                raise self._diverged(f"step {self.progress.step}: the loss is {loss}")

    def _diverged(self, what: str) -> RunError:
        """The error of all ranks, which come here together, after the best weights are saved."""
        with contextlib.suppress(RunError):
            self._keeper.save_best(self._log)
            if self.ranks.rank != 0:
                # Rank 0 is the last to finish a checkpoint. It names it, and ends this rank.
                self.ranks.all_gather_object("rank 0 speaks for all")
        return diverged(what, self.plan, self.data, self.folder)

    def _validate(self) -> bool:
        """Validate, and answer questions; True if this is the lowest loss so far."""
        improved = self.validator.is_there and self._validate_rows()
        step = self.progress.step
        if self._questions and step:
            with self.clock.measure("questions"):
                found = self._questions.answers()
            self.console.evaluation(step, f"{self._questions.path.name}: {found.in_short()}")
            self._log.evaluation(step, found.share(found.by_token), found.accuracies())
        return improved

    def _validate_rows(self) -> bool:
        """Evaluate the rows, print and log; True if this is the lowest loss so far."""
        step, config = self.progress.step, self.plan.config
        with self.clock.measure("validation"):
            found = self.validator.validate(self.trainer, step)
        if not is_finite(found.loss):
            raise self._diverged(f"step {step}: validation loss {found.loss}")
        improved = found.loss < self.progress.best_loss
        if improved:
            self.progress = replace(self.progress, best_loss=found.loss, best_step=step)
        bits = found.bits_per_byte
        self.console.validation(step, found.loss, bits, best=improved, reference=found.reference)
        self._log.validation(step, found.loss, **({} if bits is None else {"bits_per_byte": bits}))
        since = (step - self.progress.best_step) // max(1, config.val_every)
        self.ran_out_of_patience = config.patience is not None and since >= config.patience
        return improved

    def _sample(self) -> None:
        step, tokenizer = self.progress.step, self.data.tokenizer
        length = self.plan.config.sample_length
        prompt = document_start(self.data.train, tokenizer)
        eot = tokenizer.eot if tokenizer else None
        seed = (self.plan.config.seed, step)
        drawn = self._generator.generate(prompt, length, TRAIN_SAMPLING, seed, stop=eot)
        ids = [token for token in prompt if token != eot] + list(drawn)
        text = tokenizer.decode(ids) if tokenizer else " ".join(map(str, ids))
        self.console.sample(step, text)
        self._log.sample(step, text)

    def _read_state(self) -> TrainState:
        """What this rank saves at this step; on no rank may it have diverged."""
        state = self.trainer.state(self.progress)
        if not all(self.ranks.all_gather_object(has_finite_moments(state))):
            raise self._diverged(f"step {self.progress.step}: AdamW's moments are not finite")
        return state

    @property
    def _best_step(self) -> int | None:
        is_validated = self.validator.is_there and is_finite(self.progress.best_loss)
        return self.progress.best_step if is_validated else None

    def _farewell(self) -> str:
        """When another rank dies: restore the terminal, and say where the run can continue."""
        self.console.finish()
        return last_checkpoint(self.folder) if self.ranks.rank == 0 else ""


def _step_batches(plan: Plan, data: Data, progress: Progress, rank: int) -> Prefetcher[Packed]:
    """The input of each step, prepared on a thread, from where `progress` stands."""
    # A run that overfits one batch takes the first one, also after it was resumed.
    position = START if plan.config.overfit else progress.position or START
    loader = train_loader(plan, data, position, rank)
    return Prefetcher(StepLoader(loader, plan.accumulation))


@dataclass(frozen=True)
class _Queued:
    """A step that was handed to the device, and what to log with its result."""

    step: int
    lr: float
    position: Position
    result: PendingStep
