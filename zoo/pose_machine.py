"""Parts of the recurrent pose machines of Lin et al., CVPR 2017 (RPSM) and Wang et al., TPAMI 2019.

Both read 128 feature maps of ``zoo.cpm.CPMTrunk`` (its fifteen convolutions and three poolings are
Table 1 of both papers), adapt them to one vector a frame, and regress poses in max-min normalised
units with LSTMs over clips:

* :class:`SpecialisedPair`: two 3 x 3 convolutions on the trunk's features.
* :class:`FeatureAdaption`: maps to a vector of 1024, in the four readings of papers and codes.
* :class:`HeatmapLayer`: the layer that pre-trains the trunk on 2D joints.
* :class:`PoseRange`: max-min normalisation, and equal limb lengths as the authors' codes have them.
* :class:`ClipMemory`: recurrent states that go on from one clip of a recording to the next.
* :func:`single_bias_lstm`, :func:`xavier`, :func:`rescale_frames`, :func:`turn_frames`.

Shape letters: N frames (batch and clip folded), C channels, F cells a side, J joints, P = 3 J.

**Source**: written from the papers' descriptions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.batch import SAMPLE_ID_KEYS, PoseBatch
from zoo.cpm import initialise
from zoo.errors import DataError, UsageError, suggest
from zoo.heatmaps import belief_loss, belief_targets, read_points
from zoo.skeleton import Skeleton

__all__ = [
    "ADAPTIONS",
    "Adaption",
    "ClipMemory",
    "FeatureAdaption",
    "HeatmapLayer",
    "PoseRange",
    "SpecialisedPair",
    "rescale_frames",
    "scale_limbs",
    "single_bias_lstm",
    "turn_frames",
    "xavier",
]

Adaption = Literal["paper", "pool_each", "rpsm_code", "ssc_code"]
ADAPTIONS = ("paper", "pool_each", "rpsm_code", "ssc_code")
"""Readings of the adaption module, see :class:`FeatureAdaption`."""

ROOT_RANGE_MM = 1e-4
"""The root's own range in the authors' codes, so that its division is defined."""


# ---- layers --------------------------------------------------------------------------------------


def xavier(module: nn.Module) -> None:
    """Glorot's uniform weights for convolutions, linear layers and every gate; zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.LSTM):
            for name, parameter in layer.named_parameters():
                if "bias" in name:
                    nn.init.zeros_(parameter)
                else:
                    for gate in parameter.detach().chunk(4):
                        nn.init.xavier_uniform_(gate)


def single_bias_lstm(in_features: int, hidden: int, layers: int = 1) -> nn.LSTM:
    """(B, T, F) -> (B, T, hidden) with one bias a gate, as the papers write an LSTM.

    PyTorch's has two, which are one: the second is zero and frozen.
    """
    lstm = nn.LSTM(in_features, hidden, layers, batch_first=True)
    for name, parameter in lstm.named_parameters():
        if name.startswith("bias_hh"):
            nn.init.zeros_(parameter)
            parameter.requires_grad_(False)
    return lstm


class SpecialisedPair(nn.Module):
    """The two convolutions of a stage on top of the trunk (RPSM, Table 1).

    Args:
        in_channels: of the trunk's features, and of the previous stage's where there is one.
        channels: of both layers.
    """

    def __init__(self, in_channels: int, channels: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True),
        )  # fmt: skip
        xavier(self)

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, F, F) -> (N, channels, F, F)."""
        return self.layers(features)


class FeatureAdaption(nn.Module):
    """Maps to one vector a frame (RPSM, sec. 3.3: two 5 x 5 convolutions, a pooling, 1024 units).

    ==============  ================================================================  ============
    reading         layers                                                            sides, F = 46
    ==============  ================================================================  ============
    ``paper``       conv 5 x 5 /2, conv 5 x 5 /2, max-pooling 2 x 2 /2                23, 12, 6
    ``pool_each``   the pooling after each of the two convolutions                    23, 11, 6, 3
    ``rpsm_code``   conv 5 x 5 /2, conv 3 x 3, pooling rounded up (Lin et al.'s code)  23, 23, 12
    ``ssc_code``    two conv 5 x 5 /2 with padding 1, no pooling (Wang et al.'s)      22, 10
    ==============  ================================================================  ============

    Args:
        in_channels: C.
        cells: F.
        kernels: maps of both convolutions.
        out_features: length of the vector.
        reading: see above.
        relu: one after the fully connected layer too.

    Raises:
        UsageError: no such reading, or it leaves nothing of so few cells.
    """

    def __init__(
        self,
        in_channels: int,
        cells: int,
        kernels: int = 128,
        out_features: int = 1024,
        reading: Adaption = "paper",
        relu: bool = True,
    ) -> None:
        super().__init__()
        if reading not in ADAPTIONS:
            raise UsageError(suggest(str(reading), ADAPTIONS, "adaption"))
        edge = 1 if reading == "ssc_code" else 2
        second = (
            nn.Conv2d(kernels, kernels, 3, 1, 1)
            if reading == "rpsm_code"
            else nn.Conv2d(kernels, kernels, 5, 2, edge)
        )
        layers: list[nn.Module] = [nn.Conv2d(in_channels, kernels, 5, 2, edge), nn.ReLU()]
        layers += [nn.MaxPool2d(2, 2)] if reading == "pool_each" else []
        layers += [second, nn.ReLU()]
        if reading != "ssc_code":
            layers.append(nn.MaxPool2d(2, 2, ceil_mode=reading == "rpsm_code"))
        side = cells
        for layer in layers:
            side = _side_after(layer, side)
            if side < 1:
                raise UsageError(
                    f"adaption {reading!r} leaves nothing of {cells} x {cells} cells; take a "
                    "larger image_size, or the adaption 'paper' or 'rpsm_code'"
                )
        self.convs = nn.Sequential(*layers)
        self.in_features = kernels * side * side
        self.fc = nn.Linear(self.in_features, out_features)
        self.relu = relu
        xavier(self)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, F, F) -> (N, out_features)."""
        vector = self.fc(self.convs(maps).flatten(1))
        return vector.relu() if self.relu else vector


def _side_after(layer: nn.Module, side: int) -> int:
    """Cells along a side after a convolution or pooling; 0 where the kernel does not fit."""
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d):
        return side
    kernel, stride, padding = (
        cast(int, v[0] if isinstance(v, tuple) else v)
        for v in (layer.kernel_size, layer.stride, layer.padding)
    )
    span = side + 2 * padding - kernel
    if isinstance(layer, nn.MaxPool2d) and layer.ceil_mode:
        return math.ceil(span / stride) + 1 if side > 0 else 0
    return span // stride + 1 if span >= 0 else 0


class HeatmapLayer(nn.Module):
    """One 1 x 1 convolution to a map a joint and one for the background (RPSM, sec. 4).

    Args:
        in_channels: of the trunk's features.
        joints: J.
        stride: px a cell of the maps.
        sigma: of the target Gaussians, cells.
    """

    def __init__(self, in_channels: int, joints: int, stride: int, sigma: float = 0.875) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, joints + 1, 1)
        self.stride, self.sigma = stride, sigma
        initialise(self, (self.conv,), "he")  # CPM's N(0, 0.01^2) of an output layer

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, F, F) -> (N, J + 1, F, F) float32, the background last."""
        return self.conv(features).float()

    def loss(self, maps: Tensor, joints_2d: Tensor, valid: Tensor) -> Tensor:
        """Half the squares summed over maps and cells, mean over labelled frames.

        Args:
            maps: (N, J + 1, F, F).
            joints_2d: (N, J, 2) px.
            valid: (N, J) bool.
        """
        height, width = maps.shape[-2:]
        target, counted = belief_targets(joints_2d, valid, height, width, self.stride, self.sigma)
        return belief_loss(maps, target, counted)

    def read(self, maps: Tensor) -> Tensor:
        """(N, J + 1, F, F) -> (N, J, 2) px: maxima, a quarter cell towards the higher side."""
        return read_points(maps[:, :-1], self.stride)


# ---- poses ---------------------------------------------------------------------------------------


def scale_limbs(pose: Tensor, valid: Tensor, lengths: Tensor, parents: Sequence[int]) -> Tensor:
    """The same directions of limbs with other lengths, from the root outwards.

    A limb of length zero stays one. A joint whose parent is not valid keeps its offset from its
    nearest valid ancestor (the root is the origin, and always known).

    Args:
        pose: (N, J, 3) root-relative; anything where not valid.
        valid: (N, J) bool.
        lengths: (J,) in the unit of the pose; the root's is not looked at.
        parents: of each joint, before it in the order; negative for the root.

    Returns:
        (N, J, 3); zero where not valid.
    """
    zero = torch.zeros_like(pose[:, 0])
    old, new = {-1: zero}, {-1: zero}  # of each joint, or of its nearest valid ancestor
    placed = []
    for joint, parent in enumerate(parents):
        parent = max(parent, -1)
        offset = torch.where(valid[:, joint, None], pose[:, joint] - old[parent], 0.0)
        length = offset.norm(dim=-1, keepdim=True)
        factor = torch.where(length > 1e-6, lengths[joint] / length.clamp(min=1e-6), 1.0)
        whole = valid[:, parent] if parent >= 0 else torch.zeros_like(valid[:, joint])
        moved = new[parent] + offset * torch.where(whole[:, None], factor, 1.0)
        known = valid[:, joint, None]
        old[joint] = torch.where(known, pose[:, joint], old[parent])
        new[joint] = torch.where(known, moved, new[parent])
        placed.append(torch.where(known, moved, 0.0))
    return torch.stack(placed, dim=1)


class PoseRange(nn.Module):
    """Max-min normalisation of root-relative poses (RPSM, sec. 4), learned from training poses.

    Each of the P coordinates is divided by its own range over the training poses, so a millimetre
    at a hip weighs more than one at a wrist. Targets have equal limb lengths (the mean training
    ones) if ``limb_scale``, as in the authors' codes; test labels never do, so that even perfect
    targets have the error :attr:`floor_mm`.

    Args:
        skeleton: of the poses; its root is the origin.
        limb_scale: see above.

    Attributes:
        low, span: (P,) mm; the root's are 0 and 1e-4.
        lengths: (J,) mm, mean training distance to the parent, 0 for the root.
        floor_mm: mean distance of the training poses to themselves with equal limbs, all J joints.
    """

    low: Tensor
    span: Tensor
    lengths: Tensor
    floor_mm: Tensor
    away: Tensor

    def __init__(self, skeleton: Skeleton, limb_scale: bool = True) -> None:
        super().__init__()
        self.skeleton, self.limb_scale = skeleton, limb_scale
        joints = len(skeleton)
        away = torch.ones(joints, 1)
        away[skeleton.index(skeleton.root)] = 0
        # Harmless until they are fitted: a person of two metres about the root.
        self.register_buffer("low", (away * -1000.0).expand(-1, 3).flatten().clone())
        span = torch.where(away > 0, 2000.0, ROOT_RANGE_MM)
        self.register_buffer("span", span.expand(-1, 3).flatten().clone())
        self.register_buffer("lengths", torch.zeros(joints))
        self.register_buffer("floor_mm", torch.tensor(0.0))
        self.register_buffer("away", away, persistent=False)

    @torch.no_grad()
    def fit(self, pose: Tensor, valid: Tensor) -> None:
        """Mean limb lengths, then extrema of the (scaled) poses.

        Args:
            pose: (N, J, 3) mm, root-relative.
            valid: (N, J) bool.

        Raises:
            DataError: a joint is in none of the poses.
        """
        exact = torch.where(valid[..., None], pose.double(), 0.0)
        root = self.skeleton.index(self.skeleton.root)
        seen = valid.any(dim=0)
        seen[root] = True
        if not bool(seen.all()):
            lost = ", ".join(self.skeleton.joints[j] for j in (~seen).nonzero().flatten().tolist())
            raise DataError(f"no training pose has the joints {lost}; give 3D data with them")
        lengths = exact.new_zeros(len(self.skeleton))
        for joint, parent in self.skeleton.bones:
            both = valid[:, joint] & (valid[:, parent] | (parent == root))
            limb = (exact[:, joint] - exact[:, parent]).norm(dim=-1)
            lengths[joint] = torch.where(both, limb, 0.0).sum() / both.sum().clamp(min=1)
        self.lengths.copy_(lengths)
        scaled = self._scaled(exact, valid)
        far = torch.where(valid[..., None], (scaled - exact).norm(dim=-1, keepdim=True), 0.0)
        self.floor_mm.copy_(far.sum() / valid.sum().clamp(min=1))
        low = torch.where(valid[..., None], scaled, torch.inf).amin(dim=0)
        high = torch.where(valid[..., None], scaled, -torch.inf).amax(dim=0)
        low[root], high[root] = 0.0, ROOT_RANGE_MM
        self.low.copy_(low.flatten())
        # A coordinate that never changes would divide by zero.
        self.span.copy_((high - low).flatten().clamp(min=ROOT_RANGE_MM))

    def _scaled(self, pose: Tensor, valid: Tensor) -> Tensor:
        if not self.limb_scale:
            return pose
        return scale_limbs(pose, valid, self.lengths.to(pose), self.skeleton.parents)

    def target(self, pose: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised targets.

        Args:
            pose: (N, J, 3) mm, root-relative; anything where not valid.
            valid: (N, J) bool.

        Returns:
            (N, P), in [0, 1] for poses within the training range, the root exactly 0, zero where
            not valid; and (N, P) bool: valid.
        """
        root = self.skeleton.index(self.skeleton.root)
        moved = self._scaled(torch.where(valid[..., None], pose, 0.0), valid).clone()
        moved[:, root] = 0.0
        known = valid.repeat_interleave(3, dim=-1)
        unit = self.normalise(moved)
        return torch.where(known, unit, 0.0), known

    def normalise(self, pose: Tensor) -> Tensor:
        """(..., J, 3) mm -> (..., P)."""
        return (pose.flatten(-2) - self.low) / self.span

    def to_mm(self, unit: Tensor) -> Tensor:
        """(..., P) -> (..., J, 3) float32 mm, the root exactly at 0."""
        pose = unit.float() * self.span + self.low
        return torch.where(self.away > 0, pose.reshape(*pose.shape[:-1], -1, 3), 0.0)


# ---- pictures ------------------------------------------------------------------------------------


def _draw(image: Tensor, towards: Tensor, mode: str) -> Tensor:
    """Resamples (N, 3, S, S); ``towards`` (N, 2, 3) maps new px to old px about the middle."""
    size = image.shape[-1]
    half = size / 2  # grid_sample's unit with align_corners=False
    matrix = torch.cat([towards[..., :2], towards[..., 2:] / half], dim=-1)
    grid = functional.affine_grid(matrix, list(image.shape), align_corners=False)
    with torch.autocast(image.device.type, enabled=False):
        # Centred, so that what lies beyond the picture is grey.
        drawn = functional.grid_sample(
            image.float() - 0.5, grid.float(), mode=mode, align_corners=False
        )
    return (drawn + 0.5).clamp(0, 1)


def rescale_frames(image: Tensor, factor: Tensor, place: Tensor) -> Tensor:
    """Scales each frame and cuts a square of the old size out of it (RPSM, sec. 4).

    Args:
        image: (N, 3, S, S) in [0, 1].
        factor: (N,); 1 leaves the frame as it is.
        place: (N, 2) in [0, 1]: where in a larger frame the square lies, 1/2 is the middle. A
            smaller frame lies in the middle, grey around it.

    Returns:
        (N, 3, S, S) in [0, 1].
    """
    size = image.shape[-1]
    spare = (factor - 1).clamp(min=0)[:, None] * size  # px of the scaled frame
    shift = (place - 0.5) * spare / factor[:, None]
    towards = torch.zeros(len(image), 2, 3, device=image.device)
    towards[:, 0, 0] = towards[:, 1, 1] = 1 / factor
    towards[:, :, 2] = shift
    return _draw(image, towards, "bicubic")


def turn_frames(
    image: Tensor, joints_2d: Tensor, factor: Tensor, angle: Tensor
) -> tuple[Tensor, Tensor]:
    """Scales and turns each frame about its middle, 2D joints with it (CPM's augmentation).

    Args:
        image: (N, 3, S, S) in [0, 1].
        joints_2d: (N, J, 2) px.
        factor: (N,).
        angle: (N,) rad, clockwise as seen.

    Returns:
        Image, grey where it was nothing, and joints, which may now lie outside.
    """
    middle = (image.shape[-1] - 1) / 2
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    back = turn.mT / factor[:, None, None]
    towards = torch.cat([back, torch.zeros_like(back[..., :1])], dim=-1)
    moved = factor[:, None, None] * (joints_2d - middle) @ turn.mT + middle
    return _draw(image, towards, "bilinear"), moved


# ---- states over clips ---------------------------------------------------------------------------


class ClipMemory:
    """Recurrent states at the ends of clips, for clips that go on where another ended.

    In evaluation with ``state="sequence"`` a recording comes as clips of T frames, one after the
    other. :meth:`order` sorts a batch into waves, so that a clip is run after the one before it;
    :meth:`recall` and :meth:`keep` carry the states, also from batch to batch. A clip whose
    predecessor was not seen starts afresh.

    Args:
        step: frames of the recording between the centres of two consecutive clips.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self._states: dict[tuple[int, ...], tuple[Tensor, ...]] = {}

    def clear(self) -> None:
        """Forgets all states."""
        self._states.clear()

    def keys(self, batch: PoseBatch) -> list[tuple[int, ...]]:
        """The ids of the batch's clips; empty if it has none (clips then start afresh)."""
        if any(key not in batch for key in SAMPLE_ID_KEYS):
            return []
        columns = [cast(dict[str, Tensor], batch)[key].tolist() for key in SAMPLE_ID_KEYS]
        return list(zip(*columns, strict=True))

    def _before(self, key: tuple[int, ...]) -> tuple[int, ...]:
        return (*key[:-1], key[-1] - self.step)

    def order(self, keys: Sequence[tuple[int, ...]]) -> list[list[int]]:
        """Indices of the clips in waves: those of a wave do not wait for each other."""
        index = {key: i for i, key in enumerate(keys)}
        depth: dict[int, int] = {}
        for i in sorted(range(len(keys)), key=lambda i: keys[i]):
            earlier = index.get(self._before(keys[i]))
            depth[i] = 0 if earlier is None else depth[earlier] + 1
        waves: list[list[int]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
        for i in range(len(keys)):
            waves[depth[i]].append(i)
        return waves

    def recall(self, key: tuple[int, ...]) -> tuple[Tensor, ...] | None:
        """The state at the end of the clip before; it is given once."""
        return self._states.pop(self._before(key), None)

    def keep(self, key: tuple[int, ...], state: tuple[Tensor, ...]) -> None:
        """Stores the state at the end of a clip."""
        self._states[key] = state
