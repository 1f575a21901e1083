"""Pictures of what a model predicts, while it learns and at the end of a test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from zoo.base import PoseModule
from zoo.batch import PoseBatch, Prediction
from zoo.errors import ZooError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PoseFigures"]


class PoseFigures(pl.Callback):
    """Sheets of predicted poses beside the true ones, a learning curve, and errors by joint.

    Written to ``figures/`` in the run folder: ``val-epoch0007.png`` (the same few samples each
    time, spread over the validation set), ``learning_curve.png`` at the end of training (if there
    is a CSV logger), ``test.png`` and ``joint_errors.png`` after a test. Sheets also go to every
    logger that takes images, as do the curve and the errors. Works without a logger; only the first
    process draws; a ``fast_dev_run`` draws nothing.

    Args:
        every_n_epochs: a sheet every so many epochs with validation, and after the first one.
        samples: columns of a sheet.
    """

    def __init__(self, every_n_epochs: int = 5, samples: int = 6) -> None:
        self.every_n_epochs, self.samples = every_n_epochs, samples
        self._wanted: Counter[int] = Counter()
        self._kept: list[tuple[PoseBatch, Prediction]] = []
        self._error = torch.zeros(2, 0)

    # ---- validation -----------------------------------------------------------------------------

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Chooses the samples."""
        self._kept = []
        self._wanted = Counter()
        if self._is_due(trainer):
            self._wanted = _spread(trainer.num_val_batches, self.samples)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the chosen samples."""
        self._keep(cast(PoseModule, pl_module), outputs, batch, batch_idx, dataloader_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the sheet."""
        folder = self._folder(trainer)
        if not self._kept:
            return
        fitting = trainer.state.fn == "fit"
        name = f"val-epoch{trainer.current_epoch:04d}.png" if fitting else "val.png"
        title = f"epoch {trainer.current_epoch}" if fitting else "validation"
        self._draw_sheet(trainer, cast(PoseModule, pl_module), folder / name, title)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        if trainer.sanity_checking or _is_trial(trainer) or not trainer.is_global_zero:
            return False
        epoch = trainer.current_epoch
        return trainer.state.fn != "fit" or epoch == 0 or (epoch + 1) % self.every_n_epochs == 0

    # ---- test -----------------------------------------------------------------------------------

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Chooses the samples."""
        self._kept = []
        self._error = torch.zeros(2, len(cast(PoseModule, pl_module).skeleton))
        first = trainer.is_global_zero and not _is_trial(trainer)
        self._wanted = _spread(trainer.num_test_batches, self.samples) if first else Counter()

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the chosen samples and adds up the errors by joint."""
        model = cast(PoseModule, pl_module)
        self._keep(model, outputs, batch, batch_idx, dataloader_idx)
        if isinstance(outputs, dict) and "pred_3d" in outputs and "joints_3d" in batch:
            self._error += _error_by_joint(cast(Prediction, outputs), model.select_frames(batch))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the sheet and the errors by joint.

        The bars are over what the loaders gave: with several processes a few samples that pad the
        last batches count twice, which the test's own metrics correct.
        """
        from zoo.draw import draw_joint_errors

        model = cast(PoseModule, pl_module)
        folder = self._folder(trainer)
        total = trainer.strategy.reduce(self._error.to(pl_module.device), reduce_op="sum")
        error, count = cast(Tensor, total).cpu()
        if _is_trial(trainer) or not trainer.is_global_zero:
            return
        if self._kept:
            self._draw_sheet(trainer, model, folder / "test.png", "test")
        if count.any():
            mean = (error / count).numpy()  # 0 / 0 = NaN: a joint that was never annotated
            names = model.skeleton.joints
            figure = _save(
                lambda: draw_joint_errors(mean, names, "root-relative error, test"),
                folder / "joint_errors.png",
            )
            _log_figure(trainer, "test/joint_errors", figure)

    # ---- end of training ------------------------------------------------------------------------

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the learning curve."""
        from zoo.draw import draw_learning_curve

        folder = self._folder(trainer)
        if _is_trial(trainer) or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()
                metrics = Path(logger.log_dir) / "metrics.csv"
                if metrics.is_file():
                    draw = partial(draw_learning_curve, metrics)
                    _log_figure(trainer, "curve", _save(draw, folder / "learning_curve.png"))
                return

    # ---- shared ---------------------------------------------------------------------------------

    def _folder(self, trainer: pl.Trainer) -> Path:
        """``figures`` in the run folder; all processes must ask."""
        return Path(trainer.log_dir or trainer.default_root_dir) / "figures"

    def _keep(
        self, model: PoseModule, outputs: Any, batch: Any, batch_idx: int, loader: int
    ) -> None:
        wanted = self._wanted[batch_idx] if loader == 0 else 0
        if not wanted or not isinstance(outputs, dict) or "pred_3d" not in outputs:
            return
        size = len(outputs["pred_3d"])
        # Evenly spread over the batch, which is cut before it is copied.
        index = torch.arange(min(wanted, size)) * size // min(wanted, size)
        cut = _take(model.select_frames(batch), index)
        self._kept.append((cast(PoseBatch, cut), cast(Prediction, _take(outputs, index))))

    def _draw_sheet(self, trainer: pl.Trainer, model: PoseModule, path: Path, title: str) -> None:
        from zoo.draw import draw_sheet

        keys = set.intersection(*(set(batch) for batch, _ in self._kept))
        batch = {k: torch.cat([cast(Any, b)[k] for b, _ in self._kept]) for k in keys}
        prediction = {
            k: torch.cat([cast(Any, p)[k] for _, p in self._kept]) for k in self._kept[0][1]
        }
        self._kept = []
        figure = _save(
            lambda: draw_sheet(
                cast(PoseBatch, batch), cast(Prediction, prediction), model.skeleton, title=title
            ),
            path,
        )
        _log_figure(trainer, path.stem.split("-")[0] + "/poses", figure)


def _is_trial(trainer: pl.Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _spread(batches: list[int | float], samples: int) -> Counter[int]:
    """How many samples to take of which batch of the first loader, evenly spread."""
    count = batches[0] if batches else 0
    last = int(count) if count != float("inf") else 1
    return Counter(k * last // samples for k in range(samples)) if last else Counter()


def _take(values: Any, index: Tensor) -> dict[str, Tensor]:
    """Those samples of every tensor, on the CPU."""
    return {k: v[index.to(v.device)].detach().cpu() for k, v in values.items()}


def _error_by_joint(prediction: Prediction, batch: PoseBatch) -> Tensor:
    """(2, J): sum of the errors in mm, and number, of the valid joints."""
    error = (prediction["pred_3d"] - batch["joints_3d"]).norm(dim=-1)
    valid = batch["valid_3d"] if "valid_3d" in batch else torch.ones_like(error, dtype=torch.bool)
    error = error.where(valid, 0.0).flatten(0, 1).sum(0)
    return torch.stack([error, valid.flatten(0, 1).sum(0)]).float().cpu()


def _save(draw: Callable[[], Figure], path: Path) -> Figure | None:
    """Draws and writes; a figure that fails is a warning and no reason to end a training."""
    from zoo.draw import save_figure

    try:
        figure = draw()
        save_figure(figure, path, dpi=110)
    except ZooError as error:
        rank_zero_warn(f"no figure {path.name}: {error}")
        return None
    return figure


def _log_figure(trainer: pl.Trainer, key: str, figure: Figure | None) -> None:
    """Hands a figure to every logger that takes images."""
    from zoo.draw import figure_to_array

    takers = [logger for logger in trainer.loggers if _takes_images(logger)]
    if figure is not None and takers:
        image = figure_to_array(figure)
        for logger in takers:
            _log_image(logger, key, image, trainer.global_step)


def _takes_images(logger: Logger) -> bool:
    return hasattr(logger, "log_image") or isinstance(logger, TensorBoardLogger)


def _log_image(logger: Logger, key: str, image: Any, step: int) -> None:
    if hasattr(logger, "log_image"):  # W&B, Comet, Neptune share this name
        logger.log_image(key, [image])
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(key, image, step, dataformats="HWC")
