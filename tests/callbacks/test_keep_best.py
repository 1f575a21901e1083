"""``best.ckpt`` is the best epoch of the last phase, also of a training that is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from callbacks.keep_best import KeepBest
from callbacks.phases import TrainingPhases
from tests.callbacks.callback_toy import ToyLifter, loaders, trainer
from zoo.base import Phase

PLANTED = [5.0, 3.0, 9.0, 7.0, 8.0, 6.0, 6.5]
PHASES = (Phase("trunk", 2, train=("trunk",)), Phase("head", 3, train=("head",)), Phase("all", 2))


class Planted(ToyLifter):
    """Validation errors that are known."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val/mpjpe_mm", torch.tensor(PLANTED[self.current_epoch]), batch_size=1)


def fit(folder: Path, epochs: int, **options: Any) -> KeepBest:
    keep = KeepBest(folder)
    run = trainer(
        folder, TrainingPhases(), keep, enable_checkpointing=True, max_epochs=epochs,
        **{k: v for k, v in options.items() if k != "ckpt_path"},
    )  # fmt: skip
    run.fit(Planted(PHASES), *loaders(), ckpt_path=options.get("ckpt_path"), weights_only=True)
    run.save_checkpoint(folder / "last.ckpt")
    return keep


@pytest.mark.parametrize(("epochs", "best"), [(2, 1), (3, 2), (5, 3), (6, 5), (7, 5)])
def test_each_phase_has_its_own_best(tmp_path: Path, epochs: int, best: int) -> None:
    keep = fit(tmp_path, epochs)
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == best
    assert float(keep.best_model_score or 0) == PLANTED[best]
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == ["best.ckpt", "last.ckpt"]


@pytest.mark.parametrize("stop", [1, 4, 5])
def test_resumed_it_remembers_the_best_of_the_phase(tmp_path: Path, stop: int) -> None:
    fit(tmp_path, stop)
    fit(tmp_path, 5, ckpt_path=str(tmp_path / "last.ckpt"))
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["epoch"] == 3
