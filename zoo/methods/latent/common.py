"""What the single-frame networks, their temporal heads and kernel dependency estimation share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.base import PoseModule
from zoo.batch import PoseBatch, Prediction
from zoo.errors import CheckpointError, DataError, UsageError
from zoo.methods.latent.loss import pose_vectors
from zoo.methods.latent.network import crop_maps, render_heatmaps
from zoo.optim import adam
from zoo.skeleton import JointMap, get_skeleton, joint_map

__all__ = ["LatentModule"]

HEATMAP_SKELETON = "mpii_16"
"""The joints of the stacked hourglass, 16 channels (sec. 3.2)."""


class LatentModule(PoseModule):
    """Input, targets, units, parts from other trainings, validation and Adam.

    Reads from ``hparams``: ``image_size``, ``crop_size``, ``unit_mm``, ``lr``; if there are any
    ``input`` (``heatmap`` with its ``heatmap_*``, ``noise_2d`` and ``missing_2d``).
    """

    mean_pose: Tensor
    pose_std: Tensor
    weights_taken: Tensor

    def __init__(self) -> None:
        super().__init__()
        joints = len(get_skeleton(self.skeleton_name))
        # In units of unit_mm.
        self.register_buffer("mean_pose", torch.zeros(3 * joints))
        self.register_buffer("pose_std", torch.tensor(1.0))
        self.register_buffer("weights_taken", torch.tensor(False))
        # Noise of validation, the same for every epoch.
        self._validation_noise: torch.Generator | None = None

    def _check_sizes(self) -> None:
        h = self.hparams
        if h["crop_size"] > h["image_size"]:
            raise UsageError(
                f"latent: crop_size {h['crop_size']} is larger than image_size {h['image_size']}"
            )
        if h["unit_mm"] <= 0:
            raise UsageError(f"latent: unit_mm is {h['unit_mm']}; it must be above 0")

    # ---- input, targets, units ------------------------------------------------------------------

    @property
    def heatmap_joints(self) -> JointMap:
        """From the batch's joints to the heatmaps' channels."""
        return joint_map(self.skeleton_name, HEATMAP_SKELETON)

    def _maps(self, batch: PoseBatch) -> tuple[Tensor, Tensor]:
        """What the trunk sees, (B T, C, S, S), and the corner of the crop, (B, 2) px."""
        h, size = self.hparams, self.hparams["image_size"]
        if h.get("input") == "heatmap":
            points, valid = self._heatmap_joints(batch)
            flat = render_heatmaps(
                points.flatten(0, 1), valid.flatten(0, 1), size, h["heatmap_cells"],
                h["heatmap_sigma"],
            )  # fmt: skip
            maps = flat.reshape(*points.shape[:2], *flat.shape[1:])
        elif "image" not in batch:
            raise DataError("latent: the batch has no 'image'; this method needs pictures")
        else:
            maps = batch["image"]
            if maps.shape[-2:] != (size, size):
                height, width = maps.shape[-2:]
                raise DataError(
                    f"latent: images are {width} x {height} px; they must be {size} x {size}"
                )
        cut, corner = crop_maps(maps, h["crop_size"], random=self.training)
        return cut.flatten(0, 1), corner

    def _heatmap_joints(self, batch: PoseBatch) -> tuple[Tensor, Tensor]:
        """(B, T, 16, 2) px and (B, T, 16) bool, disturbed in training."""
        joints, valid = batch["joints_2d"], batch["valid_2d"]
        if self.training and self.hparams["noise_2d"] > 0:
            joints = joints + self.hparams["noise_2d"] * torch.randn_like(joints)
        if self.training and self.hparams["missing_2d"] > 0:
            draw = torch.rand(valid.shape, device=valid.device)
            valid = valid & (draw >= self.hparams["missing_2d"])
        return self.heatmap_joints(joints, valid)

    def _targets(self, batch: PoseBatch) -> tuple[Tensor, Tensor]:
        """(N, P) poses in units, gaps filled with the mean pose, and (N, P) bool: annotated."""
        joints = batch["joints_3d"].flatten(0, 1) / self.hparams["unit_mm"]
        return pose_vectors(joints, batch["valid_3d"].flatten(0, 1), self.mean_pose)

    def _to_mm(self, pose: Tensor) -> Tensor:
        """(N, P) in units -> (N, J, 3) mm, the pelvis exactly at 0."""
        joints = (pose.float() * self.hparams["unit_mm"]).unflatten(-1, (-1, 3))
        away = torch.ones(joints.shape[1], 1, device=pose.device)
        away[self.skeleton.index(self.skeleton.root)] = 0
        return torch.where(away > 0, joints, 0.0)

    # ---- fitting --------------------------------------------------------------------------------

    def _fit_mean(self, poses: PoseBatch) -> tuple[Tensor, Tensor]:
        """Fills ``mean_pose`` and ``pose_std``, the deviation from it over all coordinates.

        Returns:
            (N, P) float64 poses in units, gaps filled with the mean, and (N, P) bool.

        Raises:
            DataError: a joint is in none of the poses.
        """
        joints = poses["joints_3d"].flatten(0, 1).double() / self.hparams["unit_mm"]
        valid = poses["valid_3d"].flatten(0, 1)
        filled, known = pose_vectors(joints, valid, joints.new_zeros(3 * joints.shape[1]))
        count = known.sum(dim=0)
        if not bool((count > 0).all()):
            missing = (count.view(-1, 3)[:, 0] == 0).nonzero().flatten().tolist()
            names = ", ".join(self.skeleton.joints[j] for j in missing)
            raise DataError(f"latent: no training pose has the joints {names}; give data with them")
        mean = filled.sum(dim=0) / count
        self.mean_pose.copy_(mean)
        deviation = torch.where(known, filled - mean, 0.0).square().sum() / known.sum()
        self.pose_std.copy_(deviation.sqrt().clamp(min=1e-6))
        return torch.where(known, filled, mean), known

    def on_fit_start(self) -> None:
        """Fits the statistics and takes over parts of other trainings, once."""
        super().on_fit_start()
        self.take_parts()

    def take_parts(self) -> None:
        """Takes over what the arguments name; once, because a checkpoint has it already."""
        if not bool(self.weights_taken):
            self._take_weights()
            self.weights_taken.fill_(True)

    def _take_weights(self) -> None:
        """Calls :meth:`_take` for what the arguments name."""

    def _take(self, source: str, parts: tuple[str, ...]) -> None:
        """Copies the parameters and buffers whose names start with ``parts`` from a checkpoint.

        Raises:
            CheckpointError: they are missing there, or of another size or unit.
        """
        from zoo.checkpoint import read_stored, take_parts

        stored = read_stored(source)
        unit = stored.args.get("unit_mm", self.hparams["unit_mm"])
        if unit != self.hparams["unit_mm"]:
            raise CheckpointError(
                f"{stored.path} has unit_mm {unit}, this model {self.hparams['unit_mm']}; "
                "give both the same"
            )
        take_parts(self, stored, parts)

    # ---- validation and optimisation ------------------------------------------------------------

    def validation_step(self, batch: PoseBatch, batch_idx: int) -> Prediction:
        """Metrics, and in a staged training the loss of the stage as ``val/STAGE_loss``."""
        prediction = super().validation_step(batch, batch_idx)
        phase, trainer = self.phase, self._trainer
        if phase is not None and trainer is not None and trainer.state.fn == "fit":
            if phase.monitor == f"val/{phase.name}_loss":
                seed = 1000 * batch_idx + self.global_rank
                self._validation_noise = torch.Generator().manual_seed(seed)
                loss = self.compute_loss(batch)["loss"]
                self._validation_noise = None
                size = len(batch["joints_2d"])
                self.log(phase.monitor, loss, batch_size=size, sync_dist=True)
        return prediction

    def configure_optimizers(self) -> Any:
        """Adam at a constant rate (sec. 5.2), on what the phase trains."""
        trained = [p for p in self.parameters() if p.requires_grad]
        lr = self.hparams["lr"]
        if self.phase is not None and self.phase.lr is not None:
            lr = self.phase.lr
        return adam(self, trained, lr)
