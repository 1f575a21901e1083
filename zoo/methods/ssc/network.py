"""The modules of Wang et al. 2019: 2D pose head, 2D-to-3D transformer, and other 2D networks.

Psi_C and Psi_P are in ``zoo.projector``, the trunk in ``zoo.cpm``.

Shape letters: B clips, T frames, N = B T, C channels, F cells a side, J joints, P outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.cpm import CPMTrunk
from zoo.errors import UsageError
from zoo.pose_machine import (
    Adaption,
    FeatureAdaption,
    HeatmapLayer,
    SpecialisedPair,
    single_bias_lstm,
    xavier,
)

__all__ = [
    "HourglassPose",
    "OwnPose",
    "PointHead",
    "PoseTransformer",
    "State",
    "drop_joints",
    "full_precision",
]


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Switches autocast off; on the meta device there is none."""
    if like.is_meta:
        return nullcontext()
    return torch.autocast(like.device.type, enabled=False)


State = tuple[Tensor, ...]
"""Hidden state and cells of both layers, four tensors (B, H)."""


class PointHead(nn.Module):
    """2D pose of a frame: one fully connected layer on the flat features (sec. 3.4).

    Args:
        channels: C.
        cells: F.
        joints: J.
    """

    def __init__(self, channels: int, cells: int, joints: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels * cells * cells, 2 * joints)
        xavier(self)
        nn.init.constant_(self.fc.bias, 0.5)  # the middle of the picture

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, F, F) -> (N, 2 J) float32, in sides of the crop."""
        with full_precision(features):  # 8 bits would be a pixel
            return self.fc(features.float().flatten(1))


class PoseTransformer(nn.Module):
    """Psi_T: a frame's features to a vector, two recurrent layers over the clip, a linear output.

    Args:
        in_channels: C of the trunk's features.
        cells: F.
        outputs: P.
        channels: of the two convolutions before the adaption module; 0 leaves them out.
        kernels: of the adaption module.
        adapted: length of its vector.
        adapted_relu: a ReLU after it.
        hidden: cells of each LSTM layer, or units of the layers in their place.
        adaption: see ``zoo.pose_machine.FeatureAdaption``.
        temporal: false puts a fully connected layer with ReLU in the place of each LSTM.
        backward: the second LSTM runs from the clip's last frame to its first.
    """

    def __init__(
        self, in_channels: int, cells: int, outputs: int, channels: int, kernels: int,
        adapted: int, adapted_relu: bool, hidden: int, adaption: Adaption, temporal: bool,
        backward: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.special = SpecialisedPair(in_channels, channels) if channels else nn.Identity()
        self.adaption = FeatureAdaption(
            channels or in_channels, cells, kernels, adapted, adaption, adapted_relu
        )
        self.temporal, self.backward, self.hidden = temporal, backward, hidden
        layer = single_bias_lstm if temporal else nn.Linear
        self.first: nn.Module = layer(adapted, hidden)
        self.second: nn.Module = layer(hidden, hidden)
        self.out = nn.Linear(hidden, outputs)
        for module in (self.first, self.second, self.out):
            xavier(module)
        nn.init.constant_(self.out.bias, 0.5)  # the middle of normalised poses and of the crop

    def start(self, clips: int, device: torch.device) -> State:
        """H_0 = 0."""
        return (torch.zeros(clips, self.hidden, device=device),) * 4

    def adapt(self, features: Tensor) -> Tensor:
        """(B, T, C, F, F) -> (B, T, adapted) float32."""
        vector = self.adaption(self.special(features.flatten(0, 1))).float()
        return vector.reshape(*features.shape[:2], -1)

    def recur(self, vector: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Both layers and the output over clips.

        Args:
            vector: (B, T, adapted) float32.
            state: before the first frame; None starts the clips. A second layer that runs backwards
                always starts at its clip's last frame.

        Returns:
            (B, T, P) float32, and the state after the last frame.
        """
        state = state or self.start(len(vector), vector.device)
        with full_precision(vector):
            if not self.temporal:
                return self.out(self.second(self.first(vector).relu()).relu()), state
            one, (h1, c1) = self.first(vector, (state[0][None], state[1][None]))
            if self.backward:
                two, _ = self.second(one.flip(1))
                return self.out(two.flip(1)), (h1[0], c1[0], *state[2:])
            two, (h2, c2) = self.second(one, (state[2][None], state[3][None]))
            return self.out(two), (h1[0], c1[0], h2[0], c2[0])

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, C, F, F) -> (B, T, P), clips that start with their first frame."""
        return self.recur(self.adapt(features))[0]


class OwnPose(nn.Module):
    """A 2D network of its own with the same layers as the 3D one: the authors' code has it."""

    def __init__(self, channels: Sequence[Sequence[int]], transformer: PoseTransformer) -> None:
        super().__init__()
        self.trunk = CPMTrunk(channels)
        self.transformer = transformer

    def forward(self, image: Tensor) -> Tensor:
        """(B, T, 3, S, S) -> (B, T, 2 J) in sides of the crop."""
        features = self.trunk(image.flatten(0, 1))
        return self.transformer(features.reshape(*image.shape[:2], *features.shape[1:]))


# ---- a stacked hourglass -------------------------------------------------------------------------


class _Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 with batch norm and ReLU before each, and a skip."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = max(1, outputs // 2)
        layers: list[nn.Module] = []
        for i, o, kernel in ((inputs, half, 1), (half, half, 3), (half, outputs, 1)):
            layers += [nn.BatchNorm2d(i), nn.ReLU(), nn.Conv2d(i, o, kernel, padding=kernel // 2)]
        self.layers = nn.Sequential(*layers)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return self.skip(maps) + self.layers(maps)


class _Hourglass(nn.Module):
    """Down ``depth`` times and up again, with a branch at every size."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.branch, self.down, self.up = (_Bottleneck(width, width) for _ in range(3))
        self.inner = _Hourglass(width, depth - 1) if depth > 1 else _Bottleneck(width, width)

    def forward(self, maps: Tensor) -> Tensor:
        inner = self.up(self.inner(self.down(functional.max_pool2d(maps, 2, ceil_mode=True))))
        return self.branch(maps) + functional.interpolate(inner, size=maps.shape[-2:])


class HourglassPose(nn.Module):
    """Stacked hourglasses (Newell et al. 2016) with heatmaps a quarter of the picture's side.

    Args:
        joints: J.
        width: maps.
        stacks: hourglasses, each with a loss of its own.
        depth: sizes of each.
        sigma: of the target heatmaps, cells.
    """

    def __init__(
        self, joints: int, width: int = 256, stacks: int = 2, depth: int = 4, sigma: float = 1.0
    ) -> None:
        super().__init__()
        if width < 4 or stacks < 1 or depth < 1:
            raise UsageError(f"hourglass: width {width}, {stacks} stacks, depth {depth}")
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 4, 7, 2, 3), nn.BatchNorm2d(width // 4), nn.ReLU(),
            _Bottleneck(width // 4, width // 2), nn.MaxPool2d(2, 2), _Bottleneck(width // 2, width),
        )  # fmt: skip
        self.stacks = nn.ModuleList(
            nn.Sequential(
                _Hourglass(width, depth), _Bottleneck(width, width), nn.BatchNorm2d(width),
                nn.ReLU(),
            )
            for _ in range(stacks)
        )  # fmt: skip
        self.outs = nn.ModuleList(HeatmapLayer(width, joints, 4, sigma) for _ in range(stacks))
        self.back = nn.ModuleList(
            nn.Conv2d(width + joints + 1, width, 1) for _ in range(stacks - 1)
        )

    def maps(self, image: Tensor) -> list[Tensor]:
        """(N, 3, S, S) in [0, 1] -> (N, J + 1, S / 4, S / 4) of each stack."""
        x = self.stem(image - 0.5)
        found = []
        for k, (stack, out) in enumerate(zip(self.stacks, self.outs, strict=True)):
            features = stack(x)
            found.append(out(features))
            if k < len(self.back):
                x = x + self.back[k](torch.cat([features, found[-1].to(features.dtype)], dim=1))
        return found

    def loss(self, image: Tensor, joints_2d: Tensor, valid: Tensor) -> Tensor:
        """Sum of the stacks' heatmap losses.

        Args:
            image: (N, 3, S, S).
            joints_2d: (N, J, 2) px.
            valid: (N, J) bool.
        """
        layers = [layer for layer in self.outs if isinstance(layer, HeatmapLayer)]
        losses = [
            layer.loss(maps, joints_2d, valid)
            for layer, maps in zip(layers, self.maps(image), strict=True)
        ]
        return torch.stack(losses).sum()

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, J, 2) px, the last stack's maxima."""
        last = self.outs[-1]
        assert isinstance(last, HeatmapLayer)
        return last.read(self.maps(image)[-1])


def drop_joints(valid: Tensor, probability: float) -> Tensor:
    """(..., J) bool: joints that stay, each dropped by itself (sec. 3.3)."""
    if probability == 0:
        return torch.ones_like(valid)
    return torch.rand(valid.shape, device=valid.device) >= probability
