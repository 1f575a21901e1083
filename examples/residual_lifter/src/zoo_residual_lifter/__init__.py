"""2D joints to 3D joints by a residual network, as a plugin of the zoo.

Julieta Martinez, Rayat Hossain, Javier Romero, James J. Little: "A simple yet effective baseline
for 3d human pose estimation", ICCV 2017. Sections are of that paper.

**In**: ``joints_2d`` (B, T, J, 2) px of the crop, ``valid_2d``. **Out**: ``pred_3d`` mm, camera
frame, pelvis at the origin. Frames are independent.

**Differences from the paper**: a flag for each joint tells whether it is there, and the joints of
a person may be missing; 3D is divided by one spread for all coordinates, not by one for each; the
rate decays once an epoch; training can disturb 2D joints (``noise_2d``, ``missing_2d``).

**Source**: own work from the paper.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from zoo.base import InputSpec, Phase, PoseModule
from zoo.batch import PoseBatch, Prediction
from zoo.errors import UsageError

__all__ = ["ResidualLifter"]

_RECIPES = Path(__file__).parent / "recipes"


class ResidualBlock(nn.Module):
    """Twice linear, batch norm, ReLU and dropout; the input is added to the result (sec. 3.2)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(part for _ in range(2) for part in layer(width, dropout)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, width) to (N, width)."""
        out: Tensor = x + self.layers(x)
        return out


def layer(width: int, dropout: float) -> list[nn.Module]:
    """One hidden layer of the network, with He et al.'s initial weights (sec. 3.2)."""
    linear = nn.Linear(width, width)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    return [linear, nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout)]


def masked_square(pred: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error over the valid joints; 0, with a graph, where there are none.

    Args:
        pred: (..., J, 3).
        target: (..., J, 3), any values where not valid.
        valid: (..., J) bool.
    """
    # torch.where, because target * 0 would not be 0 where a missing joint is NaN.
    error = torch.where(valid[..., None], pred - target, 0.0).square().sum()
    return error / (3 * valid.sum()).clamp(min=1)


class ResidualLifter(PoseModule):
    """The network of Martinez et al.: linear, residual blocks, linear.

    Args:
        hidden: width of the hidden layers.
        blocks: residual blocks of two layers.
        dropout: after every hidden layer.
        max_norm: largest norm of a row of weights (sec. 3.2); 0 is no limit.
        noise_2d: most noise on 2D joints in training, standard deviation in px of the crop; every
            sample draws its own between 0 and this.
        missing_2d: most joints hidden in training; every sample draws its own number.
        image_size: side of the crop that the 2D joints are in, px.
        epochs: length of the training.
        lr: learning rate of Adam at the start.
        decay: factor on it an epoch.
    """

    zoo_card: ClassVar[dict[str, Any]] = {
        "description": "residual network from 2D joints to 3D",
        "input": "keypoints",
        "output": {"skeleton": "h36m_17", "frame": "camera", "root": "pelvis", "unit": "mm"},
        "paper": {
            "title": "A simple yet effective baseline for 3d human pose estimation",
            "authors": "Martinez, Hossain, Romero, Little",
            "venue": "ICCV 2017",
            "url": "https://arxiv.org/abs/1705.03098",
        },
        "recipes": {
            "paper": str(_RECIPES / "paper.yaml"),
            "small": str(_RECIPES / "small.yaml"),
        },
    }

    mean_2d: Tensor
    std_2d: Tensor
    mean_mm: Tensor
    scale_mm: Tensor

    def __init__(
        self,
        hidden: int = 1024,
        blocks: int = 2,
        dropout: float = 0.5,
        max_norm: float = 1.0,
        noise_2d: float = 0.0,
        missing_2d: int = 0,
        image_size: int = 128,
        epochs: int = 200,
        lr: float = 1e-3,
        decay: float = 0.96,
    ) -> None:
        super().__init__()
        limits = {"blocks": blocks, "noise_2d": noise_2d, "missing_2d": missing_2d}
        for name, value in limits.items():
            if value < 0:
                raise UsageError(f"residual-lifter: {name} is {value}; it must not be negative")
        self.save_hyperparameters()
        self.max_norm, self.noise_2d, self.missing_2d = max_norm, noise_2d, missing_2d
        self.image_size, self.epochs, self.lr, self.decay = image_size, epochs, lr, decay
        joints = len(self.skeleton)
        self.root = self.skeleton.index(self.skeleton.root)
        self.first = nn.Linear(3 * joints, hidden)
        nn.init.kaiming_normal_(self.first.weight, nonlinearity="relu")
        self.enter = nn.Sequential(nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(dropout))
        self.blocks = nn.Sequential(*(ResidualBlock(hidden, dropout) for _ in range(blocks)))
        self.last = nn.Linear(hidden, 3 * joints)
        # Fitted from training poses, so buffers: they travel in the checkpoint.
        self.register_buffer("mean_2d", torch.full((joints, 2), (image_size - 1) / 2))
        self.register_buffer("std_2d", torch.full((joints, 2), image_size / 5))
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
    def tiny(cls) -> ResidualLifter:
        """For tests."""
        return cls(hidden=24, blocks=1, dropout=0.1, image_size=64, epochs=2)

    def fit_statistics(self, poses: PoseBatch) -> None:
        """Mean and spread of the complete training poses, in 2D (px) and in 3D (mm)."""
        complete = poses["joints_3d"][poses["valid_3d"].all(-1)]  # (N, J, 3)
        if len(complete) > 1:
            self.mean_mm.copy_(complete.mean(0))
            self.scale_mm.copy_((complete - self.mean_mm).square().mean().sqrt())
        points = poses["joints_2d"][poses["valid_2d"].all(-1)]  # (N, J, 2)
        if len(points) > 1:
            self.mean_2d.copy_(points.mean(0))
            self.std_2d.copy_(points.std(0).clamp(min=1e-3))

    def disturbed(self, joints: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """In training: noise on the 2D joints, and some of them hidden; else as they are."""
        if not self.training:
            return joints, valid
        frame = valid.shape[:2]
        if self.noise_2d > 0:
            std = self.noise_2d * torch.rand(*frame, 1, 1, device=joints.device)
            joints = joints + std * torch.randn_like(joints)
        if self.missing_2d > 0:
            count = torch.randint(self.missing_2d + 1, (*frame, 1), device=valid.device)
            order = torch.rand(valid.shape, device=valid.device).argsort(-1).argsort(-1)
            valid = valid & (order >= count)
        return joints, valid

    def forward(self, batch: PoseBatch) -> Prediction:
        """Lifts the joints that are given; the others enter as zeros with a zero flag."""
        joints, valid = self.disturbed(batch["joints_2d"], batch["valid_2d"])
        known = torch.where(valid[..., None], (joints - self.mean_2d) / self.std_2d, 0.0)
        features = torch.cat((known, valid[..., None].to(known.dtype)), dim=-1)  # (B, T, J, 3)
        x = self.enter(self.first(features.flatten(0, 1).flatten(1)))
        offset = self.last(self.blocks(x)).view(*valid.shape, 3)
        pose = self.mean_mm + self.scale_mm * offset
        return {"pred_3d": pose - pose[:, :, self.root : self.root + 1]}

    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        """Mean squared error in units of the training poses' spread."""
        error = masked_square(self(batch)["pred_3d"], batch["joints_3d"], batch["valid_3d"])
        return {"loss": error / self.scale_mm.square()}

    @torch.no_grad()
    def clip_weights(self) -> None:
        """Scales rows of weights down to ``max_norm``."""
        if self.max_norm > 0:
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    module.weight.copy_(torch.renorm(module.weight, 2, 0, self.max_norm))

    def on_train_batch_end(self, *args: Any) -> None:
        """Keeps the weights' norms below the limit after every step."""
        self.clip_weights()

    def configure_optimizers(self) -> Any:
        """Adam, its rate decaying exponentially."""
        lr = self.phase.lr if self.phase is not None and self.phase.lr is not None else self.lr
        optimizer = torch.optim.Adam(self.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.decay)
        return {"optimizer": optimizer, "lr_scheduler": schedule}
