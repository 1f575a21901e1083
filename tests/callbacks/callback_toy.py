"""A small method with three phases and in-memory data, for the callbacks' tests."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from datamodules.base import PoseDataModule
from zoo.base import InputSpec, Phase, PoseModule
from zoo.batch import PoseBatch, Prediction
from zoo.protocols import Protocol

JOINTS = 17

THREE_PHASES = (
    Phase("trunk", 2, train=("trunk",), monitor="val/mpjpe_mm"),
    Phase("head", 3, train=("head",), lr=0.02),
    Phase("all", 2, lr=0.001),
)


class ToyLifter(PoseModule):
    """2D joints to 3D through a trunk with batch norm and a head."""

    def __init__(
        self, phases: tuple[Phase, ...] = THREE_PHASES, lr: float = 0.01, momentum: float = 0.9
    ) -> None:
        super().__init__()
        self._phases, self.lr, self.momentum = phases, lr, momentum
        self.trunk = nn.Sequential(nn.Linear(2 * JOINTS, 16), nn.BatchNorm1d(16), nn.Dropout(0.0))
        self.head = nn.Linear(16, 3 * JOINTS)
        self.dropout = nn.Dropout(0.0)
        self.constant = nn.Parameter(torch.tensor(100.0), requires_grad=False)
        self.seen: list[dict[str, Any]] = []

    @property
    def input_spec(self) -> InputSpec:
        return InputSpec(kind="keypoints", image_size=64)

    def setup(self, stage: str) -> None:
        if getattr(self.trainer, "datamodule", None) is not None:
            super().setup(stage)

    def phases(self) -> tuple[Phase, ...]:
        return self._phases

    def forward(self, batch: PoseBatch) -> Prediction:
        joints = batch["joints_2d"]
        features = self.dropout(self.trunk(joints.flatten(1) / 64 - 0.5))
        pose = self.head(features).view(*joints.shape[:-1], 3)
        return {"pred_3d": self.constant * (pose - pose[..., :1, :]), "pred_2d": joints}

    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        error = self(batch)["pred_3d"] - batch["joints_3d"]
        return {"loss": (error / 100).square().mean()}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.lr)
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
        }

    def training_step(self, batch: PoseBatch, batch_idx: int) -> Tensor:
        optimizer = self.trainer.optimizers[0]
        self.seen.append(
            {
                "epoch": self.current_epoch,
                "phase": self.phase.name if self.phase else None,
                "lr": optimizer.param_groups[0]["lr"],
                "train": {n for n, p in self.named_parameters() if p.requires_grad},
                "modes": (self.training, self.trunk[1].training, self.head.training),
            }
        )
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: PoseBatch, batch_idx: int) -> Prediction:
        if self.val_metrics is not None:
            return super().validation_step(batch, batch_idx)
        prediction = self(batch)
        error = (prediction["pred_3d"] - batch["joints_3d"]).norm(dim=-1).mean()
        self.log("val/mpjpe_mm", error, batch_size=len(batch["joints_2d"]), sync_dist=True)
        return prediction

    @classmethod
    def tiny(cls) -> ToyLifter:
        return cls()


class Poses(Dataset[dict[str, Tensor]]):
    """Random poses with everything that a batch of 2D and 3D joints has."""

    def __init__(self, size: int, seed: int, period: int = 10**9) -> None:
        self.period = period
        g = torch.Generator().manual_seed(seed)
        pose = 200 * torch.randn(size, 1, JOINTS, 3, generator=g)
        self.joints_3d = pose - pose[:, :, :1]
        self.joints_2d = 32 + 0.05 * self.joints_3d[..., :2]
        self.image = torch.rand(size, 1, 3, 64, 64, generator=g)
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        true = torch.ones(1, JOINTS, dtype=torch.bool)
        index %= self.period
        one = torch.tensor(index)
        return {
            "image": self.image[index],
            "joints_2d": self.joints_2d[index],
            "scores_2d": true.float(),
            "valid_2d": true,
            "valid_3d": true,
            "joints_3d": self.joints_3d[index],
            "subject": one * 0,
            "action": one % 2,
            "camera": one * 0,
            "sequence": one * 0,
            "frame": one,
        }


class ToyData(PoseDataModule):
    """``Poses`` as a datamodule with two actions."""

    def __init__(self, test_size: int = 10) -> None:
        super().__init__(batch_size=4)
        self.test_size = test_size

    action_names = ("walking", "sitting")

    def protocol(self, split: Any) -> Protocol:
        return Protocol("toy", "toy data", ("A",), ("B",), root_counted=False)

    def training_poses(self, count: int = 20000) -> PoseBatch:
        return {"joints_3d": Poses(8, 0).joints_3d}

    train_set = property(lambda self: Indexed(Poses(8, 0)))
    val_set = property(lambda self: Poses(10, 1))
    test_set = property(lambda self: Poses(self.test_size, 2))


class Indexed(Dataset[dict[str, Tensor]]):
    """What the training sampler's indices, which carry the epoch, need."""

    def __init__(self, poses: Poses) -> None:
        self.poses = poses

    def __len__(self) -> int:
        return len(self.poses)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.poses[index % len(self.poses)]


def loaders(size: int = 24, batch_size: int = 8, period: int = 10**9) -> tuple[Any, Any]:
    """Training and validation loaders in a fixed order; ``period`` repeats the first samples."""
    return (
        DataLoader(Poses(size, 0, period), batch_size=batch_size),
        DataLoader(Poses(8, 1), batch_size=batch_size),
    )


def trainer(root: Any, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    """A quiet trainer on the CPU."""
    quiet: dict[str, Any] = {
        "default_root_dir": str(root), "accelerator": "cpu", "devices": 1, "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": -1,
        "enable_model_summary": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    return pl.Trainer(callbacks=list(callbacks), **{**quiet, **options})
