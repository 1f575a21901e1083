"""Averaged weights: an exponential moving average that is what is evaluated and what is saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from zoo.errors import UsageError

__all__ = ["AveragedWeights"]

_LIVE = "weights_in_training"


class AveragedWeights(pl.Callback):
    """Keeps an exponential moving average of the parameters that train.

    Validation, the best weights of a phase, ``best.ckpt`` and the ``state_dict`` of every
    checkpoint are those of the average; what the optimiser works on travels beside it, so that a
    training can be resumed. At the end the module holds the average. Buffers, such as batch norm's
    statistics, are the newest ones. Each phase of a staged training begins an average of its own.

    Stands after ``TrainingPhases`` in the list of callbacks.

    Args:
        decay: weight of the old average in a step; the first steps of a phase forget faster, by
            (1 + n) / (10 + n).

    Raises:
        zoo.errors.UsageError: ``decay`` is not between 0 and 1.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise UsageError(f"--ema {decay}: the decay must be at least 0 and below 1")
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._updates = 0
        self._step = 0
        self._phase: str | None = None
        self._swapped = False

    # ---- the average ----------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Moves what a checkpoint held to the device that trains."""
        self._average = {k: v.to(pl_module.device) for k, v in self._average.items()}
        self._step = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begins a new average in a new phase."""
        phase = getattr(getattr(pl_module, "phase", None), "name", "")
        if phase != self._phase:
            self._phase, self._updates = phase, 0
            self._average = {k: p.detach().clone() for k, p in _trained(pl_module)}

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Takes the step into the average, if the optimiser made one."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._updates += 1
        decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
        for name, parameter in _trained(pl_module):
            self._average[name].lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def _swap(self, module: nn.Module) -> None:
        parameters = dict(module.named_parameters())
        for name, average in self._average.items():
            kept = parameters[name].detach().clone()
            parameters[name].copy_(average)
            average.copy_(kept)
        self._swapped = not self._swapped

    # ---- evaluation -----------------------------------------------------------------------------

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the average in place."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._swap(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the weights in training back."""
        if self._swapped:
            self._swap(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves the average in the module."""
        self._swap(pl_module)
        self._swapped = False

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Puts the weights in training back where a validation was broken off."""
        if self._swapped:
            self._swap(pl_module)

    # ---- checkpoint -----------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Saves the average as the weights, and the weights in training beside it."""
        if not self._average or trainer.state.fn != "fit":
            return
        weights = dict(checkpoint["state_dict"])
        live = {name: weights[name] for name in self._average}
        average = dict(self._average)
        if self._swapped:
            live, average = average, live
        checkpoint["state_dict"] = {**weights, **average}
        checkpoint[_LIVE] = live

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Puts both back; a checkpoint without an average begins one."""
        if trainer.state.fn != "fit" or _LIVE not in checkpoint:
            return
        live = checkpoint[_LIVE]
        self._average = {name: checkpoint["state_dict"][name].clone() for name in live}
        pl_module.load_state_dict(live, strict=False)

    def state_dict(self) -> dict[str, Any]:
        """How far the average of this phase is."""
        return {"updates": self._updates, "phase": self._phase}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues it."""
        self._updates, self._phase = int(state_dict["updates"]), state_dict["phase"]


def _trained(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]
