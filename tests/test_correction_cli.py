"""`zoo correction`: settings measured on validation data."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_correction import Poses, ToyCorrecting, batch_of
from zoo.correction import Correction, correct
from zoo.correction_cli import GRID, choose, collect, measure
from zoo.errors import DataError, UsageError
from zoo.methods.ssc import SSC
from zoo.registry import create


def test_a_line_is_what_correcting_gives() -> None:
    model = ToyCorrecting().eval()
    batches = [batch_of(Poses(6, seed)) for seed in (1, 2)]
    cases = collect(model, batches)
    setting = Correction(lr=0.02, eps_mm=3.0, tau_mm=6.0)
    line = measure(model, cases, setting)
    errors, plain, steps, kept, before = [], [], [], [], []
    for batch in batches:
        prediction, report = correct(model, batch, setting)
        errors.append((prediction["pred_3d"] - batch["joints_3d"]).norm(dim=-1).mean(-1))
        plain.append((model(batch)["pred_3d"] - batch["joints_3d"]).norm(dim=-1).mean(-1))
        steps.append(report.steps)
        kept.append(report.kept)
        before.append(report.before_px)
    error, raw = torch.cat(errors), torch.cat(plain)
    assert line.mpjpe_mm == pytest.approx(float(error.mean()), rel=1e-5)
    assert line.worse == pytest.approx(float((error > raw).float().mean()))
    assert line.before_px == pytest.approx(float(torch.cat(before).mean()), rel=1e-5)
    assert line.stopped_at_1 == pytest.approx(float((torch.cat(steps) == 1).float().mean()))
    assert line.stopped_at_1 + line.stopped_at_2 == pytest.approx(1)
    assert line.discarded == pytest.approx(float((~torch.cat(kept)).float().mean()))
    off = measure(model, cases, None)
    assert off.setting == "off"
    assert off.mpjpe_mm == pytest.approx(float(raw.mean()), rel=1e-5)
    assert choose([line, off]).mpjpe_mm == min(line.mpjpe_mm, off.mpjpe_mm)
    assert choose([off, measure(model, cases, Correction(lr=1e30, tau_mm=float("inf")))]) == off


def test_every_tried_setting_has_a_name() -> None:
    assert len({str(setting) for setting in GRID}) == len(GRID)
    for setting in GRID:
        assert Correction.parse(str(setting)) == setting


def test_labels_and_a_projector_are_needed() -> None:
    model = ToyCorrecting().eval()
    batch: Any = batch_of(Poses(3, 1))
    batch["valid_3d"] = torch.zeros_like(batch["valid_3d"])
    with pytest.raises(DataError, match="3D labels"):
        collect(model, [batch])
    plain = SSC(**{**SSC.tiny().hparams, "projector": "none"})
    with pytest.raises(UsageError, match="projector"):
        collect(plain, [])


@pytest.mark.slow
def test_the_command_writes_its_table_and_predict_takes_the_choice(
    zoo_cli: Callable[..., Any], tmp_path: Path
) -> None:
    import numpy as np
    from PIL import Image

    from zoo.checkpoint import save_weights

    torch.manual_seed(0)
    model = create("ssc", **SSC.tiny().hparams)
    weights = save_weights(model, tmp_path / "ssc.safetensors", half=False)
    done = zoo_cli(
        "correction", weights, "--lr", "0.001,0.01", "--setting", "release", "--gpus", 0,
        "--data-arg", "val_samples=4", "--out", "table.csv",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["setting"] for row in rows][:3] == ["off", "steps=0", "on"]
    assert len(rows) == 5
    chosen = done.stdout.split("--model.correction ")[1].split()[0]
    assert chosen in {row["setting"] for row in rows}
    wrong = zoo_cli("correction", weights, "--lr", "fast")
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1
    Image.fromarray(np.full((50, 40, 3), 90, np.uint8)).save(tmp_path / "person.png")
    done = zoo_cli(
        "predict", "person.png", "--method", "ssc", "--weights", weights, "--gpus", 0,
        "--correct", "lr=0.01,dead_zone=0", "--no-overlay",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (tmp_path / "predictions" / "corrections.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["source"] == "person.png"
    assert rows[0]["steps"] in ("1", "2")
    wrong = zoo_cli("predict", "person.png", "--method", "ssc", "--correct", "onn")
    assert wrong.returncode == 2
    assert "did you mean on" in wrong.stderr
