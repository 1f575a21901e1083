"""``model_card.md`` in the run folder: what was trained, on what, and what it measured."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger

from zoo.base import PoseModule
from zoo.metrics import METRIC_DEFINITIONS, PoseMetrics
from zoo.pose import write_atomically

__all__ = ["ModelCard"]


class ModelCard(pl.Callback):
    """Writes the card at the end of a training; W&B gets it as a file of the run.

    Numbers are this run's validation, with the definition of their protocol; the paper's own are
    on other data and are not repeated here.

    Args:
        facts: lines of the first table, such as paper, recipe and command.
    """

    def __init__(self, facts: Mapping[str, str] | None = None) -> None:
        self.facts = dict(facts or {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tells W&B how the numbers of this run are defined."""
        metrics = getattr(pl_module, "val_metrics", None)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and metrics is not None and trainer.is_global_zero:
                protocol = {"val": metrics.definition}
                logger.experiment.config.update({"protocol": protocol}, allow_val_change=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the card.

        Raises:
            zoo.errors.OutputError: it cannot be written.
        """
        assert isinstance(pl_module, PoseModule)
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # asks all processes
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = write_atomically(folder / "model_card.md", self.text(trainer, pl_module).encode())
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.save(str(path), base_path=str(folder), policy="now")

    def text(self, trainer: pl.Trainer, model: PoseModule) -> str:
        """The card as Markdown."""
        name = model.zoo_name or type(model).__name__
        spec, skeleton = model.input_spec, model.skeleton
        data = getattr(trainer, "datamodule", None)
        size = sum(p.numel() for p in model.parameters())
        clip = f", {spec.frames} frames at {spec.clip_fps:g} per second" if spec.frames > 1 else ""
        facts = {
            **self.facts,
            "parameters": f"{size:,}",
            "input": f"{spec.kind}, crop of {spec.image_size} px, "
            f"{spec.crop_scale:g} times the person's box{clip}",
            "output": f"{skeleton.name}, mm, camera frame, {skeleton.root} at the origin",
            "trained": f"{trainer.current_epoch} epochs, {trainer.global_step} steps, "
            f"seed {model.run_seed}, precision {trainer.precision}, "
            f"{trainer.world_size} process(es)",
        }
        if data is not None:
            facts["data"] = f"`{type(data).__name__}` {_arguments(data)}"
        lines = [f"# {name}", "", (inspect.getdoc(type(model)) or "").split("\n")[0], "", "| | |"]
        lines += ["|---|---|", *(f"| {key} | {value} |" for key, value in facts.items())]
        lines += ["", "## Measured on validation", "", *self._measured(trainer, model.val_metrics)]
        lines += ["", "## Arguments", "", "```json", json.dumps(dict(model.hparams), indent=1)]
        return "\n".join([*lines, "```", ""])

    def _measured(self, trainer: pl.Trainer, metrics: PoseMetrics | None) -> list[str]:
        values = {
            key.removeprefix("val/"): float(value)
            for key, value in trainer.callback_metrics.items()
            if key.startswith("val/") and math.isfinite(float(value))
        }
        if metrics is None or not values:
            return ["nothing"]
        lines = [metrics.definition, "", "| metric | last epoch | |", "|---|---|---|"]
        lines += [f"| {k} | {v:.2f} | {METRIC_DEFINITIONS.get(k, '')} |" for k, v in values.items()]
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.best_model_score is not None:
                best = float(callback.best_model_score)
                lines += ["", f"`best.ckpt` has {callback.monitor} {best:.2f}."]
        return lines


def _arguments(data: Any) -> str:
    """The arguments that differ from their defaults."""
    given = {}
    for name, parameter in inspect.signature(type(data)).parameters.items():
        value = getattr(data, name, parameter.default)
        plain = isinstance(value, int | float | str | list | tuple | dict)  # no method of the name
        if plain and value != parameter.default:
            given[name] = value
    return ", ".join(f"{k} {v}" for k, v in given.items()) or "with its defaults"
