"""The 3D-to-2D projector of Wang et al. 2019: six fully connected layers, and what goes with them.

Keze Wang, Liang Lin, Chenhan Jiang, Chen Qian, Pengxu Wei: "3D Human Pose Machines with
Self-supervised Learning", TPAMI 2019. Psi_C copies an intermediate 3D pose into one that can be
corrected, Psi_P projects that one into the picture (Eq. 1); where its 2D pose disagrees with one
seen in the picture, ``zoo.correction`` changes copies of their weights for that frame (Eq. 3-4).

Any model can be corrected that has these two parts and tells its poses: :class:`SelfCorrecting`.

Shape letters: B batch, T frames, J joints, N frames of all samples, P = 3 J numbers of a pose.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from zoo.batch import PoseBatch, Prediction
from zoo.skeleton import Skeleton

__all__ = ["CorrectionTerms", "Projector", "Regressor", "SelfCorrecting"]


class Regressor(nn.Module):
    """Psi_C: P -> width, ReLU, -> P, linear; no skip (Eq. 1).

    Args:
        pose_size: P.
        width: of the hidden layer.
    """

    def __init__(self, pose_size: int, width: int = 1024) -> None:
        super().__init__()
        self.hidden = nn.Linear(pose_size, width)
        self.out = nn.Linear(width, pose_size)

    def forward(self, pose: Tensor) -> Tensor:
        """(N, P) intermediate pose -> (N, P) regressed pose."""
        return self.out(self.hidden(pose).relu())


class Projector(nn.Module):
    """Psi_P: P -> width = a; a -> width -> width = b; a + b -> 2D; ReLU after all but the last.

    The identity mapping of the paper is the way of ``a`` around the two middle layers.

    Args:
        pose_size: P.
        points_size: 2 J.
        width: of the hidden layers.
        batch_norm: between the three hidden layers and their ReLUs.
    """

    def __init__(
        self, pose_size: int, points_size: int, width: int = 1024, batch_norm: bool = False
    ) -> None:
        super().__init__()
        self.first = _layer(pose_size, width, batch_norm)
        self.second = _layer(width, width, batch_norm)
        self.third = _layer(width, width, batch_norm)
        self.out = nn.Linear(width, points_size)

    def forward(self, pose: Tensor) -> Tensor:
        """(N, P) regressed pose -> (N, 2 J) projected 2D pose."""
        a = self.first(pose)
        return self.out(a + self.third(self.second(a)))


def _layer(inputs: int, outputs: int, batch_norm: bool) -> nn.Sequential:
    norm = [nn.BatchNorm1d(outputs)] if batch_norm else []
    return nn.Sequential(nn.Linear(inputs, outputs), *norm, nn.ReLU())


class CorrectionTerms(NamedTuple):
    """What a model knows of its frames before they are corrected; all frames are predicted ones.

    Attributes:
        prediction: what the model says without a correction.
        pose: (B, T, P), the intermediate 3D pose, in the model's own units: the input of Psi_C.
        points: (B, T, J, 2), the 2D pose that the projected one is held against, in the units of
            Psi_P's output.
        valid: (B, T, J) bool, joints of ``points`` that are known.
        points_px: px of the crop a unit of ``points``.
    """

    prediction: Prediction
    pose: Tensor
    points: Tensor
    valid: Tensor
    points_px: float


@runtime_checkable
class SelfCorrecting(Protocol):
    """A model whose poses ``zoo.correction`` can correct.

    Attributes:
        psi_c: the regression function, (N, P) -> (N, P).
        psi_p: the projection function, (N, P) -> (N, 2 J), coordinates joint by joint.
        correction: the model's own settings, as ``zoo.correction.Correction.parse`` reads them.
    """

    psi_c: nn.Module
    psi_p: nn.Module

    @property
    def correction(self) -> str:
        """Settings in words, such as ``on``, ``off`` or ``lr=0.002``."""

    @property
    def skeleton(self) -> Skeleton:
        """Names the J joints."""

    def correction_terms(self, batch: PoseBatch) -> CorrectionTerms:
        """A forward pass that also gives what the correction starts from."""

    def pose_to_mm(self, pose: Tensor) -> Tensor:
        """(..., P) in the model's units -> (..., J, 3) mm, camera frame, pelvis at the origin."""
