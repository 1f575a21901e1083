"""All callbacks in one trainer, as the command line puts them together."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from callback_toy import THREE_PHASES, ToyData, ToyLifter
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import Logger, WandbLogger

from callbacks.action_report import ActionReport
from callbacks.phases import TrainingPhases
from callbacks.pose_figures import PoseFigures
from callbacks.time_left import CpuEstimate, TimeLeftBar
from zoo.runs import AppendingCSVLogger


def make(run: Path, *loggers: Logger) -> Trainer:
    callbacks = [
        ActionReport(), PoseFigures(every_n_epochs=3), TimeLeftBar(), TrainingPhases(),
        LearningRateMonitor(), CpuEstimate("toy"),
        ModelCheckpoint(
            run / "checkpoints", "best", monitor="val/mpjpe_mm", save_last=True,
            save_on_exception=True, auto_insert_metric_name=False, enable_version_counter=False,
        ),
    ]  # fmt: skip
    return Trainer(
        accelerator="cpu", devices=1, max_epochs=-1, default_root_dir=run, callbacks=callbacks,
        logger=[AppendingCSVLogger(run), *loggers], log_every_n_steps=1, num_sanity_val_steps=1,
        enable_model_summary=False,
    )  # fmt: skip


class Stops(ToyLifter):
    """Fails once, in the second phase."""

    def on_train_epoch_end(self) -> None:
        if self.current_epoch == 3:
            raise RuntimeError("power cut")


def test_fit_stop_resume_and_test(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(RuntimeError, match="power cut"):
        make(run).fit(Stops(THREE_PHASES), datamodule=ToyData())
    model = ToyLifter(THREE_PHASES)
    trainer = make(run)
    last = run / "checkpoints" / "last.ckpt"
    trainer.fit(model, datamodule=ToyData(), ckpt_path=last, weights_only=True)
    assert trainer.current_epoch == 7
    assert {s["phase"] for s in model.seen} == {"head", "all"}
    figures = {p.name for p in (run / "figures").iterdir()}
    assert {"learning_curve.png", "val-epoch0000.png", "val-epoch0005.png"} <= figures
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    phases = {int(r["epoch"]): float(r["phase"]) for r in rows if r["phase"]}
    assert phases[0] == 0
    assert phases[6] == 2
    make(run).test(model, datamodule=ToyData(), verbose=False)
    assert (run / "per_action.csv").is_file()


@pytest.mark.slow
def test_sheets_reach_wandb(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "run"
    run.mkdir()
    logger = WandbLogger(project="zoo", save_dir=str(run), offline=True)
    torch.manual_seed(0)
    try:
        make(run, logger).fit(ToyLifter((THREE_PHASES[0],)), datamodule=ToyData())
    finally:
        logger.experiment.finish()
    assert list(run.glob("wandb/offline-run-*/files/media/images/val/poses*.png"))
