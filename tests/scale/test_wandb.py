"""What a run leaves at W&B and, the same, in its folder."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import wandb

from tests.scale.small_runs import fit_tiny, last, quicker, rows
from tests.scale.wandb_file import read_run
from zoo.cli import main

pytestmark = pytest.mark.slow


def test_a_run_at_wandb_and_in_its_folder(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quicker(monkeypatch, figures=True)
    wandb.teardown()  # what an earlier test has left there
    run = fit_tiny("park", "run", "--logger", "wandb", "--artifacts", "--trainer.max_epochs", "2")
    wandb.finish()
    wandb.teardown()  # only then the file is whole
    (folder,) = run.glob("wandb/offline-run-*")
    seen = read_run(folder)

    # Settings, and what the numbers mean.
    config = seen["config"]
    assert config["model"]["lr"] == last(run)["hyper_parameters"]["lr"]
    assert config["data"]["train_samples"] == 16
    assert config["trainer"]["max_epochs"] == 2
    assert (config["method"], config["recipe"], config["dataset"]) == ("park", "small", "synthetic")
    assert "validation" in config["protocol"]["val"] or "val" in config["protocol"]["val"]

    # The numbers are those of metrics.csv.
    errors = [row["val/mpjpe_mm"] for row in seen["history"] if "val/mpjpe_mm" in row]
    assert errors == pytest.approx(rows(run, "val/mpjpe_mm"))
    losses = [row["train/loss"] for row in seen["history"] if "train/loss" in row]
    assert losses == pytest.approx(rows(run, "train/loss"))
    assert len(losses) == 4

    # Pictures and card, here and there.
    pictures = {key for row in seen["history"] for key in row}
    assert {"val/poses", "curve"} <= pictures
    figures = {p.name for p in (run / "figures").iterdir()}
    assert {"val-epoch0000.png", "learning_curve.png"} <= figures
    card = (run / "model_card.md").read_text()
    assert "model_card.md" in seen["files"]
    assert (folder / "files" / "model_card.md").read_text() == card
    for words in ("# park", "h36m_17, mm, camera frame", "seed 0", "mpjpe_mm", '"grid": 4'):
        assert words in card
    assert f"{rows(run, 'val/mpjpe_mm')[-1]:.2f}" in card

    # Checkpoints, since they were asked for.
    (artifact,) = seen["artifacts"]
    assert artifact.type == "model"
    names = {entry.path for entry in artifact.manifest.contents}
    assert names == {"best.ckpt", "last.ckpt", "model_card.md"}

    # A resumed training goes on in the same W&B run.
    number = (run / "wandb-run-id").read_text().strip()
    assert folder.name.endswith(number)
    assert main(["fit", "--resume", "run", "--trainer.max_epochs", "3"]) == 0
    wandb.finish()
    wandb.teardown()  # only then the file is whole
    assert len(list(run.glob(f"wandb/offline-run-*-{number}"))) == 2
    assert len(rows(run, "val/mpjpe_mm")) == 3

    # And a test: by action, by joint, with its protocol.
    words = ["test", "--method", "park", "--ckpt_path", "run/checkpoints/best.ckpt", "--gpus", "0"]
    words += ["--data.test_samples", "8", "--data.bodies_per_subject", "1", "--run", "tested"]
    assert main([*words, "--logger", "wandb", "--trainer.enable_progress_bar", "false"]) == 0
    wandb.finish()
    wandb.teardown()  # only then the file is whole
    (folder,) = Path("tested").glob("wandb/offline-run-*")
    seen = read_run(folder)
    keys = {key for row in seen["history"] for key in row}
    assert {"test/mpjpe_mm", "test/per_action", "test/joint_errors", "test/poses"} <= keys
    assert "S9 S11" in seen["config"]["protocol"]["test"]
    table = next(f for f in seen["files"] if f.startswith("media/table/test/per_action"))
    check_table(folder / "files" / table, Path("tested/per_action.csv"))
    assert Path("tested/figures/joint_errors.png").is_file()


def check_table(there: Path, here: Path) -> None:
    import json

    table: dict[str, Any] = json.loads(there.read_text())
    with here.open(newline="") as file:
        local = {row["action"]: row for row in csv.DictReader(file)}
    at = table["columns"].index("mpjpe_mm")
    assert {row[0] for row in table["data"]} == local.keys()
    for row in table["data"]:
        assert math.isclose(row[at], float(local[row[0]]["mpjpe_mm"]), abs_tol=1e-3)
