"""``last.ckpt``: where a training can go on after a crash, a kill, a Ctrl-C or the end of a job."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint

__all__ = ["KeepLast", "Stopped"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGREE_EVERY = 10
"""Batches between two questions to the other processes whether one of them was told to stop."""
_AGAIN_S = 1.0
"""A launcher passes a Ctrl-C on to processes that had it already; a second one comes later."""


class Stopped(BaseException):
    """A signal has ended the training, and its state is saved.

    Attributes:
        signum: number of the signal.
        step: optimiser steps that are done.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}")
        self.signum, self.step = signum, step


class KeepLast(Checkpoint):
    """Saves ``last.ckpt`` at the end of every epoch, every few minutes, and when told to stop.

    It is written between two steps only, when the state is whole: never amid a step, amid
    accumulated gradients, or between an epoch's last batch and its validation. So a training that
    is resumed from it takes the very steps that the interrupted one would have taken.

    The first SIGTERM or Ctrl-C ends the training after the step (or validation) that is running, by
    :class:`Stopped`; with several processes after at most ten more, together. A second Ctrl-C ends
    it at once, without saving.

    Args:
        folder: of ``last.ckpt``.
        minutes: between two files within an epoch.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        folder: str | Path,
        minutes: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = Path(folder) / "last.ckpt"
        self.minutes = minutes
        self._clock = clock
        self._saved = 0.0
        self._signal: int | None = None
        self._signal_at = 0.0
        self._handlers: dict[int, Any] = {}

    # ---- signals --------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Agrees on the file, and clears away what a killed process left half-written."""
        if stage != "fit":
            return
        self.path = Path(trainer.strategy.broadcast(str(self.path)))
        if trainer.is_global_zero:
            for left in self.path.parent.glob(".*.ckpt*"):
                left.unlink(missing_ok=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listens to signals from here on."""
        self._saved = self._clock()
        self._signal = signal.SIGTERM if trainer.received_sigterm else None
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._handlers[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal is None:
            self._signal, self._signal_at = signum, now
            if signum == signal.SIGINT:
                os.write(2, b"\nstopping after this step; Ctrl-C again stops at once\n")
        elif signum == signal.SIGINT and now - self._signal_at > _AGAIN_S:
            raise KeyboardInterrupt

    def _release(self) -> None:
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, handler)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Gives the signals back."""
        self._release()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the signals back."""
        self._release()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes rows out of the logs whose steps come again."""
        loop = checkpoint["loops"]["fit_loop"]
        total = loop["epoch_loop.batch_progress"]["total"]
        amid = total["completed"] < total["processed"]  # its step is logged after the file
        step = loop["epoch_loop.state_dict"]["_batches_that_stepped"] + int(amid)
        for logger in trainer.loggers:
            if hasattr(logger, "forget_from"):
                logger.forget_from(step)

    # ---- when -----------------------------------------------------------------------------------

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Saves amid an epoch, if it is time or a signal has come.

        Raises:
            Stopped: a signal has come.
        """
        if not _between_steps(trainer, batch_idx):
            return
        if trainer.world_size > 1 and batch_idx % _AGREE_EVERY != _AGREE_EVERY - 1:
            return
        signum, due = self._agree(trainer)
        if signum or due:
            self._save(trainer)
        if signum:
            raise Stopped(signum, trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves at the end of the epoch, after its validation.

        Raises:
            Stopped: a signal has come, and this was not the last epoch.
        """
        signum, _ = self._agree(trainer)
        self._save(trainer)
        if signum and not _is_over(trainer):
            raise Stopped(signum, trainer.global_step)

    def _agree(self, trainer: pl.Trainer) -> tuple[int, bool]:
        """(signal or 0, whether a file is due), the same on every process."""
        due = self._clock() - self._saved >= 60 * self.minutes
        signum = self._signal or 0
        if trainer.world_size > 1:
            state = torch.tensor([signum, int(due)], device=trainer.strategy.root_device)
            torch.distributed.all_reduce(state, torch.distributed.ReduceOp.MAX)
            signum, due = int(state[0]), bool(state[1])
        return signum, due

    def _save(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()  # what the file says is done has also been logged
        trainer.save_checkpoint(self.path)
        self._saved = self._clock()


def _is_over(trainer: pl.Trainer) -> bool:
    """Whether the epoch that ends is the last one."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    current: Any = trainer.fit_loop.epoch_progress.current
    done = current.processed
    return (
        trainer.should_stop
        or (epochs is not None and 0 <= epochs <= done)
        or 0 <= steps <= trainer.global_step
    )


def _between_steps(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether the state at the end of this batch is all there is: the next thing is a new batch."""
    loop = trainer.fit_loop.epoch_loop
    if loop.batch_progress.is_last_batch or batch_idx + 1 >= trainer.num_training_batches:
        return False
    if (batch_idx + 1) % trainer.accumulate_grad_batches:
        return False
    if trainer.max_steps >= 0 and trainer.global_step >= trainer.max_steps:
        return False
    every = trainer.val_check_batch if trainer.enable_validation else None
    if isinstance(every, int):  # counted within the epoch, or through the whole training
        return bool((batch_idx + 1) % every and (loop.total_batch_idx + 1) % every)
    return True
