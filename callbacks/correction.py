"""Self-correction at test time as a callback, and its report."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor

from zoo.base import PoseModule
from zoo.batch import SAMPLE_ID_KEYS, PoseBatch
from zoo.correction import Correction, CorrectionReport, correcting, save_csv
from zoo.metrics import SampleMetric, sample_ids

__all__ = ["SelfCorrection"]

_COLUMNS = CorrectionReport._fields


class _Frames(SampleMetric):
    """One row a frame, each frame once on any number of processes."""

    def __init__(self) -> None:
        super().__init__(width=len(_COLUMNS))

    def update(self, batch: PoseBatch, report: CorrectionReport) -> None:
        """Adds the frames of a batch."""
        rows = torch.stack([column.float() for column in report], dim=-1)
        self._append(rows.flatten(0, 1), sample_ids(batch, rows.shape[1]))

    def compute(self) -> tuple[Tensor, Tensor]:
        """Ids (N, 6) and rows (N, 5) of all processes."""
        return self.table()


class SelfCorrection(pl.Callback):
    """Corrects the predictions of ``validate``, ``test`` and ``predict`` (``zoo.correction``).

    The validation of a training is not corrected: what it selects is the network. Metrics are those
    of the corrected poses. At the end it logs ``test/correction_...`` (or ``val/``): the mean 2D
    disagreement before and after in px of the crop, the mean number of steps, the mean movement of
    the robust joints in mm and the share of frames that kept their correction; and it writes
    ``correction.csv``, a line a frame, into the run folder. Only the first process writes.

    Args:
        settings: see ``zoo.correction.Correction.parse``; None: the model's own, which may be none.

    Raises:
        zoo.errors.UsageError: at the start of a test, where the settings do not fit the model.
    """

    def __init__(self, settings: Correction | str | None = None) -> None:
        self.settings = settings
        self._frames: _Frames | None = None
        self._open = ExitStack()

    def _start(self, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, PoseModule)
        settings = self.settings
        if settings is None:
            settings = getattr(pl_module, "correction", "off")
        if Correction.parse(settings) is not None:
            self._frames = _Frames().to(pl_module.device)
            self._open.enter_context(correcting(pl_module, settings, self._frames.update))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Switches the correction on, unless a training validates."""
        if trainer.state.fn == "validate":
            self._start(pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Switches the correction on."""
        self._start(pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Switches the correction on."""
        self._start(pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs and writes the report."""
        if trainer.state.fn == "validate":
            self._report(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs and writes the report."""
        self._report(trainer, pl_module, "test")

    def on_predict_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the report."""
        self._report(trainer, pl_module, "")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Switches the correction off."""
        self._close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Switches the correction off."""
        self._close()

    def _close(self) -> None:
        self._open.close()
        self._frames = None

    def _report(self, trainer: pl.Trainer, pl_module: pl.LightningModule, split: str) -> None:
        if self._frames is None:
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all processes
        ids, rows = self._frames.compute()  # asks all processes
        if not len(rows):
            return
        if split:
            for name, value in zip(_COLUMNS, rows.nanmean(0).float(), strict=True):
                # Every process has computed the same number from all frames.
                pl_module.log(f"{split}/correction_{name}", value, rank_zero_only=False)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            before, after, steps, moved, kept = rows.unbind(dim=1)
            columns = (before, after, steps.long(), moved, kept.bool())
            values = zip(*(column.tolist() for column in columns), strict=True)
            lines = [[*key, *line] for key, line in zip(ids.tolist(), values, strict=True)]
            header = [*SAMPLE_ID_KEYS, "clip_frame", *_COLUMNS]
            save_csv(header, lines, folder / "correction.csv")
