"""``zoo fit`` of tiny networks within the test's own process."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.pose_figures import PoseFigures
from datamodules.synthetic import SyntheticDataModule
from tests.scale.processes import class_names
from tests.test_contract import tiny_arguments
from zoo.cli import main

__all__ = ["class_names", "fit_tiny", "last", "quicker", "rows", "words"]


def words(method: str, run: str, *more: str, samples: int = 16) -> list[str]:
    """The command line of a tiny training; its model's sizes are in ``RUN.json``."""
    sizes = Path(f"{run}.json")
    sizes.write_text(json.dumps({"model": tiny_arguments(method)}))
    return [
        "fit", "--method", method, "--recipe", "small", "--run", run, "--config", str(sizes),
        "--data.train_samples", str(samples), "--data.batch_size", "8", "--data.val_samples", "6",
        "--data.bodies_per_subject", "1", "--trainer.log_every_n_steps", "1", "--gpus", "0",
        "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", *more,
    ]  # fmt: skip


def fit_tiny(method: str, run: str, *more: str, samples: int = 16) -> Path:
    """Trains, and returns the run folder."""
    assert main(words(method, run, *more, samples=samples)) == 0
    return Path(run)


def last(run: Path, name: str = "last") -> dict[str, Any]:
    return dict(torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True))


def rows(run: Path, column: str) -> list[float]:
    """The numbers of a column of ``metrics.csv``, in order."""
    with (run / "metrics.csv").open(newline="") as file:
        return [float(r[column]) for r in csv.DictReader(file) if r.get(column)]


def quicker(monkeypatch: pytest.MonkeyPatch, figures: bool = False) -> None:
    """Fewer training poses for the statistics, and no pictures; both are tested elsewhere."""
    poses = SyntheticDataModule.training_poses
    monkeypatch.setattr(
        SyntheticDataModule, "training_poses", lambda s, count=20000: poses(s, min(count, 300))
    )
    if not figures:
        monkeypatch.setattr(PoseFigures, "_is_due", lambda s, trainer: False)
        monkeypatch.setattr(PoseFigures, "on_train_end", lambda s, trainer, pl_module: None)
