"""Convolutional Pose Machines (Wei et al., CVPR 2016) as parts that several methods share.

A machine turns a person crop into belief maps in stages: the first sees the picture alone, each
later one the maps before it, image features and a centre map that says where the person is.

* :class:`CPMTrunk`: the fifteen 3 x 3 convolutions of the VGG variant, (N, 3, S, S) ->
  (N, 128, S/8, S/8), 9,110,720 parameters. Usable alone, below any head.
* :class:`VggCPM`: that trunk, a first stage of two 1 x 1 convolutions, and later stages of five
  7 x 7 and two 1 x 1 ones: the released models of Wei et al. and of Tome et al.
* :class:`NineCPM`: the first published variant, 9 x 9 convolutions and a second image tower.

All convolutions have stride 1, zero padding that keeps the size, a bias, and a ReLU except after a
stage's last one. There is no batch norm. Images are centred (x - 1/2) here.

CPM draws its first weights from N(0, 0.01^2), on top of layers that are pretrained. From nothing,
15 such layers without normalisation let the signal die out, so ``init="he"`` is the default and
only output layers start at N(0, 0.01^2). ``init="gaussian"`` gives CPM's own everywhere.

**Source**: written from the papers' descriptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import UsageError

__all__ = [
    "NINE_CHANNELS",
    "VGG_CHANNELS",
    "BeliefMachine",
    "CPMTrunk",
    "Init",
    "NineCPM",
    "VggCPM",
    "centre_map",
    "initialise",
]

VGG_CHANNELS: tuple[tuple[int, ...], ...] = (
    (64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 256, 256, 256, 256, 128)
)  # fmt: skip
"""Widths of the trunk; a 2 x 2 max-pooling lies between two groups."""

NINE_CHANNELS: tuple[int, ...] = (128, 128, 128, 32)
"""Widths of a 9 x 9 tower (three convolutions, each followed by pooling) and of the 5 x 5 after."""

Init = Literal["he", "gaussian"]


def initialise(module: nn.Module, outputs: Sequence[nn.Conv2d], init: Init) -> None:
    """First weights of all convolutions of ``module``, zero biases; see the module's docstring."""
    last = {id(layer) for layer in outputs}
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:  # those have no values
            if init == "he" and id(layer) not in last:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            else:
                nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


def _chain(inputs: int, widths: Sequence[int], kernel: int) -> list[nn.Module]:
    """Convolutions of one kernel size, each with a ReLU."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [_conv(inputs, width, kernel), nn.ReLU(inplace=True)]
        inputs = width
    return layers


class CPMTrunk(nn.Module):
    """The VGG variant's image features.

    Args:
        channels: groups of widths; max-pooling between two groups.
        init: first weights.

    Attributes:
        out_channels: of the features.
        stride: px a cell of the features.
    """

    def __init__(self, channels: Sequence[Sequence[int]] = VGG_CHANNELS, init: Init = "he") -> None:
        super().__init__()
        if not channels or not all(channels):
            raise UsageError("CPM: the trunk's channels are groups of widths, none of them empty")
        layers: list[nn.Module] = []
        width = 3
        for number, group in enumerate(channels):
            if number:
                layers.append(nn.MaxPool2d(2, 2))
            layers += _chain(width, group, kernel=3)
            width = group[-1]
        self.layers = nn.Sequential(*layers)
        self.out_channels = width
        self.stride = 2 ** (len(channels) - 1)
        initialise(self, (), init)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> (N, out_channels, S / stride, S / stride)."""
        # Channels last makes the convolutions about a fifth faster on CPUs, more on GPUs.
        centred = (image - 0.5).contiguous(memory_format=torch.channels_last)
        return self.layers(centred)


class BeliefMachine(Protocol):
    """What :class:`VggCPM` and :class:`NineCPM` have in common."""

    stages: int
    stride: int

    def begin(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, S, S) -> maps of stage 1 (N, O, H, W), and the features that later stages read."""

    def refine(self, stage: int, maps: Tensor, features: Tensor, centre: Tensor) -> Tensor:
        """Maps of a later stage (from 1 on) from those before it."""


def _check_stages(stages: int, outputs: int) -> None:
    if stages < 1 or outputs < 1:
        raise UsageError(f"CPM: {stages} stages with {outputs} maps; there must be one of each")


def _later_stage(
    inputs: int, outputs: int, kernel: int, depth: int, width: int
) -> tuple[nn.Sequential, nn.Conv2d]:
    last = _conv(width, outputs, 1)
    body = _chain(inputs, [width] * depth, kernel)
    return nn.Sequential(*body, *_chain(width, [width], 1), last), last


class VggCPM(nn.Module):
    """The VGG variant: shared features, one small head, later stages of their own weights.

    Args:
        outputs: O maps, the background among them.
        stages: S.
        channels: of the trunk.
        head: width of the first stage's hidden layer.
        width: of the later stages.
        kernel: of the later stages' first ``depth`` convolutions.
        depth: number of those.
        init: first weights.
    """

    def __init__(
        self,
        outputs: int,
        stages: int = 6,
        channels: Sequence[Sequence[int]] = VGG_CHANNELS,
        head: int = 512,
        width: int = 128,
        kernel: int = 7,
        depth: int = 5,
        init: Init = "he",
    ) -> None:
        super().__init__()
        _check_stages(stages, outputs)
        self.stages = stages
        self.trunk = CPMTrunk(channels, init)
        self.stride = self.trunk.stride
        features = self.trunk.out_channels
        last = _conv(head, outputs, 1)
        self.first = nn.Sequential(*_chain(features, [head], 1), last)
        later = [
            _later_stage(outputs + features + 1, outputs, kernel, depth, width)
            for _ in range(stages - 1)
        ]
        self.later = nn.ModuleList(stage for stage, _ in later)
        initialise(self, [last, *(conv for _, conv in later)], init)

    def begin(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`BeliefMachine`."""
        features = self.trunk(image)
        return self.first(features), features

    def refine(self, stage: int, maps: Tensor, features: Tensor, centre: Tensor) -> Tensor:
        """See :class:`BeliefMachine`; ``centre`` is (1, 1, H, W)."""
        joined = torch.cat((maps.to(features.dtype), features, _like(centre, features)), dim=1)
        return self.later[stage - 1](joined)


class NineCPM(nn.Module):
    """The 9 x 9 variant: the first stage has image layers of its own, the later ones share a tower.

    Args:
        outputs: O maps, the background among them.
        stages: S.
        channels: three widths of the 9 x 9 convolutions, and that of the 5 x 5 one.
        head: width of the first stage's hidden layers.
        width: of the later stages.
        kernel: of the later stages' first ``depth`` convolutions.
        depth: number of those.
        dropout: in the first stage.
        init: first weights.
    """

    def __init__(
        self,
        outputs: int,
        stages: int = 6,
        channels: Sequence[int] = NINE_CHANNELS,
        head: int = 512,
        width: int = 128,
        kernel: int = 11,
        depth: int = 3,
        dropout: float = 0.5,
        init: Init = "he",
    ) -> None:
        super().__init__()
        _check_stages(stages, outputs)
        if len(channels) < 2:
            raise UsageError(f"CPM: channels {list(channels)}; a tower and the 5 x 5 after it")
        self.stages = stages
        *tower, small = channels
        self.stride = 2 ** len(tower)
        last = _conv(head, outputs, 1)
        self.first = nn.Sequential(
            *_tower(tower), *_chain(tower[-1], [small], 5), *_chain(small, [head], 9),
            nn.Dropout(dropout), *_chain(head, [head], 1), nn.Dropout(dropout), last,
        )  # fmt: skip
        outs = [last]
        self.tower = nn.Sequential(*_tower(tower)) if stages > 1 else nn.Identity()
        self.features, self.later = nn.ModuleList(), nn.ModuleList()
        for _ in range(stages - 1):
            self.features.append(nn.Sequential(*_chain(tower[-1], [small], 5)))
            stage, conv = _later_stage(outputs + small + 1, outputs, kernel, depth, width)
            self.later.append(stage)
            outs.append(conv)
        initialise(self, outs, init)

    def begin(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`BeliefMachine`."""
        centred = (image - 0.5).contiguous(memory_format=torch.channels_last)
        return self.first(centred), self.tower(centred)

    def refine(self, stage: int, maps: Tensor, features: Tensor, centre: Tensor) -> Tensor:
        """See :class:`BeliefMachine`; ``centre`` is (1, 1, H, W)."""
        small = self.features[stage - 1](features)
        joined = torch.cat((maps.to(small.dtype), small, _like(centre, small)), dim=1)
        return self.later[stage - 1](joined)


def _tower(widths: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    inputs = 3
    for width in widths:
        layers += [*_chain(inputs, [width], 9), nn.MaxPool2d(3, 2, ceil_mode=True)]
        inputs = width
    return layers


def _like(centre: Tensor, features: Tensor) -> Tensor:
    return centre.to(features.dtype).expand(features.shape[0], -1, -1, -1)


def centre_map(image_size: int, stride: int, sigma: float) -> Tensor:
    """Where the person is: a Gaussian in the middle of the crop, pooled to (1, 1, H, W) cells.

    Args:
        image_size: side of the crop, px.
        stride: px a cell; the average pooling is one px wider (9 over 8 in CPM).
        sigma: standard deviation, px.
    """
    axis = torch.arange(image_size, dtype=torch.float32) - (image_size - 1) / 2
    bell = torch.exp(-0.5 * (axis / sigma).square())
    full = (bell[:, None] * bell[None, :])[None, None]
    return functional.avg_pool2d(full, stride + 1, stride, ceil_mode=True)
