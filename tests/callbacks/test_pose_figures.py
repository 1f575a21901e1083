from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from callback_toy import JOINTS, ToyData, ToyLifter, trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image

import zoo.draw
from callbacks.pose_figures import PoseFigures, _spread
from zoo.base import Phase

FOUR = (Phase("all", 4),)


class ImageLogger(DummyLogger):
    """Takes images, as the W&B logger does."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[tuple[str, Any]] = []

    def log_image(self, key: str, images: list[Any]) -> None:
        self.images.append((key, images[0]))


@pytest.fixture
def sheets(monkeypatch: Any) -> list[Any]:
    """The (batch, prediction) of every sheet that is drawn."""
    seen: list[Any] = []
    draw = zoo.draw.draw_sheet

    def spy(batch: Any, prediction: Any, *rest: Any, **options: Any) -> Any:
        seen.append((batch, prediction))
        return draw(batch, prediction, *rest, **options)

    monkeypatch.setattr(zoo.draw, "draw_sheet", spy)
    return seen


def fit(root: Path, figures: PoseFigures, **options: Any) -> None:
    run = trainer(root, figures, max_epochs=4, **options)
    run.fit(ToyLifter(FOUR), datamodule=ToyData())


def test_sheets_of_the_same_samples_and_a_curve(tmp_path: Path, sheets: list[Any]) -> None:
    taker = ImageLogger()
    log = CSVLogger(tmp_path / "run", name=None, version="")
    fit(
        tmp_path, PoseFigures(every_n_epochs=2, samples=3), logger=[log, taker],
        log_every_n_steps=1, num_sanity_val_steps=2,
    )  # fmt: skip
    written = sorted(p.name for p in (tmp_path / "run" / "figures").iterdir())
    want = ["learning_curve.png", "val-epoch0000.png", "val-epoch0001.png", "val-epoch0003.png"]
    assert written == want
    assert len(sheets) == 3
    for batch, prediction in sheets:
        assert batch["frame"].tolist() == [0, 4, 8]  # one of each of the three batches
        assert torch.equal(batch["frame"], sheets[0][0]["frame"])
        assert prediction["pred_3d"].shape == (3, 1, JOINTS, 3)
    assert not torch.equal(sheets[0][1]["pred_3d"], sheets[2][1]["pred_3d"])
    assert [key for key, _ in taker.images] == ["val/poses"] * 3 + ["curve"]
    assert taker.images[0][1].dtype == np.uint8
    with Image.open(tmp_path / "run" / "figures" / "val-epoch0003.png") as image:
        assert image.width > 300


def test_without_a_logger_and_for_a_test(
    tmp_path: Path, sheets: list[Any], monkeypatch: Any
) -> None:
    shown = []
    monkeypatch.setattr(
        zoo.draw, "draw_joint_errors", lambda *a: shown.append(a) or zoo.draw.Figure()
    )
    model, data = ToyLifter(FOUR), ToyData()
    run = trainer(tmp_path, PoseFigures(samples=20))
    run.test(model, datamodule=data, verbose=False)
    written = sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert written == ["joint_errors.png", "test.png"]
    assert sheets[0][0]["frame"].tolist() == list(range(10))  # no sample twice
    poses = data.test_set
    model.eval()
    with torch.no_grad():
        error = (model({"joints_2d": poses.joints_2d})["pred_3d"] - poses.joints_3d).norm(dim=-1)
    np.testing.assert_allclose(shown[0][0], error.mean((0, 1)), rtol=1e-4)


def test_a_trial_run_and_other_processes_draw_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    fit(tmp_path, PoseFigures(every_n_epochs=1), fast_dev_run=True)
    monkeypatch.setattr(pl.Trainer, "is_global_zero", False)
    fit(tmp_path, PoseFigures(every_n_epochs=1))
    assert list(tmp_path.iterdir()) == []


def test_a_figure_that_fails_does_not_end_the_training(tmp_path: Path) -> None:
    (tmp_path / "figures").write_text("in the way")
    with pytest.warns(UserWarning, match=r"no figure val-epoch0000\.png: cannot write"):
        fit(tmp_path, PoseFigures())


@pytest.mark.parametrize(
    ("batches", "samples", "want"),
    [([3], 3, {0: 1, 1: 1, 2: 1}), ([100], 4, {0: 1, 25: 1, 50: 1, 75: 1}), ([2], 5, {0: 3, 1: 2}),
     ([0], 3, {}), ([], 3, {}), ([float("inf")], 3, {0: 3}), ([4, 9], 2, {0: 1, 2: 1})],
)  # fmt: skip
def test_samples_are_spread(batches: Any, samples: int, want: dict[int, int]) -> None:
    assert _spread(batches, samples) == want
