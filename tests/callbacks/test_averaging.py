from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from callback_toy import THREE_PHASES, ToyLifter, loaders, trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.averaging import AveragedWeights
from callbacks.phases import TrainingPhases
from zoo.base import Phase
from zoo.errors import UsageError


class Slow(pl.Callback):
    """The average as its definition says, step by step."""

    def __init__(self, decay: float) -> None:
        self.decay, self.n = decay, 0
        self.average: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if not self.average:
            self.average = {k: p.detach().clone() for k, p in module.named_parameters()}

    def on_train_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
        self.n += 1
        d = min(self.decay, (1 + self.n) / (10 + self.n))
        for name, p in module.named_parameters():
            self.average[name] = d * self.average[name] + (1 - d) * p.detach()


def fit(root: Path, model: ToyLifter, *callbacks: Any, **options: Any) -> pl.Trainer:
    run = trainer(root, TrainingPhases(), *callbacks, **options)
    run.fit(model, *loaders(period=8))
    return run


def test_the_average_is_evaluated_saved_and_left_in_the_module(tmp_path: Path) -> None:
    model, slow = ToyLifter((Phase("all", 3),)), Slow(0.8)
    seen: list[dict[str, torch.Tensor]] = []

    class Look(pl.Callback):
        def on_validation_batch_start(self, trainer: Any, module: Any, *rest: Any) -> None:
            seen.append({k: p.detach().clone() for k, p in module.named_parameters()})

    files = ModelCheckpoint(tmp_path, "last", enable_version_counter=False)
    fit(tmp_path, model, AveragedWeights(0.8), slow, Look(), files, enable_checkpointing=True)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for name, average in slow.average.items():
        assert torch.allclose(seen[-1][name], average, atol=1e-6), name
        assert torch.allclose(kept["state_dict"][name], average, atol=1e-6), name
        assert torch.allclose(dict(model.named_parameters())[name], average, atol=1e-6), name
    moved = kept["weights_in_training"]["head.weight"]
    assert not torch.allclose(moved, kept["state_dict"]["head.weight"])


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_resumed_it_goes_on_bit_for_bit(tmp_path: Path, stop: int) -> None:
    torch.manual_seed(3)
    model = ToyLifter(THREE_PHASES)
    files = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    whole = trainer(
        tmp_path, TrainingPhases(), AveragedWeights(0.9), files, enable_checkpointing=True
    )
    whole.fit(model, *loaders(period=8))
    again = ToyLifter(THREE_PHASES)
    run = trainer(tmp_path, TrainingPhases(), AveragedWeights(0.9))
    path = tmp_path / f"epoch={stop}.ckpt"
    run.fit(again, *loaders(period=8), ckpt_path=path, weights_only=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_a_decay_outside_its_range_is_refused() -> None:
    with pytest.raises(UsageError, match="decay"):
        AveragedWeights(1.0)
