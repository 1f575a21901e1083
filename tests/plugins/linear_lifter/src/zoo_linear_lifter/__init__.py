"""2D joints to 3D joints by one hidden layer: the smallest complete method.

Not from a paper; it shows what a method of another package looks like.

**In**: ``joints_2d`` (B, T, J, 2) px of the crop, ``valid_2d``. **Out**: ``pred_3d`` mm, camera
frame, pelvis at the origin. Frames are independent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.base import InputSpec, Phase, PoseModule
from zoo.batch import PoseBatch, Prediction

__all__ = ["LinearLifter"]

_RECIPES = Path(__file__).parent / "recipes"


def masked_l1(pred: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute error over the valid joints; 0, with a graph, where there are none.

    Args:
        pred: (..., J, 3).
        target: (..., J, 3), any values where not valid.
        valid: (..., J) bool.
    """
    # torch.where, because target * 0 would not be 0 where a missing joint is NaN.
    error = torch.where(valid[..., None], pred - target, 0.0).abs().sum()
    return error / (3 * valid.sum()).clamp(min=1)


class LinearLifter(PoseModule):
    """One hidden layer from normalised 2D joints to a deviation from the mean 3D pose.

    Args:
        hidden: width of the hidden layer.
        image_size: side of the crop that the 2D joints are in, px.
        epochs: length of the training.
        lr: learning rate of Adam.
    """

    zoo_card: ClassVar[dict[str, Any]] = {
        "description": "one hidden layer from 2D joints to 3D",
        "input": "keypoints",
        "output": {"skeleton": "h36m_17", "frame": "camera", "root": "pelvis", "unit": "mm"},
        "paper": {"title": "none: an example of a plugin"},
        "recipes": {
            "paper": str(_RECIPES / "paper.yaml"),
            "small": str(_RECIPES / "small.yaml"),
        },
    }

    mean_mm: Tensor
    scale_mm: Tensor

    def __init__(
        self, hidden: int = 512, image_size: int = 128, epochs: int = 20, lr: float = 1e-3
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.image_size, self.epochs, self.lr = image_size, epochs, lr
        joints = len(self.skeleton)
        self.root = self.skeleton.index(self.skeleton.root)
        self.layers = nn.Sequential(
            nn.Linear(3 * joints, hidden), nn.ReLU(), nn.Linear(hidden, 3 * joints)
        )
        # Fitted from training poses, so buffers: they travel in the checkpoint.
        self.register_buffer("mean_mm", torch.zeros(joints, 3))
        self.register_buffer("scale_mm", torch.tensor(500.0))

    @property
    def input_spec(self) -> InputSpec:
        """2D joints of single frames."""
        return InputSpec(kind="keypoints", image_size=self.image_size)

    def phases(self) -> tuple[Phase, ...]:
        """Everything trains from first to last."""
        return (Phase("all", self.epochs),)

    @classmethod
    def tiny(cls) -> LinearLifter:
        """For tests."""
        return cls(hidden=16, image_size=64, epochs=2)

    def fit_statistics(self, poses: PoseBatch) -> None:
        """Mean and spread of the complete training poses, mm."""
        complete = poses["joints_3d"][poses["valid_3d"].all(-1)]  # (N, J, 3)
        if len(complete) > 1:
            self.mean_mm.copy_(complete.mean(0))
            self.scale_mm.copy_((complete - self.mean_mm).square().mean().sqrt())

    def forward(self, batch: PoseBatch) -> Prediction:
        """Lifts the joints that are given; the others enter as zeros with a zero flag."""
        valid = batch["valid_2d"]
        centred = (batch["joints_2d"] - (self.image_size - 1) / 2) / self.image_size
        known = torch.where(valid[..., None], centred, 0.0)  # (B, T, J, 2)
        features = torch.cat((known, valid[..., None].to(known.dtype)), dim=-1).flatten(2)
        offset = self.layers(features).unflatten(-1, (-1, 3))  # (B, T, J, 3)
        pose = self.mean_mm + self.scale_mm * offset
        return {"pred_3d": pose - pose[:, :, self.root : self.root + 1]}

    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        """Mean absolute error in units of the training poses' spread."""
        error_mm = masked_l1(self(batch)["pred_3d"], batch["joints_3d"], batch["valid_3d"])
        return {"loss": error_mm / self.scale_mm}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        lr = self.phase.lr if self.phase is not None and self.phase.lr is not None else self.lr
        return torch.optim.Adam(self.parameters(), lr=lr)
