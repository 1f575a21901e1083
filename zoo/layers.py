"""Layers that several methods share: heads for any feature vector, and timm backbones as trunks.

* :class:`GridClassification`: 2D joints as one class of a G x G grid per joint, with soft labels.
* :class:`MultiRootRegression`: 3D joints relative to several roots, averaged into one pose.
* :func:`timm_trunk`: any timm image model as a module from (N, 3, H, W) to a flat feature vector.

A method with its own trunk uses the heads like this::

    trunk = timm_trunk("resnet18", image_size=128)
    grid = GridClassification(trunk.num_features, num_joints=17, grid=16, size=128)
    roots = MultiRootRegression(trunk.num_features, num_joints=17, roots=[0, 2, 5, 8, 12, 15])
    features = trunk(image)                                   # (N, F), image in [0, 1]
    logits, relative = grid(features), roots(features)
    loss = grid.loss(logits, joints_2d, valid_2d) + roots.loss(relative, pose, valid_3d)
    joints_2d, pose = grid.decode(logits), roots.average(relative)

Both heads are those of Park, Hwang, Kwak, "3D Human Pose Estimation Using Convolutional Neural
Networks with 2D Pose Information", ECCV workshops 2016; equation numbers are of that paper.

Shape letters: N samples (batch and frames folded), J joints, G cells along a side, R roots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import MethodError, UsageError, suggest

__all__ = [
    "GridClassification",
    "MultiRootRegression",
    "SoftLabels",
    "TargetLinear",
    "TimmTrunk",
    "fully_connected",
    "grid_soft_labels",
    "masked_sample_mean",
    "process_share",
    "soft_cross_entropy",
    "timm_trunk",
]

SoftLabels = Literal["radius", "nearest4", "one_hot"]
ReadOut = Literal["expectation", "argmax"]


def fully_connected(in_features: int, out_features: int, dropout: float) -> nn.Sequential:
    """Linear (no bias beside batch norm), batch norm, ReLU, dropout (sec. 4)."""
    linear = nn.Linear(in_features, out_features, bias=False)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    return nn.Sequential(linear, nn.BatchNorm1d(out_features), nn.ReLU(), nn.Dropout(dropout))


def _small_output(layer: nn.Linear) -> None:
    """ZFNet's initial weights, N(0, 0.01^2).

    Larger ones start with squared errors hundreds of times those of unit-norm shapes, and the first
    steps then kill units of the layers below.
    """
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)


class TargetLinear(nn.Linear):
    """A last layer that counts from the mean of its targets in units of their deviation.

    ``y = mean + std (W x + b)``, with W near zero at first. It can be the same functions as
    ``nn.Linear``. What differs is a step of Adam, which moves W by the same amount whatever the
    unit of y: targets that vary little (the hundreds of units of an overcomplete code) are
    overshot by many deviations, and the gradient of that, W^T W x, shrinks all features alike
    until the ReLUs before the layer are dead and it gives its mean for ever.

    Args:
        in_features: length of x.
        out_features: length of y.

    Attributes:
        mean: (out_features,) 0 until :meth:`calibrate`.
        std: () 1 until then.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        nn.init.normal_(self.weight, std=0.001)
        nn.init.zeros_(self.bias)
        self.register_buffer("mean", torch.zeros(out_features))
        self.register_buffer("std", torch.tensor(1.0))

    @torch.no_grad()
    def calibrate(self, mean: Tensor, std: Tensor) -> None:
        """Takes over the targets' (D,) mean and () deviation from it, over all dimensions."""
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return self.mean + self.std * super().forward(x)


def masked_sample_mean(terms: Tensor, valid: Tensor) -> Tensor:
    """Sum of the valid terms of each sample, averaged over the samples that have any.

    Samples without a valid term neither add to the loss nor dilute it, so that data with and
    without a label can share a batch. With all terms valid it is the plain mean over the batch.
    Where several processes train together, the mean of their results is that of all their samples.

    Args:
        terms: (N, ...) losses; may be anything, NaN too, where ``valid`` is false.
        valid: (N, ...) bool, the shape of ``terms``.

    Returns:
        A scalar; zero, with zero gradients, when nothing is valid.
    """
    kept = torch.where(valid, terms, torch.zeros_like(terms))
    return kept.sum() / process_share(valid.flatten(1).any(dim=1).sum())


def process_share(count: Tensor) -> Tensor:
    """A process's share of a count over all that train together, at least 1 in all.

    Only with gradients: a validation does not run in step.
    """
    training = torch.is_grad_enabled() and torch.distributed.is_available()
    if not (training and torch.distributed.is_initialized()):
        return count.clamp(min=1)
    total = count.detach().clone()
    torch.distributed.all_reduce(total)
    return total.clamp(min=1) / torch.distributed.get_world_size()


# ---- 2D: classification of grid cells ------------------------------------------------------------


def grid_centers(grid: int, size: float, device: torch.device | None = None) -> Tensor:
    """(G * G, 2) px (x, y) of the cell centres, row by row; pixel centres are at integers."""
    width = size / grid
    line = (torch.arange(grid, device=device, dtype=torch.float32) + 0.5) * width - 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def grid_soft_labels(points: Tensor, grid: int, size: float, mode: SoftLabels) -> Tensor:
    """Target probabilities of the grid cells (Eq. 1-2, sec. 3.1).

    Each chosen cell gets a probability in inverse proportion to the distance between its centre and
    the point; they sum to 1. The paper's words and its formula choose different cells:

    * ``radius``: Eq. 2, the cells whose centre is less than a cell's width away (1 to 4 cells).
    * ``nearest4``: its text, "the four nearest neighbour grids".
    * ``one_hot``: the cell that contains the point, the zero-one labels the paper argues against.

    Args:
        points: (..., 2) px (x, y) of a ``size`` x ``size`` image; finite, inside the image.
        grid: cells along a side, G.
        size: side of the image in px.
        mode: which cells.

    Returns:
        (..., G * G), row by row.
    """
    width = size / grid
    distance = torch.cdist(
        points.reshape(-1, 2).float(),
        grid_centers(grid, size, points.device),
        # The matrix-product form loses the last digits where a point meets a centre.
        compute_mode="donot_use_mm_for_euclid_dist",
    )
    nearest = distance.argmin(dim=1, keepdim=True)
    chosen = torch.zeros_like(distance, dtype=torch.bool)
    if mode == "radius":
        # For points of the image the nearest centre is within 0.71 widths; elsewhere it may not be.
        chosen = (distance < width).scatter(1, nearest, True)
    elif mode == "nearest4":
        chosen.scatter_(1, distance.topk(min(4, grid * grid), dim=1, largest=False).indices, True)
    elif mode == "one_hot":
        chosen.scatter_(1, nearest, True)
    else:
        raise UsageError(suggest(mode, ("radius", "nearest4", "one_hot"), "soft_labels mode"))
    # A point on a centre: 1/d is clamped, the cell then holds all but about 0.1 % of the mass.
    inverse = torch.where(chosen, 1.0 / distance.clamp(min=1e-3 * width), 0.0)
    labels = inverse / inverse.sum(dim=1, keepdim=True)
    return labels.reshape(*points.shape[:-1], grid * grid)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each joint (Eq. 3, sec. 3.1): (..., K) logits, probabilities -> (...)."""
    return -(target * functional.log_softmax(logits.float(), dim=-1)).sum(dim=-1)


class GridClassification(nn.Module):
    """2D joints as a classification of G x G cells, one softmax per joint (sec. 3.1).

    Args:
        in_features: length of the feature vector.
        num_joints: J.
        grid: G; the paper has 16.
        size: side in px of the square image that the features see; the unit of points.
        soft_labels: which cells get a target, see :func:`grid_soft_labels`.
    """

    def __init__(
        self,
        in_features: int,
        num_joints: int,
        grid: int = 16,
        size: int = 225,
        soft_labels: SoftLabels = "radius",
    ) -> None:
        super().__init__()
        if soft_labels not in ("radius", "nearest4", "one_hot"):
            raise UsageError(
                suggest(str(soft_labels), ("radius", "nearest4", "one_hot"), "soft_labels mode")
            )
        if grid < 2:
            raise UsageError(f"grid is {grid}; a grid needs at least 2 cells along a side")
        self.num_joints, self.grid, self.size = num_joints, grid, size
        self.soft_labels: SoftLabels = soft_labels
        self.out = nn.Linear(in_features, num_joints * grid * grid)
        _small_output(self.out)

    @property
    def cell(self) -> float:
        """Width of a cell in px, w_g."""
        return self.size / self.grid

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) features -> (N, J, G * G) logits, rows of the grid one after another."""
        return self.out(features).unflatten(-1, (self.num_joints, self.grid * self.grid))

    def inside(self, points: Tensor) -> Tensor:
        """(..., 2) px -> (...) bool: the point lies on the image; false for NaN."""
        return ((points >= -0.5) & (points < self.size - 0.5)).all(dim=-1)

    def targets(self, points: Tensor) -> Tensor:
        """(..., 2) px -> (..., G * G) target probabilities; points outside get those of the centre.

        Mask with :meth:`inside`.
        """
        middle = torch.full_like(points, (self.size - 1) / 2)
        return grid_soft_labels(
            torch.where(self.inside(points)[..., None], points, middle),
            self.grid,
            self.size,
            self.soft_labels,
        )

    def loss(self, logits: Tensor, points: Tensor, valid: Tensor) -> Tensor:
        """Sum over joints of the cross-entropies (Eq. 3), mean over labelled samples.

        Args:
            logits: (N, J, G * G).
            points: (N, J, 2) px of the image; joints outside the image carry no loss.
            valid: (N, J) bool.
        """
        entropies = soft_cross_entropy(logits, self.targets(points))
        return masked_sample_mean(entropies, valid & self.inside(points))

    def decode(self, logits: Tensor, mode: ReadOut = "expectation") -> Tensor:
        """Points of the distributions.

        Args:
            logits: (..., G * G).
            mode: ``argmax`` takes the centre of the most probable cell; ``expectation`` the mean of
                the centres over the most probable 2 x 2 block that holds this cell.

        Returns:
            (..., 2) px of the image.
        """
        grid = self.grid
        probs = logits.float().softmax(dim=-1)
        best = probs.argmax(dim=-1)
        centers = grid_centers(grid, self.size, logits.device)
        if mode == "argmax":
            return centers[best]
        if mode != "expectation":
            raise UsageError(suggest(mode, ("expectation", "argmax"), "read-out"))
        # The four blocks' first cells, kept on the grid: (..., 4) rows and columns.
        steps = torch.tensor([[0, 0], [0, -1], [-1, 0], [-1, -1]], device=logits.device)
        row = (best.div(grid, rounding_mode="floor")[..., None] + steps[:, 0]).clamp(0, grid - 2)
        column = (best.remainder(grid)[..., None] + steps[:, 1]).clamp(0, grid - 2)
        first = row * grid + column
        block = first[..., None] + torch.tensor([0, 1, grid, grid + 1], device=logits.device)
        weights = probs.gather(-1, block.flatten(-2)).reshape(block.shape)  # (..., block, cell)
        pick = weights.sum(dim=-1).argmax(dim=-1)[..., None, None].expand(*best.shape, 1, 4)
        weights = weights.gather(-2, pick).squeeze(-2)
        cells = block.gather(-2, pick).squeeze(-2)
        return (weights[..., None] * centers[cells]).sum(dim=-2) / weights.sum(-1, keepdim=True)


# ---- 3D: positions relative to several roots -----------------------------------------------------


class MultiRootRegression(nn.Module):
    """3D joints relative to each of several roots, one separate branch a root (sec. 3.3).

    The branches have their own fully connected layer: branches that share it end as translates of
    one and the same pose, and averaging them gains nothing ("to break this symmetry").

    Args:
        in_features: length of the feature vector.
        num_joints: J.
        roots: indices of the roots, R of them; ``[0]`` is the paper's baseline.
        hidden: width of each branch's fully connected layer.
        dropout: of that layer.
    """

    others: Tensor
    slots: Tensor

    def __init__(
        self,
        in_features: int,
        num_joints: int,
        roots: Sequence[int],
        hidden: int = 2048,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if not roots or len(set(roots)) != len(roots):
            raise UsageError(f"roots are {list(roots)}; give one or more different joints")
        if not all(0 <= root < num_joints for root in roots):
            raise UsageError(f"roots are {list(roots)}; joints are numbered 0 to {num_joints - 1}")
        self.num_joints, self.roots = num_joints, tuple(roots)
        self.branches = nn.ModuleList()
        for _ in roots:
            out = nn.Linear(hidden, 3 * (num_joints - 1))
            _small_output(out)
            self.branches.append(nn.Sequential(fully_connected(in_features, hidden, dropout), out))
        others = [[j for j in range(num_joints) if j != root] for root in roots]
        # Where joint j of a whole pose stands among a branch's outputs; the root, last: a zero.
        slots = [
            [num_joints - 1 if j == root else row.index(j) for j in range(num_joints)]
            for root, row in zip(roots, others, strict=True)
        ]
        self.register_buffer("others", torch.tensor(others, device="cpu"), persistent=False)
        self.register_buffer("slots", torch.tensor(slots, device="cpu"), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """(N, F) features -> (N, R, J - 1, 3): the joints but the root, relative to the root."""
        return torch.stack(
            [branch(features).unflatten(-1, (-1, 3)) for branch in self.branches], dim=1
        )

    def targets(self, pose: Tensor) -> Tensor:
        """(N, J, 3) pose, any origin -> (N, R, J - 1, 3), J_j - J_r in the order of ``forward``."""
        return pose[:, self.others] - pose[:, list(self.roots), None]

    def pairs(self, valid: Tensor) -> Tensor:
        """(N, J) bool -> (N, R, J - 1) bool: both the joint and the root are valid."""
        return valid[:, self.others] & valid[:, list(self.roots), None]

    def loss(self, relative: Tensor, pose: Tensor, valid: Tensor) -> Tensor:
        """Squared distances (Eq. 4) summed over joints and roots (Eq. 6), mean over samples.

        Args:
            relative: (N, R, J - 1, 3), from ``forward``.
            pose: (N, J, 3) in the same unit, any origin; anything where not valid.
            valid: (N, J) bool.
        """
        pairs = self.pairs(valid)
        # The target, not the square, is masked: 0 * NaN is NaN in the gradient.
        target = torch.where(pairs[..., None], self.targets(pose), 0.0)
        squares = (relative.float() - target).square().sum(dim=-1)
        return masked_sample_mean(squares, pairs)

    def poses(self, relative: Tensor) -> Tensor:
        """(N, R, J - 1, 3) -> (N, R, J, 3): whole poses, each with its root at the origin."""
        whole = torch.cat([relative, torch.zeros_like(relative[:, :, :1])], dim=2)
        slots = self.slots[None, :, :, None].expand(len(whole), -1, -1, 3)
        return whole.gather(2, slots)

    def average(self, relative: Tensor) -> Tensor:
        """Eq. 7, sec. 3.3: the branches' poses, each moved to mean zero, averaged.

        Args:
            relative: (N, R, J - 1, 3), from ``forward``.

        Returns:
            (N, J, 3), mean zero over joints.
        """
        return self._centred(relative).mean(dim=1)

    def spread(self, relative: Tensor) -> Tensor:
        """Disagreement of the branches about their average: (N, R, J - 1, 3) -> (N, J).

        The standard deviation per coordinate; needs two or more roots.
        """
        return self._centred(relative).var(dim=1).mean(dim=-1).sqrt()

    def _centred(self, relative: Tensor) -> Tensor:
        poses = self.poses(relative.float())
        return poses - poses.mean(dim=2, keepdim=True)


# ---- trunks --------------------------------------------------------------------------------------


class TimmTrunk(nn.Module):
    """A timm model without its classifier; use :func:`timm_trunk`.

    Attributes:
        num_features: length of the output vector.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, in_chans: int, pool: int) -> None:
        super().__init__()
        self.model = model
        self.pool = pool
        self.num_features = 0
        config = cast(dict[str, Any], getattr(model, "pretrained_cfg", {}))
        mean = tuple(config.get("mean") or (0.485, 0.456, 0.406))
        std = tuple(config.get("std") or (0.229, 0.224, 0.225))
        if len(mean) != in_chans:
            mean, std = (0.5,) * in_chans, (0.25,) * in_chans
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> (N, num_features); normalises as the weights want it."""
        features: Tensor = self.model.forward_features((image - self.mean) / self.std)  # type: ignore[operator]
        maps = self._maps(features)
        return functional.adaptive_avg_pool2d(maps, self.pool).flatten(1)

    def _maps(self, features: Tensor) -> Tensor:
        """Channels-first maps from whatever layout the family uses."""
        channels = int(getattr(self.model, "num_features", features.shape[1]))
        if features.ndim == 3:  # tokens (N, L, C)
            tokens = features[:, int(getattr(self.model, "num_prefix_tokens", 0)) :]
            side = math.isqrt(tokens.shape[1])
            shape = (side, side) if side * side == tokens.shape[1] else (1, tokens.shape[1])
            return tokens.transpose(1, 2).reshape(len(tokens), -1, *shape)
        if features.ndim == 4 and features.shape[1] != channels == features.shape[3]:
            return features.permute(0, 3, 1, 2)
        return features.reshape(*features.shape[:2], *(features.shape[2:] or (1, 1)))


def timm_trunk(
    name: str,
    *,
    image_size: int,
    pretrained: bool = False,
    in_chans: int = 3,
    pool: int = 1,
) -> TimmTrunk:
    """Any timm image model as a trunk.

    Args:
        name: timm model name, with or without a weight tag.
        image_size: side of the square input in px; the feature length is measured with it.
        pretrained: load timm's weights (downloads them once).
        in_chans: input channels.
        pool: side of the grid that the last feature map is average-pooled to before it is
            flattened; 1 is global pooling, more keeps where things are in the image.

    Returns:
        A module from (N, C, H, W) in [0, 1] to (N, ``num_features``); it normalises inside.

    Raises:
        UsageError: timm has no model of that name, or it cannot take this image size.
        MethodError: the pretrained weights cannot be had.
    """
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise UsageError(suggest(name.split(".")[0], timm.list_models(), "timm model"))
    options: dict[str, Any] = {"pretrained": pretrained, "in_chans": in_chans, "num_classes": 0}
    try:
        try:  # models with position embeddings need the size when they are built
            model = timm.create_model(name, img_size=image_size, **options)
        except TypeError:
            model = timm.create_model(name, **options)
        trunk = TimmTrunk(model, in_chans, pool)
        training = trunk.training
        with torch.no_grad():
            device = next(model.parameters()).device
            probe = torch.zeros(1, in_chans, image_size, image_size, device=device)
            trunk.num_features = trunk.to(device).eval()(probe).shape[1]
    except Exception as error:  # timm, its hub and its models raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if pretrained:
            raise MethodError(f"timm model {name!r} with pretrained weights: {reason}") from error
        raise UsageError(
            f"timm model {name!r} with {image_size} px input: {reason}; "
            "give a size that it can take (a multiple of 32 suits most)"
        ) from error
    return trunk.train(training)
