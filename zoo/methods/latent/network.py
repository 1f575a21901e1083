"""Crops and heatmaps; the shallow CNN and the levels of a timm backbone.

Shape letters: B samples, T frames, N = B T, C channels, S side in px of what the network sees.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import MethodError, UsageError, suggest
from zoo.geometry import px_to_cell
from zoo.heatmaps import gaussian_maps
from zoo.layers import masked_sample_mean

__all__ = [
    "Detector",
    "LevelTrunk",
    "ShallowTrunk",
    "crop_maps",
    "joint_maps",
    "render_heatmaps",
]


# ---- what the network sees -----------------------------------------------------------------------


def crop_maps(maps: Tensor, size: int, random: bool) -> tuple[Tensor, Tensor]:
    """Cuts a square out of images or heatmaps (sec. 5.2: 112 px patches of 128 px).

    Args:
        maps: (B, T, C, H, W).
        size: side of the square in px.
        random: anywhere, one draw a sample and the same for its frames; else the middle.

    Returns:
        (B, T, C, size, size), and (B, 2) px, the position (x, y) of its corner in ``maps``.
    """
    samples, (height, width) = maps.shape[0], maps.shape[-2:]
    spare = torch.tensor([width - size, height - size], device=maps.device)
    if not random:
        x, y = (width - size) // 2, (height - size) // 2
        corner = torch.tensor([[x, y]], device=maps.device).expand(samples, 2)
        return maps[..., y : y + size, x : x + size], corner
    draw = torch.rand(samples, 2, device=maps.device)
    # The product can round up to the bound itself.
    corner = torch.minimum((draw * (spare + 1)).long(), spare)
    span = torch.arange(size, device=maps.device)
    rows = (corner[:, 1, None] + span)[:, :, None]  # (B, S, 1)
    columns = (corner[:, 0, None] + span)[:, None, :]  # (B, 1, S)
    index = torch.arange(samples, device=maps.device)[:, None, None]
    return maps[index, :, :, rows, columns].permute(0, 3, 4, 1, 2), corner


def joint_maps(points: Tensor, valid: Tensor, cells: int, size: float, sigma: float) -> Tensor:
    """Gaussians of peak 1 at 2D joints.

    Args:
        points: (N, K, 2) px of a ``size`` x ``size`` image; anything where not valid.
        valid: (N, K) bool; the others' maps are zero, and those of joints outside the image.
        cells: cells along a side.
        size: side of the image in px.
        sigma: standard deviation in cells.

    Returns:
        (N, K, cells, cells), rows are y.
    """
    known = valid & points.isfinite().all(dim=-1)
    at = px_to_cell(torch.where(known[..., None], points, 0.0), size / cells)
    return torch.where(known[..., None, None], gaussian_maps(at, cells, cells, sigma), 0.0)


def render_heatmaps(
    points: Tensor, valid: Tensor, size: int, cells: int = 64, sigma: float = 1.0
) -> Tensor:
    """What a stacked hourglass would say of these joints, at the size of the image (sec. 5.2).

    Args:
        points: (N, K, 2) px.
        valid: (N, K) bool.
        size: side of the image in px, and of the result.
        cells: side of the hourglass's maps, which are then enlarged bilinearly.
        sigma: standard deviation in cells.

    Returns:
        (N, K, size, size).
    """
    maps = joint_maps(points, valid, cells, size, sigma)
    return functional.interpolate(maps, (size, size), mode="bilinear", align_corners=False)


class Detector(nn.Module):
    """Joint heatmaps from a trunk's last maps: the 2D task that the convolutions start from.

    It begins by saying almost nothing (weights of deviation 0.001, no bias; Xiao et al. 2018 do the
    same). Nearly every cell of a target is zero: an output that starts larger is first pressed
    down everywhere, and narrow trunks lose channels of their ReLUs in that, for good.

    Args:
        channels: of the maps.
        joints: K.
        size: side in px of what the trunk sees.
        sigma: standard deviation of the target Gaussians, in cells of the maps.
    """

    def __init__(self, channels: int, joints: int, size: int, sigma: float = 1.0) -> None:
        super().__init__()
        self.size, self.sigma = size, sigma
        self.out = nn.Conv2d(channels, joints, 1)
        nn.init.normal_(self.out.weight, std=0.001)
        nn.init.zeros_(cast(Tensor, self.out.bias))

    def loss(self, maps: Tensor, points: Tensor, valid: Tensor) -> Tensor:
        """Squared errors of the heatmaps, summed over joints and cells.

        Args:
            maps: (N, C, h, h) of the trunk.
            points: (N, K, 2) px of what the trunk sees.
            valid: (N, K) bool; the others, and joints outside the picture, carry no loss.
        """
        seen = valid & ((points >= -0.5) & (points < self.size - 0.5)).all(-1)
        target = joint_maps(points, seen, maps.shape[-1], self.size, self.sigma)
        return masked_sample_mean((self.out(maps) - target).square().sum(dim=(2, 3)), seen)


# ---- trunks -------------------------------------------------------------------------------------


def _he(layer: nn.Linear | nn.Conv2d) -> None:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class ShallowTrunk(nn.Module):
    """Figure 2(b): 9x9, 5x5, 5x5 convolutions with 2x2 pooling, fully connected layers (sec. 5.2).

    ReLU everywhere, "same" padding, no normalisation layers, dropout after each fully connected
    layer. Images are centred and scaled by fixed numbers, heatmaps taken as they are.

    Args:
        in_channels: 3 for images, one a joint for heatmaps.
        size: side in px of the input.
        channels: of the three convolutions.
        fc: widths of the fully connected layers; the last one is the length of the features.
        dropout: probability.

    Attributes:
        num_features: length of the output.
        map_channels: channels of the last maps.
        conv_parts: names of the submodules that make the last maps.
        trained_parts: names of the submodules that the 3D stages train.
    """

    def __init__(
        self, in_channels: int, size: int, channels: Sequence[int], fc: Sequence[int],
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(channels) != 3 or not fc:
            raise UsageError(
                f"latent: channels {list(channels)} and fc {list(fc)}; three convolutions and at "
                "least one fully connected layer are needed"
            )
        self.is_image = in_channels == 3
        layers: list[nn.Module] = []
        width = in_channels
        for kernel, channel in zip((9, 5, 5), channels, strict=True):
            conv = nn.Conv2d(width, channel, kernel, padding=kernel // 2)
            _he(conv)
            layers += [conv, nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            width, size = channel, size // 2
        if size < 1:
            raise UsageError("latent: crop_size is too small for three poolings; give 8 or more")
        self.convs = nn.Sequential(*layers)
        self.map_channels, self.map_features = width, width * size * size
        dense: list[nn.Module] = []
        width = self.map_features
        for units in fc:
            linear = nn.Linear(width, units)
            _he(linear)
            dense += [linear, nn.ReLU(inplace=True), nn.Dropout(dropout)]
            width = units
        self.fcs = nn.Sequential(*dense)
        self.num_features = width
        self.conv_parts, self.trained_parts = ("convs",), ("convs", "fcs")

    def maps(self, x: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, channels, S / 8, S / 8), Conv3."""
        return self.convs((x - 0.45) / 0.25 if self.is_image else x)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, num_features), FC3."""
        return self.fcs(self.maps(x).flatten(1))


class LevelTrunk(nn.Module):
    """The first levels of a timm backbone and two convolutions more (sec. 5.2).

    For a ResNet levels are conv1, conv2_x, conv3_x, conv4_x, conv5_x. The features are the flat
    maps of the last convolution. The first levels, with their batch norm statistics, are the part
    ``first``: the 2D stage trains it, the 3D stages do not.

    Args:
        name: timm model.
        in_channels: 3 for images.
        size: side in px of the input.
        level: the last level, counted from 1.
        frozen_levels: how many of them the 3D stages keep constant.
        extra: channels of the two convolutions, 3x3 of stride 2 and 3x3.
        pretrained: load timm's weights (downloads them once).

    Raises:
        UsageError: timm has no such model, or it has no such levels or cannot take the size.
        MethodError: the pretrained weights cannot be had.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, in_channels: int, size: int, level: int, frozen_levels: int,
        extra: Sequence[int], pretrained: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(extra) != 2 or level < 1 or not 0 <= frozen_levels <= level:
            raise UsageError(
                f"latent: backbone_level {level}, frozen_levels {frozen_levels}, extra_channels "
                f"{list(extra)}; give 0 <= frozen_levels <= backbone_level and two numbers"
            )
        model = _timm_levels(name, in_channels, size, level, pretrained)
        modules = OrderedDict(model.named_children())
        last = "" if frozen_levels == 0 else _level_module(model, frozen_levels)
        if last and last not in modules:
            raise UsageError(
                f"latent: the levels of timm model {name!r} cannot be told apart; "
                "set frozen_levels to 0"
            )
        cut = list(modules).index(last) + 1 if last else 0
        sequential = type(model).__name__ == "FeatureListNet"
        names = list(modules)
        self.first = nn.Sequential(OrderedDict((n, modules[n]) for n in names[:cut]))
        self.top: nn.Module = model
        if sequential:
            self.top = nn.Sequential(OrderedDict((n, modules[n]) for n in names[cut:]))
        config = cast(dict[str, Any], getattr(model, "pretrained_cfg", None) or {})
        mean = tuple(config.get("mean") or (0.485, 0.456, 0.406))
        std = tuple(config.get("std") or (0.229, 0.224, 0.225))
        if len(mean) != in_channels:  # heatmaps are taken as they are
            mean, std = (0.0,) * in_channels, (1.0,) * in_channels
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        try:
            training = self.training
            with torch.no_grad():
                device = next(model.parameters()).device
                maps = self.eval().to(device).maps(
                    torch.zeros(1, in_channels, size, size, device=device)
                )  # fmt: skip
            self.train(training)
        except Exception as error:  # timm's models raise anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(f"timm model {name!r} with {size} px input: {reason}") from error
        self.map_channels, side = maps.shape[1], math.ceil(maps.shape[-1] / 2)
        self.map_features = maps[0].numel()
        convs = (
            nn.Conv2d(self.map_channels, extra[0], 3, 2, 1), nn.Conv2d(extra[0], extra[1], 3, 1, 1)
        )  # fmt: skip
        for conv in convs:
            _he(conv)
        self.extra = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), nn.Flatten())
        self.num_features = extra[1] * side * side
        has_top = next(self.top.parameters(), None) is not None
        own = ("top",) if has_top else ()
        self.conv_parts = (("first",) if cut else ()) + own
        self.trained_parts = (*own, "extra")

    def maps(self, x: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, C', h, h) of the last level."""
        top = self.top(self.first((x - self.mean) / self.std))
        return top[-1] if isinstance(top, list | tuple) else top

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, num_features)."""
        return self.extra(self.maps(x))


def _level_module(model: nn.Module, level: int) -> str:
    info = cast(Any, model).feature_info.info
    return str(info[level - 1]["module"]).replace(".", "_") if level <= len(info) else ""


def _timm_levels(name: str, in_channels: int, size: int, level: int, pretrained: bool) -> nn.Module:
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise UsageError(suggest(name.split(".")[0], timm.list_models(), "timm model"))
    options: dict[str, Any] = {
        "features_only": True, "out_indices": (level - 1,), "pretrained": pretrained,
        "in_chans": in_channels,
    }  # fmt: skip
    try:
        try:  # models with position embeddings need the size when they are built
            return timm.create_model(name, img_size=size, **options)
        except TypeError:
            return timm.create_model(name, **options)
    except Exception as error:  # timm and its hub raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if pretrained:
            raise MethodError(f"timm model {name!r} with pretrained weights: {reason}") from error
        raise UsageError(
            f"timm model {name!r} up to level {level} with {size} px input: {reason}"
        ) from error
