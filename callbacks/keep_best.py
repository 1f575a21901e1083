"""``best.ckpt``: the best epoch by validation, of the phase that is running."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from zoo.base import PoseModule

__all__ = ["KeepBest"]


class KeepBest(ModelCheckpoint):
    """Saves ``best.ckpt`` by ``val/mpjpe_mm``, lowest first, anew in every phase of a training.

    The error of an earlier phase is no rival: what a later phase trains was not trained then, even
    where the validated output does not show it (the projector of ``ssc``), so its best epoch would
    be a model that is not whole. A phase without a validation leaves the file as it is.

    Args:
        folder: of ``best.ckpt``.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(
            folder, "best", monitor="val/mpjpe_mm", auto_insert_metric_name=False,
            enable_version_counter=False,
        )  # fmt: skip
        self._phase = ""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forgets the best value of an earlier phase, then saves if this one is better."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            phase = pl_module.phase if isinstance(pl_module, PoseModule) else None
            name = "" if phase is None else phase.name
            if name != self._phase:
                self._phase = name
                self.best_k_models = {}
                self.kth_best_model_path = ""
                self.kth_value = torch.tensor(torch.inf)
                self.best_model_score = None
        super().on_validation_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """With the phase that the best value belongs to."""
        return {**super().state_dict(), "phase": self._phase}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As it was when the checkpoint was written."""
        self._phase = str(state_dict.get("phase", ""))
        super().load_state_dict(state_dict)
