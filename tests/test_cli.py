"""``zoo fit``, resume, fine-tune, test and predict through the real command line, at toy size."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import zoo
from zoo.checkpoint import save_weights

TINY = (
    "--model.image_size 54 --model.crop_size 49 --model.channels [4,8,8,8,8] --model.strides [2,1] "
    "--model.fc 16 --model.grid 4 --model.epochs 2 --data.train_samples 64 --data.batch_size 16 "
    "--data.val_samples 16 --data.test_samples 16 --trainer.log_every_n_steps 1 "
    "--trainer.enable_progress_bar false --gpus 0"
).split()

Cli = Callable[..., Any]


def fit(cli: Cli, *words: str) -> Any:
    done = cli("fit", "--method", "park", "--recipe", "small", *TINY, *words)
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_run_from_fit_to_prediction(zoo_cli: Cli, tmp_path: Path) -> None:
    """One story, since most of each command is the import of torch."""
    fit(zoo_cli)
    run = tmp_path / "runs" / "park-small"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["method"], config["recipe"], config["dataset"]) == ("park", "small", "synthetic")
    assert config["model"]["fc"] == 16
    assert config["model"]["grid"] == 4  # the flag, over the recipe's 8
    assert config["model"]["dropout"] == 0.1  # the recipe, over the constructor's 0.3
    assert config["model"]["momentum"] == 0.9  # the constructor
    assert [r["val/mpjpe_mm"] for r in rows(run) if r["val/mpjpe_mm"]].__len__() == 2
    assert (run / "figures" / "learning_curve.png").stat().st_size > 1000

    # Resumed with another rate: the flag wins over what the checkpoint stored, sizes stay its own.
    done = zoo_cli(
        "fit", "--method", "park", "--recipe", "small", "--ckpt_path", "last", "--gpus", "0",
        "--model.epochs", "3", "--model.weight_decay", "0.25", "--data.train_samples", "64",
        "--data.batch_size", "16", "--data.val_samples", "16", "--trainer.log_every_n_steps", "1",
        "--trainer.enable_progress_bar", "false",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["weight_decay"] == 0.25
    assert config["model"]["fc"] == 16
    assert not (tmp_path / "runs" / "park-small-2").exists()
    epochs = [int(r["epoch"]) for r in rows(run) if r["val/mpjpe_mm"]]
    assert epochs == [0, 1, 2]  # the CSV goes on, and no epoch is trained twice

    # A run's checkpoint loads in Python, and becomes a weight file that --weights takes.
    model = zoo.load(run / "checkpoints" / "last.ckpt")
    assert not model.training
    weights = save_weights(model, tmp_path / "w.safetensors", half=False)
    again = zoo.load(weights)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    fit(
        zoo_cli,
        "--weights",
        str(weights),
        "--run",
        "tuned",
        "--model.lr",
        "0",
        "--model.epochs",
        "1",
    )
    tuned = zoo.load(tmp_path / "tuned" / "checkpoints" / "last.ckpt").state_dict()
    for name, value in model.named_parameters():
        assert torch.equal(value, tuned[name]), (
            name
        )  # a rate of zero keeps the weights it began with

    # Its numbers and its pictures.
    checkpoint = str(run / "checkpoints" / "best.ckpt")
    done = zoo_cli(
        "test", "--method", "park", "--ckpt_path", checkpoint, "--json", "out.json", "--gpus", "0",
        "--data.test_samples", "16",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "out.json").read_text())
    assert "S9 S11" in report["definition"]
    assert report["results"]["mpjpe_mm"] > 0
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / "dark.png")
    done = zoo_cli(
        "predict", "dark.png", "--method", "park", "--ckpt_path", checkpoint, "--out", "seen",
        "--box", "10,5,60,55", "--box", "0,0,20,30", "--flip-test", "--gpus", "0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["seen/dark.overlay.png", "seen/poses.json"]
    found = json.loads((tmp_path / "seen" / "poses.json").read_text())
    assert (found["units"], found["skeleton"], len(found["poses"])) == ("mm", "h36m_17", 2)


@pytest.mark.slow
def test_wandb_without_an_account_writes_an_offline_run(zoo_cli: Cli, tmp_path: Path) -> None:
    home = {"WANDB_MODE": "", "WANDB_API_KEY": "", "HOME": str(tmp_path), "NETRC": "none"}
    environment = {k: v for k, v in home.items() if k != "WANDB_MODE"}
    done = zoo_cli(
        "fit", "--method", "park", "--recipe", "small", *TINY, "--logger", "wandb", env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kept = list((tmp_path / "runs" / "park-small" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(kept) == 1
    assert (tmp_path / "runs" / "park-small" / "metrics.csv").exists()


def test_the_whole_configuration_can_be_printed(zoo_cli: Cli) -> None:
    done = zoo_cli("fit", "--method", "park", "--recipe", "small", "--print_config", "--gpus", "0")
    assert done.returncode == 0, done.stderr[-2000:]
    config = yaml.safe_load(done.stdout)
    assert config["model"]["image_size"] == 108
    assert config["data"]["batch_size"] == 128
    assert config["trainer"]["accelerator"] == "cpu"
    assert config["method"] == "park"
