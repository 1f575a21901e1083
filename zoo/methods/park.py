"""2D grid classification that feeds multi-root 3D regression.

Sungheon Park, Jihye Hwang, Nojun Kwak: "3D Human Pose Estimation Using Convolutional Neural
Networks with 2D Pose Information", ECCV workshops 2016, https://arxiv.org/abs/1608.03075.
Equations, sections and tables below are of its first version.

**In**: ``image`` (B, T, 3, 250, 250), one person; a 225 px part of it is seen, random in training,
the middle in evaluation. **Out**: ``pred_3d`` mm, ``pred_2d`` px of the 250 px image, and
``std_3d`` where there is more than one root. Frames are independent: T is folded into the batch.

The rows of Table 2 are constructor arguments:

=====================  ==================================================
Baseline CNN           ``Park(link_2d=False, roots=["pelvis"])``
Multi-reg              ``Park(link_2d=False)``
2D-cls                 ``Park(roots=["pelvis"])``
Multi-reg + 2D-cls     ``Park()``
=====================  ==================================================

**Choices where the paper is silent or has two readings**

* Padding is 0 in the first two convolutions, 1 in the others, and pooling rounds up: this gives
  ZFNet's 110-55-26-13-6. Each convolution is followed by batch norm and ReLU. Layers before batch
  norm have no bias. Output layers are plain linear, though the text puts batch norm on all layers.
* Soft labels: Eq. 2 (``"radius"``) and its text, "four nearest" (``"nearest4"``), differ.
* 2D probabilities join the image features directly (``probs_fc=0``, the first version) or through a
  fully connected layer (``probs_fc=2048``, the revised version). Whether 3D errors reach the 2D
  layers that way is ``detach_probs``; by default they do ("trained end-to-end").
* The six roots of Figure 3(b) are pelvis, knees, thorax and elbows: each joint but the top of the
  head is one of them or a neighbour. Torso bones: pelvis-spine-thorax, hips and shoulders.
* The loss is a mean over the batch of plain squares (no 1/2). Weight decay spares biases and batch
  norm. Initial weights: He, and ZFNet's N(0, 0.01^2) for output layers.
* A joint outside the 225 px has no 2D loss. A pose with missing joints is centred on, and scaled
  by, the joints that are there, so that their mean square is that of a whole pose of norm 1.

**Differences from the paper**: one model for all actions, and square boxes where it crops by the
data set's segmentation; both belong to the data. PCA colour noise is the data module's
``pca_color``.

**Source**: own work from the paper; no code was available.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from zoo.base import InputSpec, Phase, PoseModule
from zoo.batch import PoseBatch, Prediction
from zoo.errors import DataError, UsageError, suggest
from zoo.layers import (
    GridClassification,
    MultiRootRegression,
    SoftLabels,
    fully_connected,
    timm_trunk,
)
from zoo.skeleton import get_skeleton

__all__ = ["Park"]

ROOTS = ("pelvis", "r_knee", "l_knee", "thorax", "l_elbow", "r_elbow")
"""The six roots (sec. 3.3; Figure 3(b) is described in words only)."""

TORSO_BONES = (
    ("pelvis", "spine"),
    ("spine", "thorax"),
    ("pelvis", "r_hip"),
    ("pelvis", "l_hip"),
    ("thorax", "l_shoulder"),
    ("thorax", "r_shoulder"),
)
"""Bones that give the scale (sec. 4): "length of joints in the torso which is stable"."""

ADULT_TORSO_MM = (235.0, 255.0, 130.0, 130.0, 150.0, 150.0)
"""Round lengths of an adult's torso bones: the scale of a model that has seen no training pose."""


# ---- the network ---------------------------------------------------------------------------------


class ParkOutput(NamedTuple):
    """What the network says; N is batch times frames.

    Attributes:
        logits_2d: (N, J, G * G), one softmax a joint.
        relative_3d: (N, R, J - 1, 3), joints relative to each root, in shapes of unit norm.
    """

    logits_2d: Tensor
    relative_3d: Tensor


class Trunk(nn.Module):
    """Five convolutions with ZFNet's kernels and fewer maps (Figure 1).

    Attributes:
        map_sizes: side in px after each convolution and pooling.
        num_features: length of the flat output.
    """

    def __init__(self, size: int, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        if len(channels) != 5 or len(strides) != 2:
            raise UsageError(
                f"park: channels {list(channels)} and strides {list(strides)}; "
                "five numbers of channels and the strides of the first two convolutions are needed"
            )
        kernels = (7, 5, 3, 3, 3)
        layers: list[nn.Module] = []
        self.map_sizes: list[int] = []
        side, width = size, 3
        for i, (kernel, channel) in enumerate(zip(kernels, channels, strict=True)):
            stride, pad = (strides[i], 0) if i < 2 else (1, 1)
            conv = nn.Conv2d(width, channel, kernel, stride, pad, bias=False)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            layers += [conv, nn.BatchNorm2d(channel), nn.ReLU(inplace=True)]
            side, width = (side + 2 * pad - kernel) // stride + 1, channel
            self.map_sizes.append(side)
            if i in (0, 1, 4):
                layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))  # Caffe rounds up
                side = math.ceil((side - 3) / 2) + 1
                self.map_sizes.append(side)
            if side < 1:
                raise UsageError(f"park: crop_size {size} is too small for the five convolutions")
        self.layers = nn.Sequential(*layers)
        self.num_features = channels[-1] * side * side

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> (N, num_features)."""
        # Centred only: batch norm after the first convolution sets the scale.
        return self.layers(image - 0.5).flatten(1)


class ParkNetwork(nn.Module):
    """Figures 1 and 2: trunk, 2D branch, 3D branch, and the link between them.

    Args:
        trunk: module from (N, 3, S, S) to (N, ``num_features``).
        classifier: builds the 2D output layer; its input has length ``fc``.
        roots: joint indices.
        fc: width of the fully connected layers.
        dropout: after every fully connected layer.
        link_2d: feed the 2D probabilities to the 3D branches (sec. 3.2).
        probs_fc: width of a layer between the probabilities and the concatenation; 0 for none.
        detach_probs: no gradient from the 3D loss into the 2D branch.
        probs_gain: factor of the probabilities, which are small beside normalised features.
    """

    def __init__(
        self,
        trunk: nn.Module,
        classifier: GridClassification,
        roots: Sequence[int],
        fc: int,
        dropout: float,
        link_2d: bool,
        probs_fc: int,
        detach_probs: bool,
        probs_gain: float,
    ) -> None:
        super().__init__()
        num_features = cast(int, trunk.num_features)
        self.trunk = trunk
        self.fc1_2d = fully_connected(num_features, fc, dropout)
        self.fc2_2d = fully_connected(fc, fc, dropout)
        self.classifier = classifier
        self.fc1_3d = fully_connected(num_features, fc, dropout)
        self.link_2d, self.detach_probs, self.probs_gain = link_2d, detach_probs, probs_gain
        self.fc_probs_2d: nn.Module = nn.Identity()
        width = fc
        if link_2d:
            num_probs = classifier.num_joints * classifier.grid**2
            if probs_fc:
                self.fc_probs_2d = fully_connected(num_probs, probs_fc, dropout)
            width += probs_fc or num_probs
        self.regressor = MultiRootRegression(width, classifier.num_joints, roots, fc, dropout)

    def forward(self, image: Tensor) -> ParkOutput:
        """(N, 3, S, S) in [0, 1] -> outputs."""
        features = self.trunk(image)
        logits = self.classifier(self.fc2_2d(self.fc1_2d(features)))  # (N, J, G * G)
        features_3d = self.fc1_3d(features)
        if self.link_2d:
            probs = logits.softmax(dim=-1).flatten(1) * self.probs_gain
            if self.detach_probs:
                probs = probs.detach()
            features_3d = torch.cat([features_3d, self.fc_probs_2d(probs)], dim=1)  # fc_2D-3D
        return ParkOutput(logits, self.regressor(features_3d))


# ---- crops, targets and scale --------------------------------------------------------------------


def crop_batch(batch: PoseBatch, size: int, random: bool) -> tuple[PoseBatch, Tensor]:
    """Cuts a square out of the images; 2D joints and camera move with it, 3D stays (sec. 4).

    Args:
        batch: with ``image`` (B, T, 3, H, W).
        size: side of the square in px.
        random: anywhere, one draw a sample and the same for its frames; else the middle.

    Returns:
        The batch in px of the cut, and (B, 2) px, the position of its corner in the old image.
    """
    image = batch["image"]
    samples, (height, width) = image.shape[0], image.shape[-2:]
    spare = torch.tensor([width - size, height - size], device=image.device)
    if random:
        draw = torch.rand(samples, 2, device=image.device)
        # The product can round up to the bound itself.
        offset = torch.minimum((draw * (spare + 1)).long(), spare)
        span = torch.arange(size, device=image.device)
        rows = (offset[:, 1, None] + span)[:, :, None]  # (B, S, 1)
        columns = (offset[:, 0, None] + span)[:, None, :]  # (B, 1, S)
        index = torch.arange(samples, device=image.device)[:, None, None]
        image = image[index, :, :, rows, columns].permute(0, 3, 4, 1, 2)  # (B, T, 3, S, S)
    else:
        x, y = (width - size) // 2, (height - size) // 2
        offset = torch.tensor([[x, y]], device=image.device).expand(samples, 2)
        image = image[..., y : y + size, x : x + size]
    cut = cast(PoseBatch, {**batch, "image": image})
    shift = offset.to(torch.float32)
    if "joints_2d" in batch:
        cut["joints_2d"] = batch["joints_2d"] - shift[:, None, None]
    if "intrinsics" in batch:
        moved = torch.zeros_like(batch["intrinsics"])
        moved[..., :2, 2] = shift[:, None]
        cut["intrinsics"] = batch["intrinsics"] - moved
    if "crop_to_image" in batch:
        affine = batch["crop_to_image"]
        corner = affine[..., :2] @ shift[:, None, :, None] + affine[..., 2:]
        cut["crop_to_image"] = torch.cat([affine[..., :2], corner], dim=-1)
    return cut, offset


def unit_shape(pose: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Targets of the 3D branches (sec. 4): mean zero over joints, Frobenius norm 1.

    With missing joints, mean and norm are those of the joints that are there, and the norm is taken
    as the same share of a whole pose: the shape gets norm sqrt(valid / J), so that its joints have
    about the size that they have in the whole shape.

    Args:
        pose: (N, J, 3) in any unit and origin; anything where not valid.
        valid: (N, J) bool.

    Returns:
        (N, J, 3) shapes, zero where not valid, and (N, J) bool: the joints that have a target; none
        in a pose of fewer than two joints or of no extent.
    """
    mask = valid[..., None]
    count = valid.sum(dim=1).clamp(min=1)[:, None, None]
    known = torch.where(mask, pose, 0.0)
    shape = torch.where(mask, known - known.sum(dim=1, keepdim=True) / count, 0.0)
    norm = shape.square().sum(dim=(1, 2), keepdim=True).sqrt()
    usable = norm > 1e-6
    shape = shape / torch.where(usable, norm, 1.0) * (count / pose.shape[1]).sqrt()
    return shape, valid & usable[:, 0]


def bone_lengths(pose: Tensor, bones: Tensor) -> Tensor:
    """(..., J, 3) and (K, 2) joint pairs -> (..., K) lengths in the unit of the pose."""
    return (pose[..., bones[:, 0], :] - pose[..., bones[:, 1], :]).norm(dim=-1)


# ---- the method ----------------------------------------------------------------------------------


class Park(PoseModule):
    """Park, Hwang, Kwak 2016; defaults are the paper's full model, "Multi-reg+2D-cls" of Table 2.

    Args:
        image_size: side of ``image`` in px.
        crop_size: side of the part of it that the network sees.
        channels: of the five convolutions.
        strides: of the first two convolutions; the others have 1. A small image wants less.
        fc: width of the fully connected layers.
        grid: cells along a side of the 2D grid, N_g.
        roots: joint names or indices, N_r of them.
        link_2d: feed the 2D probabilities to the 3D branches (sec. 3.2).
        probs_fc: width of a fully connected layer on the probabilities; 0 for none.
        detach_probs: keep the 3D loss out of the 2D branch.
        probs_gain: factor of the probabilities where they enter the 3D branches.
        soft_labels: cells with a 2D target: ``radius`` (Eq. 2), ``nearest4`` (its text) or
            ``one_hot``.
        dropout: after every fully connected layer.
        lambda_2d: weight of the 2D loss in Eq. 6.
        lambda_2d_late: the same from epoch ``lambda_switch`` on.
        lambda_switch: epoch, counted from 0.
        lambda_3d: weight of the 3D loss in Eq. 6.
        epochs: length of the training.
        lr: initial learning rate. The sum of squares of Eq. 6 bounds it: with momentum m and the
            output layers' inputs about as batch norm and ReLU leave them, it must stay below about
            (1 + m) / (0.16 * lambda_3d * fc), which is 0.0116 for the paper's sizes.
        lr_halve_every: the rate is halved after this many epochs, again and again.
        momentum: of SGD.
        weight_decay: on weights, not on biases and batch norm.
        optimizer: ``sgd`` as in the paper, or ``adamw``, which transformer backbones want.
        backbone: timm model instead of the five convolutions; ``channels`` and ``strides`` are then
            unused.
        backbone_pretrained: start from timm's weights.
        backbone_pool: the backbone's last maps are averaged to this many cells along a side.
    """

    torso_mm: Tensor
    torso_bones: Tensor

    def __init__(
        self,
        image_size: int = 250,
        crop_size: int = 225,
        channels: Sequence[int] = (64, 128, 192, 192, 192),
        strides: Sequence[int] = (2, 2),
        fc: int = 2048,
        grid: int = 16,
        roots: Sequence[str | int] = ROOTS,
        link_2d: bool = True,
        probs_fc: int = 0,
        detach_probs: bool = False,
        probs_gain: float = 1.0,
        soft_labels: SoftLabels = "radius",
        dropout: float = 0.3,
        lambda_2d: float = 0.1,
        lambda_2d_late: float = 0.01,
        lambda_switch: int = 16,
        lambda_3d: float = 0.5,
        epochs: int = 28,
        lr: float = 0.01,
        lr_halve_every: int = 4,
        momentum: float = 0.9,
        weight_decay: float = 0.001,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        backbone: str | None = None,
        backbone_pretrained: bool = False,
        backbone_pool: int = 4,
    ) -> None:
        super().__init__()
        # Lists, not tuples, in the saved hyper-parameters: they survive JSON and YAML unchanged.
        channels, strides, roots = list(channels), list(strides), list(roots)
        self.save_hyperparameters()
        if crop_size > image_size:
            raise UsageError(f"park: crop_size {crop_size} is larger than image_size {image_size}")
        if optimizer not in ("sgd", "adamw"):
            raise UsageError(suggest(str(optimizer), ("sgd", "adamw"), "park optimizer"))
        skeleton = get_skeleton(self.skeleton_name)
        trunk: nn.Module
        if backbone is None:
            trunk = Trunk(crop_size, channels, strides)
        else:
            trunk = timm_trunk(
                backbone,
                image_size=crop_size,
                pretrained=backbone_pretrained,
                pool=backbone_pool,
            )
        self.crop_size = crop_size
        self.network = ParkNetwork(
            trunk,
            GridClassification(fc, len(skeleton), grid, crop_size, soft_labels),
            [_joint_index(root) for root in roots],
            fc,
            dropout,
            link_2d,
            probs_fc,
            detach_probs,
            probs_gain,
        )
        bones = [(skeleton.index(a), skeleton.index(b)) for a, b in TORSO_BONES]
        self.register_buffer("torso_bones", torch.tensor(bones), persistent=False)
        self.register_buffer("torso_mm", torch.tensor(ADULT_TORSO_MM))

    @property
    def input_spec(self) -> InputSpec:
        """One image, cut with a margin of a quarter: the person fits every random crop."""
        return InputSpec("image", self.hparams["image_size"], frames=1, crop_scale=1.25)

    def phases(self) -> tuple[Phase, ...]:
        """One stage, from scratch (sec. 4)."""
        return (Phase("train", epochs=self.hparams["epochs"]),)

    @property
    def lambda_2d(self) -> float:
        """Weight of the 2D loss in the current epoch: "decreased to 0.01 after 16 epochs"."""
        late = self.current_epoch >= self.hparams["lambda_switch"]
        return float(self.hparams["lambda_2d_late" if late else "lambda_2d"])

    def forward(self, batch: PoseBatch) -> Prediction:
        """Averages the branches (Eq. 7), recovers the scale, reads the grid out.

        Args:
            batch: ``image``; the crop is random in training mode, else the middle.

        Returns:
            ``pred_3d`` mm, pelvis at the origin; ``pred_2d`` px of ``image``; with two or more
            roots ``std_3d`` mm, the spread of the branches' poses about Eq. 7 (they share a trunk
            and err together: good to rank joints and frames, too small as a deviation).
        """
        cut, offset = self._crop(batch)
        frames = cut["image"].shape[:2]
        output = self.network(cut["image"].flatten(0, 1))
        pose = self.network.regressor.average(output.relative_3d)
        scale = self._scale(pose)  # (N, 1, 1)
        pred_3d = (pose - pose[:, :1]) * scale
        points = self.network.classifier.decode(output.logits_2d).reshape(*frames, -1, 2)
        prediction = Prediction(
            pred_3d=pred_3d.reshape(*frames, -1, 3), pred_2d=points + offset[:, None, None]
        )
        if len(self.network.regressor.roots) > 1:
            spread = self.network.regressor.spread(output.relative_3d) * scale[..., 0]
            prediction["std_3d"] = spread.reshape(*frames, -1)
        return prediction

    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        """Eq. 6, with the 2D weight of the current epoch.

        Args:
            batch: ``image``; ``joints_2d`` and ``joints_3d`` with their ``valid`` masks. A sample
                or a joint without a label adds nothing to that label's loss.

        Returns:
            ``loss``, ``loss_2d`` (sum over joints) and ``loss_3d`` (sum over joints and roots).
        """
        samples = batch["image"].shape[0] * batch["image"].shape[1] if "image" in batch else 0
        if self.training and samples == 1:
            raise UsageError(
                "park: a training batch of one image; batch norm needs two, raise data.batch_size"
            )
        cut, _ = self._crop(batch)
        output = self.network(cut["image"].flatten(0, 1))
        loss_2d = self.network.classifier.loss(
            output.logits_2d, cut["joints_2d"].flatten(0, 1), cut["valid_2d"].flatten(0, 1)
        )
        shape, valid = unit_shape(cut["joints_3d"].flatten(0, 1), cut["valid_3d"].flatten(0, 1))
        loss_3d = self.network.regressor.loss(output.relative_3d, shape, valid)
        loss = self.lambda_2d * loss_2d + self.hparams["lambda_3d"] * loss_3d
        return {"loss": loss, "loss_2d": loss_2d, "loss_3d": loss_3d}

    def fit_statistics(self, poses: PoseBatch) -> None:
        """Mean torso bone lengths of the training poses, in mm (sec. 4).

        Raises:
            DataError: a torso bone is in none of the poses.
        """
        pose = poses["joints_3d"].flatten(0, 1)
        valid = poses["valid_3d"].flatten(0, 1)
        bones = self.torso_bones.to(pose.device)
        known = valid[:, bones[:, 0]] & valid[:, bones[:, 1]]
        if not bool(known.any(dim=0).all()):
            names = ["-".join(b) for b, k in zip(TORSO_BONES, known.any(0), strict=True) if not k]
            raise DataError(
                f"park: no training pose has the torso bones {', '.join(names)}; "
                "the scale of predictions is theirs: give training data with these 3D joints"
            )
        lengths = torch.where(known, bone_lengths(pose.double(), bones), 0.0)
        self.torso_mm.copy_(lengths.sum(dim=0) / known.sum(dim=0))
        self.statistics_fitted.fill_(True)

    def configure_optimizers(self) -> Any:
        """SGD with momentum, the rate halved every few epochs (sec. 4)."""
        hparams = self.hparams
        lr = hparams["lr"] if self.phase is None or self.phase.lr is None else self.phase.lr
        weights = [p for p in self.parameters() if p.ndim > 1]
        rest = [p for p in self.parameters() if p.ndim <= 1]
        groups = [
            {"params": weights, "weight_decay": hparams["weight_decay"]},
            {"params": rest, "weight_decay": 0.0},
        ]
        optimizer: torch.optim.Optimizer
        if hparams["optimizer"] == "sgd":
            optimizer = torch.optim.SGD(groups, lr=lr, momentum=hparams["momentum"])
        else:
            optimizer = torch.optim.AdamW(groups, lr=lr)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, hparams["lr_halve_every"], 0.5)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "epoch"},
        }

    @classmethod
    def tiny(cls) -> Park:
        """Every mechanism on 54 px images."""
        return cls(
            image_size=54, crop_size=49, channels=(4, 8, 8, 8, 8), strides=(2, 1), fc=16, grid=4
        )

    def _crop(self, batch: PoseBatch) -> tuple[PoseBatch, Tensor]:
        size = self.hparams["image_size"]
        if "image" not in batch:
            raise DataError("park: the batch has no 'image'; this method needs pictures")
        if batch["image"].shape[-2:] != (size, size):
            height, width = batch["image"].shape[-2:]
            raise DataError(f"park: images are {width} x {height} px; they must be {size} x {size}")
        return crop_batch(batch, self.crop_size, random=self.training)

    def _scale(self, pose: Tensor) -> Tensor:
        """Sec. 4: (N, J, 3) -> (N, 1, 1) mm a unit that makes the torso as long as in training.

        A ratio of sums, the least sensitive to one short bone.
        """
        torso = bone_lengths(pose, self.torso_bones).sum(dim=-1)
        return (self.torso_mm.sum() / torso.clamp(min=1e-9))[:, None, None]


def _joint_index(joint: str | int) -> int:
    skeleton = get_skeleton(Park.skeleton_name)
    if isinstance(joint, int):
        if not 0 <= joint < len(skeleton):
            raise UsageError(f"park: root {joint}; joints are numbered 0 to {len(skeleton) - 1}")
        return joint
    if joint not in skeleton.joints:
        raise UsageError("park: " + suggest(joint, skeleton.joints, "joint"))
    return skeleton.index(joint)
