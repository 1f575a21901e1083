"""A precision that this processor cannot do well is said at the start of a run."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from zoo import processor
from zoo.cli import main

FIT = (
    "fit --method park --recipe small --gpus 0 --trainer.fast_dev_run 1 --model.image_size 54 "
    "--model.crop_size 49 --model.channels [4,8,8,8,8] --model.strides [2,1] --model.fc 16 "
    "--model.grid 4 --data.batch_size 4 --data.train_samples 8 --data.val_samples 4 "
    "--trainer.enable_progress_bar false --trainer.enable_model_summary false"
).split()


@pytest.mark.parametrize(
    ("precision", "able", "told"),
    [("bf16-mixed", False, True), ("bf16-mixed", True, False), ("32-true", False, False)],
)
def test_a_slow_precision_is_named(
    precision: str,
    able: bool,
    told: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoo.fit.runs_bfloat16", lambda: able)
    monkeypatch.setattr("lightning.pytorch.Trainer.fit", lambda *args, **kwargs: None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main([*FIT, "--trainer.precision", precision]) == 0
    lines = [str(w.message) for w in caught if "bfloat16" in str(w.message)]
    assert lines == ([processor.SLOW_BFLOAT16] if told else [])


def test_without_onednn_there_is_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "ops", object())
    assert processor.runs_bfloat16() is False
