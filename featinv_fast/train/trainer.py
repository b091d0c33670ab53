"""The training loop: one for every recipe. Killed at any moment and started again, it ends with the same weights."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featinv_fast.config import to_dict
from featinv_fast.engine.lock import exclusive_lock
from featinv_fast.errors import ConfigError, TrainingError
from featinv_fast.train import processes, randomness
from featinv_fast.train.accelerator import make_accelerator, training_device
from featinv_fast.train.average import Average, learning
from featinv_fast.train.logs import VALIDATION, Log, save_grid
from featinv_fast.train.objective import Objective
from featinv_fast.train.progress import CHECKPOINTS, load_progress, save_progress
from featinv_fast.train.settings import RateShape, TrainingConfig
from featinv_fast.train.validation import Validation
from featinv_fast.train.workers import Workers, layers_of_a_whole_batch

logger = logging.getLogger(__name__)

# What may differ between two starts of one run: none of it changes the weights, but for the steps that come after.
FREE = tuple(f"training.{name}" for name in ("log_every", "checkpoint_every", "image_every", "steps"))


def train(
    objective: Objective,
    config: TrainingConfig,
    folder: Path,
    validation: Validation | None = None,
    *,
    identity: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> tuple[str, ...]:
    """Train `objective`, or go on with the run that `folder` holds, to the last step.

    At the end the objective holds the result: the averaged weights where there is an average. A run may be continued
    to another number of steps than it was started for. Where the learning rate does not depend on that number, it ends
    as a run that was started for it, bit for bit.

    Of several processes (`accelerate launch`, torchrun) each trains on its share of every batch of `config.batch_size`
    items; the main one alone writes to the folder, which all must see. The result is that of one process up to the
    order of sums, and a run may go on with another number of processes.

    Args:
        objective: what to train; it is moved to the device.
        config: the optimisation.
        folder: of the run: `checkpoints/`, `images/`, `log.csv`; of its validation `validation.csv`, `validation/`.
        validation: what it is looked at with, or None.
        identity: what else defines the run, as JSON types; a folder with another run's checkpoints is refused.
        progress: show a bar on stderr.

    Returns:
        Remarks: what no run does that is started anew with this configuration.

    Raises:
        ConfigError: the folder holds a run with other settings, or one that has done more steps; or the processes
            cannot have equal shares of a batch that together do what the batch does.
        TrainingError: the loss is not finite any more, or another process has ended; the checkpoints before that are
            kept.
        EngineLockedError: another process trains in the same folder.
        MissingPackageError: accelerate is not installed.
    """
    processes.start(training_device(config))
    with contextlib.ExitStack() as stack:
        with processes.main_first():
            _require_shares(config, objective)
            if processes.is_main():
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(exclusive_lock(folder / ".lock", work="training", place="folder"))
        run = _Run(objective, config, folder, validation, dict(identity or {}))
        device = run.accelerator.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            run.train(progress=progress)
        processes.wait()
    return tuple(run.remarks)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The rate of step number `step`, counted from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.rate_shape is RateShape.CONSTANT:
        return config.learning_rate
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


class _Run:
    """A training run between its start and its end."""

    def __init__(
        self,
        objective: Objective,
        config: TrainingConfig,
        folder: Path,
        validation: Validation | None,
        identity: dict[str, Any],
    ) -> None:
        self.config = config
        self.folder = folder
        self.validation = validation
        self.identity = identity | {"training": to_dict(config)}
        self.accelerator = make_accelerator(config)
        if config.channels_last:
            objective.to(memory_format=torch.channels_last)
        self.share = processes.share()
        self.parameters = list(learning(objective).values())
        optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
        )
        self.objective = objective
        self.model, self.optimizer = self.accelerator.prepare(objective, optimizer)
        self.workers = Workers(config, objective, self.accelerator.device) if config.workers > 1 else None
        self.average = None if config.ema_decay is None else Average(objective, config.ema_decay)
        self.remarks: list[str] = []  # see `train`
        self.step = 0  # finished optimiser steps
        self.window = 0  # of them since the last row of the log
        self.sums: dict[str, float] = {}  # of the losses in that window

    def train(self, *, progress: bool) -> None:
        try:
            with processes.others_may_end():
                self._train(progress=progress)
        finally:
            if self.workers is not None:
                self.workers.close()

    def _train(self, *, progress: bool) -> None:
        from tqdm import tqdm

        with processes.main_first():
            self._resume()
        processes.require_same(self.step)
        config, validation = self.config, self.validation
        bar = tqdm(total=config.steps, initial=self.step, desc=self.folder.name, unit="step", disable=not progress)
        main = processes.is_main()
        with contextlib.ExitStack() as stack:
            stack.enter_context(bar)
            log = stack.enter_context(Log(self.folder, self.step)) if main else None
            validated = stack.enter_context(Log(self.folder, self.step, VALIDATION)) if main and validation else None
            batches = stack.enter_context(contextlib.closing(self._batches()))
            self.objective.train()
            while self.step < config.steps:
                losses = self._optimise(batches)
                self.step += 1
                self.window += 1
                self.sums = {name: self.sums.get(name, 0.0) + value for name, value in losses.items()}
                bar.update()
                last = self.step == config.steps
                if self.step % config.log_every == 0:
                    bar.set_postfix(loss=f"{losses['loss']:.4g}")
                    self._log(log)
                if validation and (last or self.step % validation.every == 0):
                    self._validate(validation, validated)
                if last or self.step % config.checkpoint_every == 0:
                    self._check_finite(losses["loss"])
                    if main:
                        save_progress(self.folder / CHECKPOINTS, self.step, self._state())
                if config.image_every and (last or self.step % config.image_every == 0):
                    self._preview()
        if self.average is not None:
            self.average.write()
        self.objective.eval()

    def _optimise(self, batches: Iterator[tuple[int, dict[str, Tensor]]]) -> dict[str, float]:
        """One optimiser step; its losses, averaged over its batches, and the gradient's norm."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        limit = math.inf if self.config.clip_norm is None else self.config.clip_norm
        totals: dict[str, float] = {}
        for _ in range(self.config.accumulation):
            number, batch = next(batches)
            with self.accelerator.accumulate(self.model):
                losses = self._add_gradients(number, batch)
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.parameters, limit)
                    totals["gradient_norm"] = norm.item()
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.item() / self.config.accumulation
        if self.average is not None:
            self.average.update()
        return processes.averaged(totals, self.accelerator.device)

    def _add_gradients(self, number: int, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of batch `number`; their gradients are added to those of the parameters."""
        average = None if self.average is None else self.average.weights
        seed = self.config.seed
        if self.workers is not None:
            return self.workers.add_gradients(
                lambda part, i: self.model(part, randomness.generator(seed, "noise", number, i), average),
                batch,
                self.parameters,
            )
        # For layers that draw by themselves, such as dropout; everything else uses the generator.
        torch.manual_seed(randomness.derived_seed(seed, "layers", number))
        losses: dict[str, Tensor] = self.model(
            batch, randomness.generator(seed, "noise", number, share=self.share), average
        )
        self.accelerator.backward(losses["loss"])
        return losses

    def _batches(self) -> Generator[tuple[int, dict[str, Tensor]], None, None]:
        """Batch numbers and batches on the device, from where the run stands; the next one is loaded meanwhile."""
        seed, size, length = self.config.seed, self.config.batch_size, self.objective.length
        number, end = (step * self.config.accumulation for step in (self.step, self.config.steps))

        def load(number: int) -> dict[str, Tensor]:
            return self.objective.load(randomness.draws(seed, number, size, length)[self.share.places])

        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            following = pool.submit(load, number) if number < end else None
            while following is not None:
                batch = following.result()
                following = pool.submit(load, number + 1) if number + 1 < end else None
                yield number, {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
                number += 1

    def _log(self, log: Log | None) -> None:
        row = {name: total / self.window for name, total in self.sums.items()}
        self.sums, self.window = {}, 0
        self._check_finite(row["loss"])
        if log is not None:
            log.write(self.step, row | {"learning_rate": learning_rate(self.config, self.step - 1)})

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingError(
                "the loss is not finite any more",
                given=f"{loss} at step {self.step}",
                expected="a finite loss",
                remedy="lower the learning rate, clip the gradient, or train in fp32 or bf16; "
                f"the checkpoints in {self.folder} are from before",
            )

    def _validate(self, validation: Validation, log: Log | None) -> None:
        """The same in every process, none of which then waits for the main one, which writes."""
        with self._as_result():
            average = None if self.average is None else self.average.weights
            values, images = validation.of(self.objective, average, self.accelerator.device)
        if log is None:
            return
        log.write(self.step, values)
        if images is not None:
            save_grid(self.folder / "validation" / f"{self.step:09d}.png", images)

    @contextlib.contextmanager
    def _as_result(self) -> Iterator[None]:
        """The objective as the run would end now, for the time of the block."""
        self.objective.eval()
        averaged = contextlib.nullcontext() if self.average is None else self.average.in_place()
        with torch.no_grad(), averaged:
            yield
        self.objective.train()

    def _preview(self) -> None:
        with self._as_result():
            images = self.objective.preview()
        if images is not None and processes.is_main():
            save_grid(self.folder / "images" / f"{self.step:09d}.png", images)

    def _state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "identity": self.identity,
            "remarks": self.remarks,
            "step": self.step,
            "window": self.window,
            "sums": self.sums,
            "weights": {name: p.detach() for name, p in learning(self.objective).items()},
            "buffers": dict(self.objective.named_buffers()),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else {"weights": self.average.weights, "n": self.average.updates},
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    @torch.no_grad()
    def _resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        state = load_progress(self.folder / CHECKPOINTS)
        if state is None:
            return
        differing = sorted(_differing(state["identity"], self.identity))
        if differing:
            raise ConfigError(
                "the folder holds a run with other settings",
                given={name: new for name, _, new in differing},
                expected={name: old for name, old, _ in differing},
                remedy=f"use another folder, or remove {self.folder} to start again",
            )
        started = dataclasses.replace(self.config, steps=state["identity"]["training"]["steps"])
        if self.config.steps < state["step"]:
            raise ConfigError(
                "the run has done more steps already",
                given=f"training.steps = {self.config.steps}",
                expected=f"{state['step']} or more, as the run in {self.folder} has done",
                remedy="raise training.steps, or use another folder",
            )
        self.remarks = state.get("remarks", [])
        if learning_rate(started, state["step"] - 1) != learning_rate(self.config, state["step"] - 1):
            self.remarks.append(f"the first {state['step']} steps had the learning rates of a run of {started.steps}")
            if processes.is_main():
                logger.warning("%s goes on to %d steps: %s", self.folder, self.config.steps, self.remarks[-1])
        self.step, self.window, self.sums = state["step"], state["window"], state["sums"]
        for name, parameter in learning(self.objective).items():
            parameter.copy_(state["weights"][name])
        for name, buffer in self.objective.named_buffers():
            buffer.copy_(state["buffers"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load(state["average"]["weights"], state["average"]["n"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])


def _require_shares(config: TrainingConfig, objective: Objective) -> None:
    """Refuse several processes where their shares of a batch do not do together what the whole batch does."""
    count = processes.count()
    if count == 1:
        return
    processes.require_divisible(config.batch_size)
    reasons = objective.reasons_against_shares(config.batch_size, count) + layers_of_a_whole_batch(objective)
    if config.workers > 1:
        reasons.append(f"workers = {config.workers} are threads of one process")
    if reasons:
        raise ConfigError(
            "this training cannot be shared by several processes",
            given=f"{count} processes; {'; '.join(reasons)}",
            expected="workers = 1, no layers with random numbers or statistics, parts of a batch that divide evenly",
            remedy="start one process, or change these",
        )


def _differing(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Path, old and new value of every setting in which two runs differ, `FREE` ones aside."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _differing(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new and path not in FREE:
        yield path, repr(old), repr(new)
