"""Checks of what a method leaves on disk, and of resuming from it."""

from __future__ import annotations

import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from zoo.base import PoseModule
from zoo.batch import PoseBatch
from zoo.testing.helpers import (
    Factory,
    active_phases,
    backward,
    build,
    in_phase,
    predicted,
    rules,
    same_prediction,
    step_against_gradient,
    tensors,
    training_batch,
)
from zoo.testing.people import random_poses

__all__ = ["check_checkpoint", "check_fit", "check_weight_file"]


def stepped(factory: Factory) -> PoseModule:
    """A model after one training step in each phase, so that running means have moved."""
    model = build(factory)
    for phase in active_phases(model):
        with in_phase(model, phase):
            backward(model, training_batch(model))
            step_against_gradient(model)
    return model.eval()


def check_checkpoint(factory: Factory) -> None:
    """Weights and arguments, read back with ``weights_only=True``, predict bit for bit the same."""
    model = stepped(factory)
    must = rules(model)
    file = io.BytesIO()
    torch.save({"state_dict": model.state_dict(), "hparams": dict(model.hparams)}, file)
    file.seek(0)
    try:
        content = torch.load(file, weights_only=True)
    except Exception as error:
        raise AssertionError(
            f"{type(model).__name__}: its checkpoint holds more than tensors and plain values: "
            f"{str(error).splitlines()[0]}"
        ) from error
    torch.manual_seed(99)  # another initialisation, so that nothing but the file can restore it
    again = type(model)(**content["hparams"])
    again.load_state_dict(content["state_dict"])
    batch = training_batch(model)
    must(
        same_prediction(predicted(model, batch), predicted(again, batch)),
        "a model restored from its state_dict predicts otherwise: what it uses must be a "
        "parameter or a persistent buffer",
    )


def check_weight_file(factory: Factory) -> None:
    """A safetensors weight file restores the prediction, and half precision does not overflow."""
    from zoo.checkpoint import load_into, read_stored, save_weights

    model = stepped(factory)
    must = rules(model)
    model.zoo_name = model.zoo_name or type(model).__name__.lower()
    batch = training_batch(model)
    with tempfile.TemporaryDirectory() as folder:
        stored = read_stored(save_weights(model, Path(folder) / "full.safetensors", half=False))
        half = read_stored(save_weights(model, Path(folder) / "half.safetensors", half=True))
    again = type(model)(**stored.args)
    load_into(again, stored)
    must(
        same_prediction(predicted(model, batch), predicted(again, batch)),
        "a model restored from its safetensors file predicts otherwise",
    )
    load_into(again, half)
    for key, value in tensors(predicted(again, batch)).items():
        must(value.isfinite().all(), f"{key} is not finite with half-precision weights")


class _Memory(pl.LightningDataModule):
    """Two training batches and one for validation and test, all random people."""

    action_names = ("walking", "sitting")

    def __init__(self, model: PoseModule) -> None:
        super().__init__()
        self.batches = [training_batch(model, seed=seed) for seed in range(3)]
        self.poses = random_poses(model.input_spec, model.skeleton)

    def training_poses(self) -> PoseBatch:
        return self.poses

    def protocol(self, split: str) -> Any:
        from zoo.protocols import Protocol

        return Protocol(f"random-{split}", "random people", ("S1",), ("S1",))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.batches[:2], batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.batches[2:], batch_size=None)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[Any]:
        return self.val_dataloader()


def _trainer(folder: Path, epochs: int, **settings: Any) -> pl.Trainer:
    from callbacks.phases import TrainingPhases

    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[TrainingPhases(), *settings.pop("callbacks", [])],
        **settings,
    )


def check_fit(factory: Factory) -> None:
    """A fit over all phases runs, and resumed halfway it ends in bit for bit the same weights."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    model, again = build(factory, fitted=False), build(factory, fitted=False, seed=7)
    must = rules(model)
    data = _Memory(model)
    epochs = max(model.total_epochs, 2)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice about workers and small epochs
        folder = Path(name)
        keep = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
        whole = _trainer(folder, epochs, callbacks=[keep])
        whole.fit(model, datamodule=data)
        must(model.statistics_fitted, "after a fit statistics_fitted is false")
        metrics = {k: float(v) for k, v in whole.callback_metrics.items()}
        for key in ("train/loss", "val/mpjpe_mm"):
            must(key in metrics, f"a fit logs no {key}; call the base class's hooks with super()")
            must(metrics[key] == metrics[key], f"{key} is NaN after a fit")
        halfway = folder / f"epoch={(epochs - 1) // 2}.ckpt"
        try:
            torch.load(halfway, weights_only=True)
        except Exception as error:
            raise AssertionError(
                f"{type(model).__name__}: its training checkpoint holds more than tensors and "
                f"plain values: {str(error).splitlines()[0]}"
            ) from error
        resumed = _trainer(folder, epochs, enable_checkpointing=False)
        resumed.fit(again, datamodule=data, ckpt_path=str(halfway), weights_only=True)
        tested = _trainer(folder, epochs, enable_checkpointing=False)
        tested.test(again, datamodule=data, verbose=False)
        must("test/mpjpe_mm" in tested.callback_metrics, "a test logs no test/mpjpe_mm")
    other = again.state_dict()
    differ = [k for k, v in model.state_dict().items() if not torch.equal(v, other[k])]
    must(
        not differ,
        f"a fit that is resumed halfway ends in other weights than one that is not: {differ[:3]}",
    )
