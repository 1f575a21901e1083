"""Kernel dependency estimation: the structured regression that the paper compares with (sec. 5.5).

After Ionescu, Li, Sminchisescu, "Latent Structured Models for Human Pose Estimation", ICCV 2011 and
Ionescu et al., "Human3.6M", PAMI 2014, as Katircioglu et al. 2017 use it (Table 9): random Fourier
features Phi(y) stand for a Gaussian kernel on poses; ridge regression predicts them from image
features, HOG or those of CNN-Direct; the pose is the pre-image, argmin_y ||Phi(y) - W phi(x)||^2.

**Stages**: 2D detection and CNN-Direct as in :class:`~zoo.methods.latent.method.LatentPose`, then
``kde``. There W is not trained by gradients: the first epoch measures the mean and scale of the
image features, every further one adds to the normal equations, and their solution is W. The
penalty is the one with the smallest error on the batches that were held out (every eighth).

**Choices where the papers are silent**: 2000 Fourier features on both sides; the width of the pose
kernel is the median distance of training poses, that of the image kernel the root mean square
distance of features; the pre-image is found by Levenberg-Marquardt steps (the objective is a sum of
squares), from the training pose with the largest inner product. HOG has 9 orientations, cells of
8 px and blocks of 2 x 2 cells. A pose with missing joints has the mean pose in the gaps and counts
by the share of it that is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from zoo.base import InputSpec, Phase
from zoo.batch import PoseBatch, Prediction
from zoo.errors import UsageError, suggest
from zoo.layers import TargetLinear, masked_sample_mean
from zoo.methods.latent.common import LatentModule
from zoo.methods.latent.loss import pose_loss
from zoo.methods.latent.network import Detector, ShallowTrunk
from zoo.methods.latent.ridge import RidgeFit
from zoo.skeleton import get_skeleton

__all__ = ["LatentKDE", "fourier_features", "hog_features", "pre_image"]

FEATURES = ("fc3", "conv3", "hog")
INPUT_MAPS = ("rbf", "linear", "skewed_chi2")


def fourier_features(x: Tensor, weights: Tensor, offsets: Tensor) -> Tensor:
    """sqrt(2/D) cos(x W + b), whose inner products approach a shift-invariant kernel.

    Args:
        x: (..., F).
        weights: (F, D), drawn from the kernel's spectrum: N(0, 1/s^2) for exp(-d^2 / 2 s^2).
        offsets: (D,), uniform in [0, 2 pi).

    Returns:
        (..., D).
    """
    return math.sqrt(2 / len(offsets)) * torch.cos(x @ weights + offsets)


def pre_image(
    target: Tensor, start: Tensor, weights: Tensor, offsets: Tensor, steps: int = 20
) -> Tensor:
    """argmin_y ||Phi(y) - target||^2 near ``start``, by Levenberg-Marquardt.

    Args:
        target: (N, D).
        start: (N, P).
        weights: (P, D) of Phi.
        offsets: (D,) of Phi.
        steps: tried for every sample; one that does not help is not taken.

    Returns:
        (N, P); a sample's result does not depend on the others.
    """
    y, scale = start, math.sqrt(2 / len(offsets))
    error = (fourier_features(y, weights, offsets) - target).square().sum(dim=1)
    eye = torch.eye(y.shape[1], device=y.device, dtype=y.dtype)
    # J^T J is about W W^T / D: damping is measured by its mean diagonal.
    unit = weights.square().sum() / (len(offsets) * y.shape[1]) + 1e-20
    damping = torch.full_like(error, 0.01)
    for _ in range(steps):
        angle = y @ weights + offsets
        residual = scale * torch.cos(angle) - target
        jacobian = (-scale * torch.sin(angle))[:, None, :] * weights  # (N, P, D)
        normal = jacobian @ jacobian.mT + (damping * unit)[:, None, None] * eye
        gradient = torch.einsum("npd,nd->np", jacobian, residual)
        moved = y - torch.linalg.solve(normal, gradient)
        new = (fourier_features(moved, weights, offsets) - target).square().sum(dim=1)
        better = new < error
        y = torch.where(better[:, None], moved, y)
        error = torch.where(better, new, error)
        damping = torch.where(better, damping / 3, damping * 4).clamp(min=1e-4)
    return y


def hog_features(images: Tensor) -> Tensor:
    """Histograms of oriented gradients by scikit-image: (N, 3, S, S) in [0, 1] -> (N, F).

    Raises:
        UsageError: scikit-image is not installed.
    """
    try:
        from skimage.feature import hog
    except ImportError as error:
        raise UsageError(
            "latent-kde with features 'hog' needs scikit-image: pip install scikit-image"
        ) from error
    pictures = images.detach().float().cpu().permute(0, 2, 3, 1).numpy()
    rows = [
        hog(p, 9, (8, 8), (2, 2), block_norm="L2-Hys", transform_sqrt=True, channel_axis=-1)
        for p in pictures
    ]
    return torch.from_numpy(np.stack(rows)).to(images)


class LatentKDE(LatentModule):
    """Kernel dependency estimation on images; defaults are "FC3 Feat. + KDE" of Table 9.

    Args:
        features: of the image: ``fc3`` or ``conv3`` of CNN-Direct, or ``hog`` (scikit-image).
        image_size: side of ``image`` in px.
        crop_size: side of the part of it that is seen.
        channels: of the three convolutions of CNN-Direct.
        fc: widths of its fully connected layers.
        dropout: after each of them.
        input_map: of the features: ``rbf`` (Gaussian kernel), ``skewed_chi2`` (for histograms, by
            scikit-learn), ``linear``.
        input_dim: number of Fourier features of the input map.
        input_width: width of the Gaussian kernel on features, in root mean square distances.
        output_dim: number of Fourier features of the poses, D.
        output_width: width of the kernel on poses, in median distances.
        candidates: training poses that a pre-image may start from.
        pre_image_steps: Levenberg-Marquardt steps.
        ridges: penalties to choose from, relative to the mean diagonal of the normal equations.
        unit_mm: unit that CNN-Direct is trained in.
        detect_epochs: length of the 2D detection stage.
        direct_epochs: of the training of CNN-Direct.
        kde_epochs: passes over the training set for the regression; the first one only measures.
        lr: learning rate of Adam.
        base_weights: checkpoint whose CNN is taken; the stages before ``kde`` are then left out.
    """

    input_weights: Tensor
    input_offsets: Tensor
    input_mean: Tensor
    input_scale: Tensor
    output_weights: Tensor
    output_offsets: Tensor
    candidate_poses: Tensor
    regressor_ready: Tensor

    def __init__(
        self,
        features: Literal["fc3", "conv3", "hog"] = "fc3",
        image_size: int = 128,
        crop_size: int = 112,
        channels: Sequence[int] = (32, 64, 64),
        fc: Sequence[int] = (1024, 2048, 4096),
        dropout: float = 0.5,
        input_map: Literal["rbf", "linear", "skewed_chi2"] = "rbf",
        input_dim: int = 2000,
        input_width: float = 1.0,
        output_dim: int = 2000,
        output_width: float = 1.0,
        candidates: int = 1000,
        pre_image_steps: int = 20,
        ridges: Sequence[float] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0),
        unit_mm: float = 1.0,
        detect_epochs: int = 10,
        direct_epochs: int = 80,
        kde_epochs: int = 2,
        lr: float = 0.001,
        base_weights: str = "",
    ) -> None:
        super().__init__()
        channels, fc, ridges = list(channels), list(fc), list(ridges)
        self.save_hyperparameters()
        self._check_sizes()
        if features not in FEATURES:
            raise UsageError(suggest(str(features), FEATURES, "latent-kde features"))
        if input_map not in INPUT_MAPS:
            raise UsageError(suggest(str(input_map), INPUT_MAPS, "latent-kde input_map"))
        if kde_epochs < 2:
            raise UsageError(
                f"latent-kde: kde_epochs is {kde_epochs}; the first epoch measures the features, "
                "so 2 or more are needed"
            )
        if not ridges or candidates < 1:
            raise UsageError("latent-kde: ridges and candidates must not be empty")
        joints = len(get_skeleton(self.skeleton_name))
        pose_size = 3 * joints
        self.trunk: ShallowTrunk | None = None
        if features == "hog":
            cells = crop_size // 8 - 1
            if cells < 1:
                raise UsageError(f"latent-kde: crop_size {crop_size} is too small for HOG blocks")
            width = cells * cells * 4 * 9
        else:
            self.trunk = ShallowTrunk(3, crop_size, channels, fc, dropout)
            self.detector = Detector(self.trunk.map_channels, joints, crop_size)
            self.regressor = nn.Sequential(TargetLinear(self.trunk.num_features, pose_size))
            width = self.trunk.num_features if features == "fc3" else self.trunk.map_features
        mapped = width if input_map == "linear" else input_dim
        drawn = (0, 0) if input_map == "linear" else (width, input_dim)
        self.register_buffer("input_weights", torch.zeros(drawn))
        self.register_buffer("input_offsets", torch.zeros(drawn[1]))
        self.register_buffer("input_mean", torch.zeros(width))
        self.register_buffer("input_scale", torch.tensor(1.0))
        self.register_buffer("output_weights", torch.zeros(pose_size, output_dim))
        self.register_buffer("output_offsets", torch.zeros(output_dim))
        self.register_buffer("candidate_poses", torch.zeros(candidates, pose_size))
        # The last column is a constant: features need not have mean zero.
        self.regression = nn.Linear(mapped + 1, output_dim, bias=False)
        nn.init.zeros_(self.regression.weight)
        self.register_buffer("regressor_ready", torch.tensor(False))
        self.ridge_fit = RidgeFit(ridges)  # no module: its sums are no weights
        self._last: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def input_spec(self) -> InputSpec:
        """One image."""
        return InputSpec("image", self.hparams["image_size"], frames=1, crop_scale=1.25)

    def phases(self) -> tuple[Phase, ...]:
        """Detection and CNN-Direct, unless given or not needed, then the regression."""
        h, stages = self.hparams, []
        if self.trunk is not None and not h["base_weights"]:
            cnn = ("trunk.", "regressor.")
            stages = [
                Phase("detect", h["detect_epochs"], ("trunk.convs.", "detector."),
                      monitor="val/detect_loss"),
                Phase("direct", h["direct_epochs"], cnn, monitor="val/direct_loss"),
            ]  # fmt: skip
        stages.append(Phase("kde", h["kde_epochs"], ("regression.",)))
        return tuple(stage for stage in stages if stage.epochs > 0)

    # ---- the two maps and the way back ----------------------------------------------------------

    def _features(self, batch: PoseBatch) -> Tensor:
        """(N, F) image features."""
        maps, _ = self._maps(batch)
        if self.trunk is None:
            if maps.is_meta:
                return maps.new_empty(len(maps), len(self.input_mean))
            return hog_features(maps)
        if self.hparams["features"] == "conv3":
            return self.trunk.maps(maps).flatten(1)
        return self.trunk(maps)

    def _map_input(self, features: Tensor) -> Tensor:
        """(N, F) -> (N, D' + 1), phi(x) and a one."""
        kind = self.hparams["input_map"]
        if kind == "skewed_chi2":
            # All features are histograms or follow a ReLU; 1 is scikit-learn's skewedness.
            logs = torch.log(features.clamp(min=0) / self.input_scale + 1.0)
            phi = fourier_features(logs, self.input_weights, self.input_offsets)
        else:
            phi = (features - self.input_mean) / self.input_scale
            if kind == "rbf":
                phi = fourier_features(phi, self.input_weights, self.input_offsets)
        return torch.cat([phi, torch.ones_like(phi[:, :1])], dim=1)

    def embed(self, pose: Tensor) -> Tensor:
        """Phi(y): (N, P) poses in units -> (N, D)."""
        return fourier_features(pose, self.output_weights, self.output_offsets)

    def forward(self, batch: PoseBatch) -> Prediction:
        """The pre-image of the predicted pose features.

        Args:
            batch: ``image``; the crop is random in training mode, else the middle.

        Returns:
            ``pred_3d`` mm, pelvis at the origin.
        """
        target = self.regression(self._map_input(self._features(batch)))
        best = (target @ self.embed(self.candidate_poses).T).argmax(dim=1)
        pose = pre_image(
            target, self.candidate_poses[best], self.output_weights, self.output_offsets,
            self.hparams["pre_image_steps"],
        )  # fmt: skip
        samples, frames = batch["image"].shape[:2]
        return Prediction(pred_3d=self._to_mm(pose).reshape(samples, frames, -1, 3))

    # ---- fitting --------------------------------------------------------------------------------

    def fit_statistics(self, poses: PoseBatch) -> None:
        """Mean pose, kernel width and start poses; draws the Fourier features, by a fixed seed."""
        filled, known = self._fit_mean(poses)
        whole = filled[known.all(dim=1)]
        if len(whole) == 0:
            whole = filled
        count = len(self.candidate_poses)
        pick = torch.arange(count, device=whole.device) * len(whole) // count
        chosen = whole[pick].float()
        self.candidate_poses.copy_(chosen)
        probe = whole[:: max(1, len(whole) // 500)]
        distance = torch.pdist(probe)
        median = float(distance.median()) if len(distance) else 1.0
        width = max(median, 1e-6) * self.hparams["output_width"]
        rng = torch.Generator().manual_seed(0)
        shape = self.output_weights.shape
        self.output_weights.copy_(torch.randn(shape, generator=rng) / width)
        self.output_offsets.copy_(2 * math.pi * torch.rand(shape[1], generator=rng))
        kind, drawn = self.hparams["input_map"], self.input_weights.shape
        if kind == "rbf":
            self.input_weights.copy_(
                torch.randn(drawn, generator=rng) / self.hparams["input_width"]
            )
            self.input_offsets.copy_(2 * math.pi * torch.rand(drawn[1], generator=rng))
        elif kind == "skewed_chi2":
            weights, offsets = _skewed_chi2(*drawn)
            self.input_weights.copy_(weights)
            self.input_offsets.copy_(offsets)
        self.statistics_fitted.fill_(True)

    def _take_weights(self) -> None:
        if self.hparams["base_weights"] and self.trunk is not None:
            self._take(self.hparams["base_weights"], ("trunk.",))

    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        """The loss of the running phase; outside a training the squared error of Phi(y).

        Args:
            batch: ``image``, ``joints_3d``, ``valid_3d``; in the 2D stage the 2D joints.
        """
        stage = "kde" if self.phase is None else self.phase.name
        if stage == "detect":
            assert self.trunk is not None
            maps, corner = self._maps(batch)
            points = (batch["joints_2d"] - corner[:, None, None]).flatten(0, 1)
            valid = batch["valid_2d"].flatten(0, 1)
            return {"loss": self.detector.loss(self.trunk.maps(maps), points, valid)}
        target, known = self._targets(batch)
        if stage == "direct":
            assert self.trunk is not None
            maps, _ = self._maps(batch)
            return {"loss": pose_loss(self.regressor(self.trunk(maps)), target, known)}
        with torch.no_grad():
            features = self._features(batch)
        weight = known.float().mean(dim=1)
        embedded = self.embed(target)
        self._last = (features, embedded, weight)
        errors = (self.regression(self._map_input(features)) - embedded).square().sum(dim=1)
        return {"loss": masked_sample_mean((errors * weight)[:, None], known.any(1, keepdim=True))}

    def training_step(self, batch: PoseBatch, batch_idx: int) -> Tensor:
        """The usual step; in ``kde`` also adds the batch, of all processes, to the sums."""
        loss = super().training_step(batch, batch_idx)
        if self.phase is not None and self.phase.name == "kde" and self._last is not None:
            # Every process sums everything, so that all solve the same equations.
            features, target, weight = (
                cast(Tensor, self.all_gather(part)).reshape(-1, *part.shape[1:])
                for part in self._last
            )
            self._last = None
            with torch.no_grad():
                if self.ridge_fit.begin_pass(self.current_epoch):
                    mean, scale = self.ridge_fit.moments()
                    self.input_mean.copy_(mean)
                    self.input_scale.copy_(scale)
                if self.ridge_fit.measuring:
                    self.ridge_fit.measure(features, weight)
                else:
                    self.ridge_fit.add(
                        self._map_input(features), target, weight, held_out=batch_idx % 8 == 7
                    )
        return loss

    def on_validation_start(self) -> None:
        """Solves for W before it is validated and saved."""
        if self.phase is not None and self.phase.name == "kde":
            solution = self.ridge_fit.solve()
            if solution is not None:
                with torch.no_grad():
                    self.regression.weight.copy_(solution)

    def on_train_end(self) -> None:
        """The same for a training without validation."""
        self.on_validation_start()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The sums travel with the training, not with the weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["ridge_fit"] = self.ridge_fit.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continues the sums."""
        super().on_load_checkpoint(checkpoint)
        self.ridge_fit.load_state_dict(checkpoint.get("ridge_fit") or {})

    def on_train_epoch_start(self) -> None:
        """CNN-Direct starts at the mean pose, as in ``LatentPose``."""
        stage = "" if self.phase is None else self.phase.name
        if stage == "direct" and not bool(self.regressor_ready):
            cast(TargetLinear, self.regressor[0]).calibrate(self.mean_pose, self.pose_std)
            self.regressor_ready.fill_(True)

    def configure_optimizers(self) -> Any:
        """Adam, as for the networks; in ``kde`` an optimiser that leaves W to the solution."""
        if self.phase is not None and self.phase.name == "kde":
            return torch.optim.SGD([self.regression.weight], lr=0.0)
        return super().configure_optimizers()

    @classmethod
    def tiny(cls) -> LatentKDE:
        """Every stage on 32 px images."""
        return cls(
            image_size=32, crop_size=28, channels=(4, 6, 6), fc=(12, 12, 16), dropout=0.2,
            input_dim=24, output_dim=64, candidates=20, pre_image_steps=5, unit_mm=300.0,
            detect_epochs=1, direct_epochs=1, kde_epochs=2,
        )  # fmt: skip


def _skewed_chi2(features: int, dim: int) -> tuple[Tensor, Tensor]:
    """Fourier features of the skewed chi-squared kernel, drawn by scikit-learn."""
    try:
        from sklearn.kernel_approximation import SkewedChi2Sampler
    except ImportError as error:
        raise UsageError(
            "latent-kde with input_map 'skewed_chi2' needs scikit-learn: pip install scikit-learn"
        ) from error
    sampler = SkewedChi2Sampler(skewedness=1.0, n_components=dim, random_state=0)
    sampler.fit(np.zeros((1, features)))
    return torch.from_numpy(sampler.random_weights_), torch.from_numpy(sampler.random_offset_)
