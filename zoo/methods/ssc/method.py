"""``SSC``: the method; see the package for the paper, its table and the choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from zoo.base import InputSpec, Phase, PoseModule
from zoo.batch import PoseBatch, Prediction
from zoo.cpm import VGG_CHANNELS, CPMTrunk
from zoo.errors import DataError, UsageError, suggest
from zoo.layers import masked_sample_mean
from zoo.methods.ssc.network import (
    HourglassPose,
    OwnPose,
    PointHead,
    PoseTransformer,
    State,
    drop_joints,
    full_precision,
)
from zoo.optim import adam, cosine_over_phase
from zoo.pose_machine import Adaption, ClipMemory, HeatmapLayer, PoseRange, turn_frames, xavier
from zoo.projector import CorrectionTerms, Projector, Regressor

__all__ = ["SSC"]


class SSC(PoseModule):
    """Wang, Lin, Jiang, Qian, Wei 2019; defaults are the paper's full model.

    Args:
        image_size: side of ``image`` in px.
        crop_scale: side of the crop over the longer side of the person's box; 1 is tight.
        frames: of a clip.
        clip_fps: rate of the frames of a clip.
        source_fps: rate of the recordings in whose frames ``batch["frame"]`` counts; says which
            clip goes on where another ended (``state="sequence"``).
        state: ``clip`` (zero at the start of every clip) or ``sequence`` (carried through a
            recording in validation, test and video).
        reset_every: outside training, states are zero at every so many frames of a clip; 0: at its
            first only.
        channels: of the trunk, groups with pooling between them.
        special_channels: of two more convolutions before the adaption module; 0 leaves them out.
        adaption: reading of the adaption module, see ``zoo.pose_machine.FeatureAdaption``.
        adaption_kernels: of its convolutions.
        adaption_fc: length of the adapted vector.
        adaption_relu: a ReLU after it.
        temporal: false: fully connected layers in the place of the LSTMs, each frame by itself.
        hidden: cells of each LSTM.
        second_lstm: ``forward``, or ``backward`` in time.
        projector: ``ssc``; ``none``; or ``multitask``, 2D and 3D heads without a projector.
        projector_width: of the hidden layers of Psi_C and Psi_P.
        batch_norm: in Psi_P.
        joint_dropout: probability that a joint of p_3D or of the 2D target is dropped in training.
        proj_target: what the projection loss compares with: ``gt`` or ``pred``.
        pose2d: 2D pose that the correction compares with: ``head`` (p_2D), ``other`` (of
            ``other2d``), or ``gt``: ``joints_2d`` of the batch, which may be labels or what a
            detector has found.
        other2d: another 2D network, trained in the first step: ``own_lstm`` (trunk, adaption and
            LSTMs of its own, as in the authors' code), ``hourglass`` (two stacks), or ``none``.
        pretrain: losses of the first step: ``head`` (Eq. 5), or ``both``, with heatmaps beside it.
        hourglass_width: maps of the stacked hourglass.
        hourglass_depth: sizes of each of its two hourglasses.
        limb_scale: 3D targets have the mean training limb lengths.
        bone_weight: of the loss on bone vectors of both 3D outputs.
        scale: least and largest factor of a training frame.
        pose2d_epochs: length of step 1.
        lift_epochs: of step 2.
        project_epochs: of step 3.
        joint_epochs: of step 4.
        train_trunk: let step 2 train the trunk too.
        lr: of Adam, steps 1 to 3.
        joint_lr: of step 4; None: the same.
        lr_factors: factors of the rate by parameter prefix.
        bias_lr: factor of the rate of biases.
        schedule: ``constant``, or ``cosine`` to zero over each phase.
        machine_weights: checkpoint or name of a pose machine (``cpm``) from whose trunk step 1
            starts.
        pose2d_weights: checkpoint or name whose step 1 is taken over in place of an own one.
        lift_weights: the same for steps 1 and 2.
        correction: settings of the correction at test time, see
            ``zoo.correction.Correction.parse``.
    """

    weights_taken: Tensor

    def __init__(
        self,
        image_size: int = 368,
        crop_scale: float = 1.0,
        frames: int = 5,
        clip_fps: float = 2.0,
        source_fps: float = 50.0,
        state: Literal["clip", "sequence"] = "clip",
        reset_every: int = 0,
        channels: Sequence[Sequence[int]] = VGG_CHANNELS,
        special_channels: int = 128,
        adaption: Adaption = "paper",
        adaption_kernels: int = 128,
        adaption_fc: int = 1024,
        adaption_relu: bool = True,
        temporal: bool = True,
        hidden: int = 1024,
        second_lstm: Literal["forward", "backward"] = "forward",
        projector: Literal["ssc", "none", "multitask"] = "ssc",
        projector_width: int = 1024,
        batch_norm: bool = True,
        joint_dropout: float = 0.3,
        proj_target: Literal["gt", "pred"] = "gt",
        pose2d: Literal["head", "other", "gt"] = "head",
        other2d: Literal["none", "own_lstm", "hourglass"] = "none",
        pretrain: Literal["head", "both"] = "both",
        hourglass_width: int = 256,
        hourglass_depth: int = 4,
        limb_scale: bool = True,
        bone_weight: float = 0.0,
        scale: Sequence[float] = (0.9, 1.1),
        pose2d_epochs: int = 20,
        lift_epochs: int = 50,
        project_epochs: int = 20,
        joint_epochs: int = 50,
        train_trunk: bool = False,
        lr: float = 1e-5,
        joint_lr: float | None = None,
        lr_factors: dict[str, float] | None = None,
        bias_lr: float = 1.0,
        schedule: Literal["constant", "cosine"] = "constant",
        machine_weights: str = "",
        pose2d_weights: str = "",
        lift_weights: str = "",
        correction: str = "on",
    ) -> None:
        super().__init__()
        # Lists, not tuples, in the saved hyper-parameters: they survive JSON and YAML unchanged.
        channels, scale = [list(group) for group in channels], list(scale)
        self.save_hyperparameters()
        self._check()
        joints = len(self.skeleton)
        self.trunk = CPMTrunk(channels)
        stride, maps = self.trunk.stride, self.trunk.out_channels
        if image_size % stride:
            raise UsageError(f"ssc: image_size is {image_size}; it must be a multiple of {stride}")
        cells = image_size // stride
        self.head = PointHead(maps, cells, joints)
        self.heatmap = HeatmapLayer(maps, joints, stride) if pretrain == "both" else None

        def transformer(outputs: int) -> PoseTransformer:
            return PoseTransformer(
                maps, cells, outputs, special_channels, adaption_kernels, adaption_fc,
                adaption_relu, hidden, adaption, temporal, second_lstm == "backward",
            )  # fmt: skip

        self.lift = transformer(3 * joints)
        self.psi_c: Regressor | None = None
        self.psi_p: Projector | None = None
        if projector == "ssc":
            self.psi_c = Regressor(3 * joints, projector_width)
            self.psi_p = Projector(3 * joints, 2 * joints, projector_width, batch_norm)
            xavier(self.psi_c)
            xavier(self.psi_p)
            nn.init.constant_(self.psi_c.out.bias, 0.5)
            nn.init.constant_(self.psi_p.out.bias, 0.5)
        self.other2d: OwnPose | HourglassPose | None = None
        if other2d == "own_lstm":
            self.other2d = OwnPose(channels, transformer(2 * joints))
        elif other2d == "hourglass":
            self.other2d = HourglassPose(joints, hourglass_width, depth=hourglass_depth)
        self.space = PoseRange(self.skeleton, limb_scale)
        self.register_buffer("weights_taken", torch.tensor(False))
        self.memory = ClipMemory(max(1, round(frames * source_fps / clip_fps)))
        self._following = False

    def _check(self) -> None:
        h = self.hparams
        choices = {
            "state": ("clip", "sequence"), "second_lstm": ("forward", "backward"),
            "projector": ("ssc", "none", "multitask"), "proj_target": ("gt", "pred"),
            "pose2d": ("head", "other", "gt"), "pretrain": ("head", "both"),
            "other2d": ("none", "own_lstm", "hourglass"),
            "schedule": ("constant", "cosine"),
        }  # fmt: skip
        for name, known in choices.items():
            if h[name] not in known:
                raise UsageError(suggest(str(h[name]), known, f"ssc {name}"))
        if h["frames"] < 1:
            raise UsageError(f"ssc: frames is {h['frames']}; it must be at least 1")
        if h["pose2d"] == "other" and h["other2d"] == "none":
            raise UsageError("ssc: pose2d 'other' needs another 2D network; set other2d")
        if not h["temporal"] and h["state"] == "sequence":
            raise UsageError("ssc: without recurrence there is no state to carry; set state 'clip'")
        every = h["reset_every"]
        if every < 0 or (every and h["frames"] % every):
            raise UsageError(
                f"ssc: reset_every is {every}; it must divide the {h['frames']} frames of a clip"
            )
        if h["state"] == "sequence" and (every or h["second_lstm"] == "backward"):
            raise UsageError(
                "ssc: state 'sequence' excludes reset_every and a second LSTM that runs backwards"
            )
        if h["machine_weights"] and (h["pose2d_weights"] or h["lift_weights"]):
            raise UsageError("ssc: give machine_weights or weights of later steps, not both")
        if not 0 <= h["joint_dropout"] < 1:
            raise UsageError(f"ssc: joint_dropout is {h['joint_dropout']}; it must be in [0, 1)")
        if len(h["scale"]) != 2 or not 0 < h["scale"][0] <= h["scale"][1]:
            raise UsageError(
                f"ssc: scale is {h['scale']}; give the least and the largest factor, above 0"
            )

    # ---- what it is -----------------------------------------------------------------------------

    @property
    def input_spec(self) -> InputSpec:
        """Clips of pictures, all frames of which are predicted."""
        h = self.hparams
        return InputSpec("image", h["image_size"], h["frames"], h["clip_fps"], h["crop_scale"])

    @property
    def correction(self) -> str:
        """Settings of the correction at test time; ``off`` without a projector."""
        return "off" if self.psi_c is None else str(self.hparams["correction"])

    def phases(self) -> tuple[Phase, ...]:
        """The four steps of Algorithm 1, those that apply."""
        h = self.hparams
        two_d = ["trunk.", "head."]
        two_d += ["heatmap."] if self.heatmap is not None else []
        two_d += ["other2d."] if self.other2d is not None else []
        lift = ("lift.", "trunk.") if h["train_trunk"] else ("lift.",)
        every: tuple[str, ...] = ("trunk.", "head.", "lift.")
        stages = [
            Phase("pose2d", h["pose2d_epochs"], tuple(two_d)),
            Phase("lift", h["lift_epochs"], lift),
        ]
        stages = stages[1:] if h["pose2d_weights"] else stages
        stages = [] if h["lift_weights"] else stages
        lr = h["lr"] if h["joint_lr"] is None else h["joint_lr"]
        if h["projector"] == "ssc":
            stages.append(Phase("project", h["project_epochs"], ("psi_c.", "psi_p.")))
            every += ("psi_c.", "psi_p.")
        if h["projector"] != "none":
            stages.append(Phase("joint", h["joint_epochs"], every, lr))
        return tuple(stages)

    # ---- what it computes -----------------------------------------------------------------------

    def forward(self, batch: PoseBatch) -> Prediction:
        """p_3D and p_2D of clips.

        Args:
            batch: ``image``; any number of frames.

        Returns:
            ``pred_3d`` mm, pelvis at the origin; ``pred_2d`` px.
        """
        features = self._features(self._images(batch))
        return self._prediction(features, self._poses(features, batch))

    def correction_terms(self, batch: PoseBatch) -> CorrectionTerms:
        """``forward``, and what a correction starts from; ``joints_2d`` if ``pose2d="gt"``."""
        image = self._images(batch)
        features = self._features(image)
        return self._terms(batch, image, features, self._poses(features, batch))

    def _terms(
        self, batch: PoseBatch, image: Tensor, features: Tensor, pose: Tensor
    ) -> CorrectionTerms:
        prediction = self._prediction(features, pose)
        size = float(self.hparams["image_size"])
        clip = image.shape[:2]
        if self.hparams["pose2d"] == "gt":
            points, valid = batch["joints_2d"], batch["valid_2d"]
        else:
            valid = torch.ones(*clip, len(self.skeleton), dtype=torch.bool, device=image.device)
            if self.hparams["pose2d"] == "head":
                points = prediction["pred_2d"]
            elif isinstance(self.other2d, HourglassPose):
                points = self.other2d(image.flatten(0, 1)).reshape(*clip, -1, 2)
            else:
                assert self.other2d is not None
                points = self._to_px(self.other2d(image))
        return CorrectionTerms(prediction, pose, self._from_px(points), valid, size)

    def pose_to_mm(self, pose: Tensor) -> Tensor:
        """(..., P) normalised -> (..., J, 3) mm, pelvis at the origin."""
        return self.space.to_mm(pose)

    def _images(self, batch: PoseBatch) -> Tensor:
        size = self.hparams["image_size"]
        if "image" not in batch:
            raise DataError("ssc: the batch has no 'image'; this method needs pictures")
        image = batch["image"]
        if image.shape[-2:] != (size, size):
            height, width = image.shape[-2:]
            raise DataError(f"ssc: images are {width} x {height} px; they must be {size} x {size}")
        return image

    def _features(self, image: Tensor) -> Tensor:
        """(B, T, 3, S, S) -> (B, T, C, F, F)."""
        features = self.trunk(image.flatten(0, 1))
        return features.reshape(*image.shape[:2], *features.shape[1:])

    def _poses(self, features: Tensor, batch: PoseBatch) -> Tensor:
        """(B, T, C, F, F) -> (B, T, P), p_3D, with the states of earlier clips if they go on."""
        vector = self.lift.adapt(features)
        h = self.hparams
        if not self.training and h["reset_every"]:
            clips, frames = vector.shape[:2]
            every = min(h["reset_every"], frames)
            short = vector.reshape(clips * frames // every, every, -1)
            return self.lift.recur(short)[0].reshape(clips, frames, -1)
        keys = self.memory.keys(batch) if self._following and h["state"] == "sequence" else []
        if not keys:
            return self.lift.recur(vector)[0]
        if self.trainer.world_size > 1:
            raise UsageError(
                "ssc: state 'sequence' follows a recording from clip to clip, and N processes "
                "share them out; test on one (--gpus 1), or with --model.state clip"
            )
        parts: list[Tensor | None] = [None] * len(keys)
        for wave in self.memory.order(keys):
            zero = tuple(s[0] for s in self.lift.start(1, vector.device))
            found = [self.memory.recall(keys[i]) or zero for i in wave]
            before = tuple(torch.stack([state[k] for state in found]) for k in range(4))
            poses, after = self.lift.recur(vector[wave], before)
            for place, i in enumerate(wave):
                parts[i] = poses[place]
                self.memory.keep(keys[i], tuple(s[place] for s in after))
        return torch.stack(cast(list[Tensor], parts))

    def _prediction(self, features: Tensor, pose: Tensor) -> Prediction:
        points = self.head(features.flatten(0, 1)).reshape(*features.shape[:2], -1)
        return Prediction(pred_3d=self.space.to_mm(pose), pred_2d=self._to_px(points))

    def _to_px(self, points: Tensor) -> Tensor:
        """(..., 2 J) sides of the crop -> (..., J, 2) px, pixel centres at integers."""
        px = points * self.hparams["image_size"] - 0.5
        return px.reshape(*points.shape[:-1], -1, 2)

    def _from_px(self, px: Tensor) -> Tensor:
        """(..., 2) px -> sides of the crop, [0, 1] inside it."""
        return (px + 0.5) / self.hparams["image_size"]

    @torch.no_grad()
    def stream(self, batch: PoseBatch | None, state: Any = None) -> tuple[Prediction | None, Any]:
        """The next frames of a video, corrected where a correction is switched on.

        States are zero at every C-th frame (or ``reset_every``), as in tests; with
        ``state="sequence"`` at the first only. A frame comes at once, unless the second LSTM runs
        backwards: then with its clip.
        """
        h = self.hparams
        clip = h["reset_every"] or h["frames"]
        waiting, before, position = state or (None, None, 0)
        if batch is None:
            if waiting is None:
                return None, None
            found, _ = self._stream(waiting, None)
            return found, None
        if h["second_lstm"] == "backward":
            kept = {k: cast(Tensor, v) for k, v in batch.items() if k in _STREAMED}
            if waiting is not None:
                kept = {k: torch.cat((waiting[k], v), dim=1) for k, v in kept.items()}
            whole = kept["image"].shape[1] // clip * clip
            rest = {k: v[:, whole:].clone() for k, v in kept.items()}
            pieces = [{k: v[:, i : i + clip] for k, v in kept.items()}
                      for i in range(0, whole, clip)]  # fmt: skip
            joined = _joined([self._stream(piece, None)[0] for piece in pieces])
            return joined, (rest if rest["image"].shape[1] else None, None, 0)
        if h["state"] == "sequence":
            found, before = self._stream(batch, before)
            return found, (None, before, 0)
        parts, at, length = [], 0, self._images(batch).shape[1]
        while at < length:
            size = min(clip - position, length - at)
            piece = {k: cast(Tensor, v)[:, at : at + size] for k, v in batch.items()
                     if k in _STREAMED}  # fmt: skip
            found, before = self._stream(piece, before if position else None)
            parts.append(found)
            at, position = at + size, (position + size) % clip
        return _joined(parts), (None, before, position)

    def _stream(self, batch: Any, before: State | None) -> tuple[Prediction, State]:
        """Frames without a reset among them."""
        image = self._images(batch)
        features = self._features(image)
        pose, after = self.lift.recur(self.lift.adapt(features), before)
        if self.corrector is None:
            return self._prediction(features, pose), after
        return self.corrector(batch, self._terms(batch, image, features, pose)), after

    # ---- training -------------------------------------------------------------------------------

    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        """The loss of the running phase; outside a training that of the last one.

        Args:
            batch: ``image``, ``joints_2d``, ``valid_2d``, ``joints_3d`` and ``valid_3d``. A frame
                or a joint without a label adds nothing to that label's losses.

        Returns:
            ``loss`` and its parts, half squared errors summed over coordinates, mean over labelled
            frames: ``loss_2d`` (Eq. 5), ``loss_3d`` (Eq. 6), ``loss_regressed`` and
            ``loss_projected`` (Eq. 2 and 7), those that the phase has, in normalised units.
        """
        stage = self.phases()[-1].name if self.phase is None else self.phase.name
        image, points = self._scaled(self._images(batch), batch["joints_2d"])
        valid_2d = batch["valid_2d"].flatten(0, 1)
        target_2d = self._from_px(points).flatten(0, 1).flatten(1)
        features = self._features(image)
        losses: dict[str, Tensor] = {}
        if stage in ("pose2d", "joint"):
            seen = self.head(features.flatten(0, 1))
            losses["loss_2d"] = _half_squares(seen, target_2d, valid_2d)
        if stage == "pose2d":
            px = points.flatten(0, 1)
            if self.heatmap is not None:
                maps = self.heatmap(features.flatten(0, 1))
                losses["loss_heatmap"] = self.heatmap.loss(maps, px, valid_2d)
            if isinstance(self.other2d, HourglassPose):
                losses["loss_other2d"] = self.other2d.loss(image.flatten(0, 1), px, valid_2d)
            elif self.other2d is not None:
                other = self.other2d(image).flatten(0, 1)
                losses["loss_other2d"] = _half_squares(other, target_2d, valid_2d)
            return {"loss": torch.stack(list(losses.values())).sum(), **losses}
        pose = self.lift(features).flatten(0, 1)  # (N, P)
        valid_3d = batch["valid_3d"].flatten(0, 1)
        target_3d, _ = self.space.target(batch["joints_3d"].flatten(0, 1), valid_3d)
        if stage in ("lift", "joint"):
            losses["loss_3d"] = self._loss_3d(pose, target_3d, valid_3d)
        if self.psi_c is not None and self.psi_p is not None and stage in ("project", "joint"):
            if stage == "project":
                pose = pose.detach()
            dropout = self.hparams["joint_dropout"] if self.training else 0.0
            stays = drop_joints(valid_2d, dropout).repeat_interleave(3, dim=-1)
            with full_precision(image):
                regressed = self.psi_c(torch.where(stays, pose, 0.0))
                projected = self.psi_p(regressed)
            losses["loss_regressed"] = self._loss_3d(regressed, target_3d, valid_3d)
            counted = valid_2d & drop_joints(valid_2d, dropout)
            if self.hparams["proj_target"] == "pred":
                target_2d = self.head(features.flatten(0, 1)).detach()
            losses["loss_projected"] = _half_squares(projected, target_2d, counted)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def _loss_3d(self, pose: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Eq. 6, or the 3D part of Eq. 2, and the bone loss: (N, P), (N, P), (N, J)."""
        loss = _half_squares(pose, target, valid)
        if self.hparams["bone_weight"]:
            bones = torch.tensor(self.skeleton.bones, device=pose.device)
            child, parent = bones.unbind(dim=1)

            def vectors(flat: Tensor) -> Tensor:
                joints = flat.reshape(len(flat), -1, 3)
                return (joints[:, parent] - joints[:, child]).flatten(1)

            both = valid[:, child] & valid[:, parent]
            bone = _half_squares(vectors(pose), vectors(target), both)
            loss = loss + self.hparams["bone_weight"] * bone
        return loss

    def _scaled(self, image: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """A random factor for each training frame, about its middle; 2D joints with it."""
        low, high = self.hparams["scale"]
        if not self.training or low == high == 1:
            return image, points
        frames = image.flatten(0, 1)
        factor = low + (high - low) * torch.rand(len(frames), device=image.device)
        drawn, moved = turn_frames(frames, points.flatten(0, 1), factor, torch.zeros_like(factor))
        return drawn.reshape(image.shape), moved.reshape(points.shape)

    def fit_statistics(self, poses: PoseBatch) -> None:
        """Limb lengths and extrema of the training poses; nothing if no phase needs them.

        Raises:
            DataError: a joint is in none of the poses.
        """
        if any(phase.name != "pose2d" and phase.epochs > 0 for phase in self.phases()):
            self.space.fit(poses["joints_3d"].flatten(0, 1), poses["valid_3d"].flatten(0, 1))
        self.statistics_fitted.fill_(True)

    def on_fit_start(self) -> None:
        """Fits the statistics and takes weights over, once: a checkpoint has both already."""
        super().on_fit_start()
        h = self.hparams
        source = h["lift_weights"] or h["pose2d_weights"]
        if bool(self.weights_taken):
            return
        from zoo.checkpoint import take_parts

        if h["machine_weights"]:
            take_parts(self, h["machine_weights"], ("trunk.",), where="network.machine.")
            self.weights_taken.fill_(True)
        elif source:
            parts = ["trunk.", "head."]
            parts += ["other2d."] if self.other2d is not None else []
            parts += ["heatmap."] if self.heatmap is not None else []
            parts += ["lift.", "space."] if h["lift_weights"] else []
            take_parts(self, source, tuple(parts))
            self.weights_taken.fill_(True)

    def configure_optimizers(self) -> Any:
        """Adam (sec. 3.4), with factors for biases and for some layers where they are asked for."""
        h, phase = self.hparams, self.phase
        lr = h["lr"] if phase is None or phase.lr is None else phase.lr
        factors: dict[float, list[nn.Parameter]] = {1.0: []}
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            factor = math.prod(
                value for prefix, value in (h["lr_factors"] or {}).items()
                if name.startswith(prefix)
            )  # fmt: skip
            factor *= h["bias_lr"] if parameter.ndim == 1 else 1.0
            factors.setdefault(factor, []).append(parameter)
        groups = [{"params": p, "lr": lr * factor} for factor, p in factors.items() if p]
        optimizer = adam(self, groups, lr)
        if h["schedule"] == "constant":
            return optimizer
        return cosine_over_phase(self, optimizer)

    # ---- validation and test --------------------------------------------------------------------

    def _follow(self) -> None:
        """From here on clips of a recording follow each other; no state from before goes on."""
        self.memory.clear()
        self._following = True

    def on_validation_epoch_start(self) -> None:
        """Forgets the states of an earlier validation."""
        self._follow()

    def on_test_epoch_start(self) -> None:
        """Forgets the states of an earlier test."""
        self._follow()

    def on_predict_epoch_start(self) -> None:
        """Forgets the states of an earlier prediction."""
        self._follow()

    def teardown(self, stage: str) -> None:
        """Outside a trainer every clip is a recording of its own."""
        self.memory.clear()
        self._following = False

    @classmethod
    def tiny(cls) -> SSC:
        """Every mechanism on 32 px images, 8 x 8 cells."""
        return cls(
            image_size=32, frames=3, channels=[[4], [8], [8, 8]], special_channels=6,
            adaption_kernels=6, adaption_fc=12, hidden=10, projector_width=16, pretrain="both",
            pose2d_epochs=1, lift_epochs=1, project_epochs=1, joint_epochs=1,
        )  # fmt: skip


_STREAMED = frozenset({"image", "joints_2d", "valid_2d"})


def _joined(parts: Sequence[Prediction]) -> Prediction | None:
    """Predictions one after the other along T."""
    if not parts:
        return None
    keys = cast(list[dict[str, Tensor]], parts)
    return cast(Prediction, {k: torch.cat([p[k] for p in keys], dim=1) for k in keys[0]})


def _half_squares(output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """1/2 || output - target ||^2 over the valid joints, mean over the frames that have one.

    Args:
        output: (N, J D).
        target: (N, J D); anything where not valid.
        valid: (N, J) bool.
    """
    mask = valid.repeat_interleave(output.shape[-1] // valid.shape[-1], dim=-1)
    error = output.float() - torch.where(mask, target, 0.0)
    return 0.5 * masked_sample_mean(error.square(), mask)
