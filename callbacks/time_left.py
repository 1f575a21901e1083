"""How long the whole training will still take, in the progress bar and, on a CPU, in one line."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar

__all__ = ["CpuEstimate", "TimeLeftBar", "format_duration", "remaining_work"]

Clock = Callable[[], float]

# A training in phases changes its pace; the mean forgets over about so many batches.
_MEMORY = 100


def format_duration(seconds: float) -> str:
    """Two units, such as ``3 d 4 h``, ``2 h 05 min``, ``12 min``, ``40 s``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{max(round(seconds), 0)} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def remaining_work(trainer: pl.Trainer, batches_done: int) -> tuple[float, float] | None:
    """Training batches and validation runs that are still to come.

    Args:
        trainer: within ``fit``.
        batches_done: of the epoch that is running.

    Returns:
        ``None`` where the training has no known end.
    """
    per_epoch = trainer.num_training_batches
    batches = math.inf
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        batches = (trainer.max_epochs - trainer.current_epoch) * per_epoch - batches_done
    if trainer.max_steps is not None and trainer.max_steps >= 0:
        steps = trainer.max_steps - trainer.global_step
        batches = min(batches, steps * trainer.accumulate_grad_batches)
    if not math.isfinite(batches):
        return None
    batches = max(batches, 0)
    every = trainer.val_check_batch if trainer.enable_validation else None
    if not every or not math.isfinite(every):
        return batches, 0
    if trainer.check_val_every_n_epoch is None:  # counted in batches through the whole training
        return batches, batches / every
    per_check = trainer.check_val_every_n_epoch * per_epoch / max(per_epoch // every, 1)
    return batches, batches / per_check


class TimeLeftBar(TQDMProgressBar):
    """Lightning's progress bar with the estimated time left of the whole fit, validation included.

    Args:
        refresh_rate: batches between two updates; ``None`` takes 1 in a terminal, and 50 where the
            output is a file.
        leave: keep the bar of every epoch.
        clock: seconds; for tests.
    """

    def __init__(
        self, refresh_rate: int | None = None, leave: bool = False, clock: Clock = time.monotonic
    ) -> None:
        if refresh_rate is None:
            refresh_rate = 1 if sys.stdout.isatty() else 50
        super().__init__(refresh_rate=refresh_rate, leave=leave)
        self._clock = clock
        self._batch_s: float | None = None
        self._validation_s: float | None = None
        self._seen = 0
        self._mark: float | None = None
        self._validation_mark = 0.0
        self._done = 0

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds to the end of the fit; None before a batch was measured."""
        work = remaining_work(self.trainer, self._done)
        if work is None or self._batch_s is None:
            return None
        return work[0] * self._batch_s + work[1] * (self._validation_s or 0.0)

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Starts the stopwatch of the epoch's first batch."""
        super().on_train_epoch_start(trainer, *args)
        self._mark, self._done = self._clock(), 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Measures the batch, its loading included."""
        now = self._clock()
        self._done = batch_idx + 1
        if self._mark is not None:
            self._seen += 1
            took = now - self._mark
            if self._seen == 2 or self._batch_s is None:
                self._batch_s = took  # the first batch, slower than all others, is forgotten
            else:
                share = 1 / min(self._seen - 1, _MEMORY)
                self._batch_s += share * (took - self._batch_s)
        self._mark = now
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the validation's stopwatch."""
        super().on_validation_start(trainer, pl_module)
        self._validation_mark = self._clock()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures the validation, so that the next batch is not charged with it."""
        now = self._clock()
        if not trainer.sanity_checking:
            self._validation_s = now - self._validation_mark
        if self._mark is not None:
            self._mark += now - self._validation_mark
        super().on_validation_end(trainer, pl_module)

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Adds ``left`` to what is shown."""
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        left = self.seconds_left if trainer.state.fn == "fit" else None
        return items if left is None else {"left": format_duration(left), **items}


class CpuEstimate(pl.Callback):
    """Says after a few steps how long a paper's recipe takes on a CPU, and what is meant for one.

    Args:
        method_name: registry name, for the command.
        recipe: only ``paper`` makes it speak.
        steps: after how many it does.
        ignore: so many first steps are not measured.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        method_name: str,
        recipe: str = "paper",
        steps: int = 5,
        ignore: int = 2,
        clock: Clock = time.monotonic,
    ) -> None:
        if not 0 < ignore < steps:
            raise ValueError(f"ignore = {ignore} must lie between 0 and steps = {steps}")
        self.method_name, self.recipe = method_name, recipe
        self.steps, self.ignore = steps, ignore
        self._clock = clock
        self._count = 0
        self._start = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts from the start of this run."""
        self._count = 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Prints the estimate once."""
        self._count += 1
        if self._count == self.ignore:
            self._start = self._clock()
        if self._count != self.steps or self.recipe != "paper" or not trainer.is_global_zero:
            return
        if trainer.strategy.root_device.type != "cpu":
            return
        per_step = (self._clock() - self._start) / (self.steps - self.ignore)
        work = remaining_work(trainer, batch_idx + 1)
        if work is None:
            return
        line = (
            f"On this CPU the paper's recipe takes about {format_duration(work[0] * per_step)} "
            f"({work[0]:.0f} steps of {per_step:.2g} s, validation not counted). For a laptop: "
            f"zoo fit --method {self.method_name} --recipe small"
        )
        bar = trainer.progress_bar_callback
        if isinstance(bar, TQDMProgressBar) and bar.is_enabled:
            bar.print(line)  # above the bar, not through it
        else:
            print(line, flush=True)
