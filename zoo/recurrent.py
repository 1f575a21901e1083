"""Recurrent heads over windows of frames, and the windows.

The (B)LSTM of Katircioglu et al., "Learning Latent Representations of 3D Human Pose with Deep
Neural Networks", IJCV 2018 (sec. 4, Eq. 5-8): T = 5 vectors, 5 frames apart, go through two stacked
layers; all T outputs are merged into one vector, that of the centre frame, by a layer that counts
from the mean of its targets (:class:`zoo.layers.TargetLinear`).

Shape letters: B windows, T frames of a window, F features, N frames of a recording.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.errors import UsageError, suggest
from zoo.layers import TargetLinear

__all__ = ["RECURRENT_KINDS", "WindowLSTM", "WindowMLP", "window_head", "window_index"]

RecurrentKind = Literal["lstm", "blstm", "fc"]
RECURRENT_KINDS = ("lstm", "blstm", "fc")
"""What :func:`window_head` builds."""


class WindowLSTM(nn.Module):
    """Stacked LSTM (Eq. 5) over a window, all outputs merged by one linear layer.

    Args:
        in_features: F.
        out_features: length of the one output vector.
        frames: T.
        hidden: size of each direction of each layer.
        layers: stacked layers.
        bidirectional: information travels in both directions.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        frames: int = 5,
        hidden: int = 512,
        layers: int = 2,
        bidirectional: bool = True,
    ) -> None:
        super().__init__()
        self.lstm = nn.LSTM(
            in_features, hidden, layers, batch_first=True, bidirectional=bidirectional
        )
        self.merge = TargetLinear(frames * hidden * (2 if bidirectional else 1), out_features)

    def forward(self, window: Tensor) -> Tensor:
        """(B, T, F) -> (B, out_features)."""
        return self.merge(self.lstm(window)[0].flatten(1))


class WindowMLP(nn.Module):
    """Two fully connected layers with ReLU over the concatenated window: the control of sec. 5.4.

    Args:
        in_features: F.
        out_features: length of the one output vector.
        frames: T.
        hidden: width of both layers; 2829 gives the capacity of the paper's BLSTM on 51 numbers.
    """

    def __init__(
        self, in_features: int, out_features: int, frames: int = 5, hidden: int = 2829
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(frames * in_features, hidden), nn.ReLU(),
            nn.Linear(hidden, hidden), nn.ReLU(),
        )  # fmt: skip
        self.merge = TargetLinear(hidden, out_features)

    def forward(self, window: Tensor) -> Tensor:
        """(B, T, F) -> (B, out_features)."""
        return self.merge(self.layers(window.flatten(1)))


def window_head(
    kind: str,
    in_features: int,
    out_features: int,
    frames: int = 5,
    hidden: int = 512,
    layers: int = 2,
    fc_hidden: int = 2829,
) -> WindowLSTM | WindowMLP:
    """A head by name.

    Args:
        kind: ``lstm``, ``blstm`` or ``fc``.
        in_features: F.
        out_features: length of the output vector.
        frames: T.
        hidden: of each direction of the LSTM.
        layers: of the LSTM.
        fc_hidden: width of ``fc``.

    Raises:
        UsageError: another kind.
    """
    if kind == "fc":
        return WindowMLP(in_features, out_features, frames, fc_hidden)
    if kind not in RECURRENT_KINDS:
        raise UsageError(suggest(kind, RECURRENT_KINDS, "recurrent head"))
    return WindowLSTM(in_features, out_features, frames, hidden, layers, kind == "blstm")


def window_index(
    length: int, frames: int = 5, stride: int = 5, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """Which frames of a recording the window of each frame holds.

    The paper prints T entries for even T only; here the window is symmetric, the offsets
    ``stride * (-T // 2 ... T // 2)``, or ends at its frame if ``causal``.

    Args:
        length: N.
        frames: T.
        stride: frames of the recording between two frames of the window.
        causal: no frame of the future.

    Returns:
        (N, T) indices, kept inside the recording, and (N,) bool: the window lies inside. The other
        frames are excluded from the paper's evaluation.
    """
    first = -(frames - 1) if causal else -(frames // 2)
    offsets = stride * torch.arange(first, first + frames)
    index = torch.arange(length)[:, None] + offsets
    inside = ((index >= 0) & (index < length)).all(dim=1)
    return index.clamp(0, max(length - 1, 0)), inside
