"""Early stopping that leaves the stages of a staged training their length."""

from __future__ import annotations

from typing import cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping

from zoo.base import PoseModule

__all__ = ["StopInLastPhase"]


class StopInLastPhase(EarlyStopping):
    """Ends the training when ``val/mpjpe_mm`` has not improved for so many validations.

    Only the last phase of a staged training is watched: the others prepare it, and their error is
    not the one that counts.

    Args:
        patience: validations without a lower error.
    """

    def __init__(self, patience: int) -> None:
        super().__init__("val/mpjpe_mm", patience=patience, mode="min", check_finite=False)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks, in the last phase."""
        if _in_last_phase(pl_module):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks, in the last phase."""
        if _in_last_phase(pl_module):
            super().on_train_epoch_end(trainer, pl_module)


def _in_last_phase(module: pl.LightningModule) -> bool:
    model = cast(PoseModule, module)
    last = [phase for phase in model.phases() if phase.epochs > 0][-1]
    return model.phase is None or model.phase == last
