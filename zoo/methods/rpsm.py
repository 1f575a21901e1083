"""Recurrent 3D Pose Sequence Machines: poses of a clip, refined over stages and frames.

Mude Lin, Liang Lin, Xiaodan Liang, Keze Wang, Hui Cheng: "Recurrent 3D Pose Sequence Machines",
CVPR 2017, https://arxiv.org/abs/1707.09695. Equations, sections and tables are of that paper.

**In**: ``image`` (B, T, 3, 368, 368), clips of T = 5 frames at 2 fps. **Out**: ``pred_3d`` mm for
every frame, from it and earlier frames of its clip alone; ``pred_2d`` px, unless ``train_trunk``.

For each frame t and stage k (Eq. 1), with shared features of ``zoo.cpm.CPMTrunk`` below them:

    f_2D(t, k) = Psi_p(I_t, f_2D(t, k-1))              two specialised convolutions
    f_3D(t, k) = Psi_a(f_2D(t, k))                     adaption: a vector of 1024
    S(t, k)    = Psi_r(f_3D(t, k), H(t-1, k), S(t, k-1))    LSTM of 1024 cells, 51 outputs

The answer is the last stage's; the error of every stage is measured too (``mpjpe_stage1_mm`` ...).

===========================  =======================================================================
Table 4                      here
===========================  =======================================================================
RPSM-1-stage ... -3-stage    ``RPSM(stages=1)`` ... ``RPSM()``
RPSM_1stage_seq_1            ``RPSM(stages=1, frames=1, recurrent="fc")``
RPSM_1stage_seq_10           ``RPSM(stages=1, frames=10)``
RPSM-3-stage_sharing         ``RPSM(share_special=True)``
RPSM-3-stage_no_MPII         pre-training on the 3D data's own 2D labels; else ``trunk_weights``
===========================  =======================================================================

**Stages of training** (``phases()``): ``pretrain``, the trunk with a temporary heatmap layer on 2D
annotations (2D-only data will do); ``train``, everything above the trunk, which stands still.
``epochs=0`` leaves a trunk that another training takes with ``trunk_weights``.

**Choices where the paper is silent or has two readings**, most after the authors' published code

* Fifteen convolutions and three poolings (Table 1; the text has sixteen and four).
* The adaption module is read as two convolutions, then one pooling (``adaption`` has three more).
* Adaption and recurrent modules are separate for every stage (``share_adaption``,
  ``share_recurrent``). A module that stages share gets zeros as the first one's previous features
  and pose; separate ones have no such inputs at stage 1, which is the same function.
* S(t, k-1) is not detached: later losses train earlier stages.
* Limbs of the targets have the mean training lengths (``limb_scale``), test labels have not: the
  error of perfect targets is the buffer ``space.floor_mm``.
* Rates 1e-3 and "decay" 1e-4 are printed; the decay is taken as Adam's coupled L2. The loss is
  Eq. 2 over 51 numbers and labelled frames, a constant factor.
* ``state="clip"``: states are zero at the start of every clip of C frames, in tests too, where a
  recording is cut into clips side by side.
  ``"sequence"`` carries them through a recording.
* Frames are scaled one by one, bicubic; what is larger is cut anywhere, what is smaller lies on
  grey. Pre-training has CPM's scaling and turning.
* The heatmap layer is kept: with the trunk frozen it still reads 2D joints, and 3D never sees it.
* A missing joint has no loss. The pelvis is predicted like other joints, and reported as 0.

**Differences from the paper**: the trunk starts from nothing (``zoo.cpm`` on first weights) or,
with ``machine_weights``, from a pose machine of the zoo; the authors' code takes CPM's weights.

**Source**: own work from the paper; none of the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from zoo.base import InputSpec, Phase, PoseModule
from zoo.batch import PoseBatch, Prediction
from zoo.cpm import VGG_CHANNELS, CPMTrunk
from zoo.errors import DataError, UsageError, suggest
from zoo.layers import process_share
from zoo.metrics import PoseMetrics, StagePoseMetrics
from zoo.optim import adam, cosine_over_phase
from zoo.pose_machine import (
    Adaption,
    ClipMemory,
    FeatureAdaption,
    HeatmapLayer,
    PoseRange,
    SpecialisedPair,
    rescale_frames,
    single_bias_lstm,
    turn_frames,
    xavier,
)

__all__ = ["RPSM"]

State = tuple[Tensor, Tensor]
"""Hidden states and cells of all stages, each (B, K, H)."""


# ---- the network ---------------------------------------------------------------------------------


class Regressor(nn.Module):
    """Psi_r: one LSTM layer (or, for single frames, a fully connected one) and a linear output.

    Args:
        in_features: length of the input, the previous pose included.
        hidden: H.
        outputs: P.
        kind: ``lstm`` or ``fc``.
    """

    def __init__(self, in_features: int, hidden: int, outputs: int, kind: str) -> None:
        super().__init__()
        self.recurrent = kind == "lstm"
        self.layer: nn.LSTM | nn.Linear
        if self.recurrent:
            self.layer = single_bias_lstm(in_features, hidden)
        else:
            self.layer = nn.Linear(in_features, hidden)
        self.out = nn.Linear(hidden, outputs)
        xavier(self)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, T, F) and this stage's state, (B, H) each -> (B, T, P) and the state after it."""
        if not self.recurrent:
            return self.out(self.layer(x).relu()), state
        before = (state[0][None].contiguous(), state[1][None].contiguous())
        outputs, (hidden, cell) = self.layer(x, before)
        return self.out(outputs), (hidden[0], cell[0])


class SequenceMachine(nn.Module):
    """All stages above the trunk (Eq. 1).

    Args:
        in_channels: of the trunk's features.
        cells: F, along a side of the features.
        outputs: P.
        stages: K.
        channels: of the specialised convolutions.
        kernels: of the adaption module.
        adapted: length of the adapted vector.
        hidden: H.
        adaption: see ``zoo.pose_machine.FeatureAdaption``.
        kind: ``lstm`` or ``fc``.
        share: which of special, adaption and recurrent modules all stages share.
    """

    def __init__(
        self, in_channels: int, cells: int, outputs: int, stages: int, channels: int, kernels: int,
        adapted: int, hidden: int, adaption: Adaption, kind: str, share: tuple[bool, bool, bool],
    ) -> None:  # fmt: skip
        super().__init__()
        self.stages, self.outputs, self.hidden = stages, outputs, hidden
        self.channels = channels
        special, adapt, recur = share
        # Stage 1 has no inputs for previous features and pose where its modules are its own.
        self.zero_maps, self.zero_pose = special, recur

        def widths(first: int, more: int, shared: bool) -> list[int]:
            """Inputs of each module."""
            return [first + more] if shared else [first, *[first + more] * (stages - 1)]

        self.special = nn.ModuleList(
            SpecialisedPair(width, channels) for width in widths(in_channels, channels, special)
        )
        self.adaption = nn.ModuleList(
            FeatureAdaption(channels, cells, kernels, adapted, adaption)
            for _ in range(1 if adapt else stages)
        )
        self.recurrent = nn.ModuleList(
            Regressor(width, hidden, outputs, kind) for width in widths(adapted, outputs, recur)
        )

    def start(self, clips: int, device: torch.device) -> State:
        """H(0, k) = 0."""
        zero = torch.zeros(clips, self.stages, self.hidden, device=device)
        return zero, zero

    def forward(self, features: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Eq. 1 for clips.

        Args:
            features: (B, T, C, F, F) of the trunk.
            state: before the first frame; ``None`` starts the clips.

        Returns:
            (B, T, K, P) float32 poses of every stage, and the state after the last frame.
        """
        clips, frames = features.shape[:2]
        device_type = "cpu" if features.is_meta else features.device.type
        shared = features.flatten(0, 1)  # (B T, C, F, F)
        before = self.start(clips, features.device) if state is None else state
        maps: Tensor | None = None
        pose: Tensor | None = None
        if self.zero_maps:
            maps = shared.new_zeros(len(shared), self.channels, *shared.shape[2:])
        if self.zero_pose:
            pose = torch.zeros(clips, frames, self.outputs, device=features.device)
        poses, after = [], []
        for k in range(self.stages):
            special, adaption, recurrent = (
                modules[min(k, len(modules) - 1)]
                for modules in (self.special, self.adaption, self.recurrent)
            )
            maps = special(shared if maps is None else torch.cat([shared, maps], dim=1))
            vector = adaption(maps).reshape(clips, frames, -1)
            with torch.autocast(device_type, enabled=False):  # 8 bits would be 4 mm
                x = vector.float()
                x = x if pose is None else torch.cat([x, pose], dim=-1)
                pose, ended = recurrent(x, (before[0][:, k], before[1][:, k]))
            poses.append(pose)
            after.append(ended)
        hidden, cell = (torch.stack([s[i] for s in after], dim=1) for i in (0, 1))
        return torch.stack(poses, dim=2), (hidden, cell)


# ---- losses --------------------------------------------------------------------------------------


def sequence_loss(poses: Tensor, target: Tensor, known: Tensor, alpha: Tensor) -> Tensor:
    """Eq. 2 for each clip: squared distances, weighted by alpha_k, summed over stages and frames.

    Args:
        poses: (B, T, K, P), S of every stage, normalised.
        target: (B, T, P), normalised; anything where not known.
        known: (B, T, P) bool.
        alpha: (K,).

    Returns:
        (B,).
    """
    return (alpha * stage_squares(poses, target, known)).sum(dim=(1, 2))


def stage_squares(poses: Tensor, target: Tensor, known: Tensor) -> Tensor:
    """(B, T, K): || S - S* ||^2 over the known numbers."""
    aim = torch.where(known, target, 0.0)[:, :, None]
    return torch.where(known[:, :, None], poses.float() - aim, 0.0).square().sum(dim=-1)


# ---- the method ----------------------------------------------------------------------------------


class RPSM(PoseModule):
    """Lin, Lin, Liang, Wang, Cheng 2017; defaults are the paper's full model, three stages.

    Args:
        image_size: side of ``image`` in px.
        crop_scale: side of the crop over the longer side of the person's box; 1 is tight.
        frames: C, of a clip.
        clip_fps: rate of the frames of a clip.
        source_fps: rate of the recordings in whose frames ``batch["frame"]`` counts; says which
            clip goes on where another ended (``state="sequence"``).
        state: ``clip`` (zero at the start of every clip) or ``sequence`` (carried through a
            recording in validation, test and video).
        stages: K.
        channels: of the trunk, groups with pooling between them.
        special_channels: of the specialised convolutions.
        adaption: reading of the adaption module: ``paper``, ``pool_each``, ``rpsm_code`` or
            ``ssc_code``.
        adaption_kernels: of its convolutions.
        adaption_fc: length of the adapted vector.
        recurrent: ``lstm``, or ``fc`` for the paper's single-frame rows.
        hidden: cells of the LSTM, or units of the layer in its place.
        share_special: one pair of specialised convolutions for all stages.
        share_adaption: one adaption module for all stages.
        share_recurrent: one recurrent module for all stages.
        limb_scale: targets have the mean training limb lengths.
        alpha: weight of each stage in Eq. 2; ``None`` is 1 for all.
        scale: least and largest factor of a training frame.
        scale_per: draws one factor a ``frame`` or a ``clip``.
        machine_weights: checkpoint or name of a pose machine (``cpm``) from whose trunk the first
            phase starts.
        trunk_weights: checkpoint or name whose trunk and heatmap layer are taken over in place of
            the first phase.
        train_trunk: the main phase trains the trunk too.
        pretrain_epochs: of the first phase; the paper does not print its length.
        pretrain_optimizer: ``sgd`` or ``adam``.
        pretrain_lr: its rate.
        pretrain_momentum: of SGD.
        pretrain_decay: weight decay of the first phase.
        pretrain_scale: least and largest factor of a frame in the first phase, drawn for half of
            them.
        pretrain_rotation: largest turn of a frame there, degrees.
        sigma: of the target heatmaps, cells: 7 px over a stride of 8.
        epochs: of the main phase.
        lr: of Adam.
        weight_decay: coupled L2.
        schedule: ``constant``, or ``cosine`` to zero over each phase.
    """

    alpha: Tensor
    weights_taken: Tensor

    def __init__(
        self,
        image_size: int = 368,
        crop_scale: float = 1.0,
        frames: int = 5,
        clip_fps: float = 2.0,
        source_fps: float = 50.0,
        state: Literal["clip", "sequence"] = "clip",
        stages: int = 3,
        channels: Sequence[Sequence[int]] = VGG_CHANNELS,
        special_channels: int = 128,
        adaption: Adaption = "paper",
        adaption_kernels: int = 128,
        adaption_fc: int = 1024,
        recurrent: Literal["lstm", "fc"] = "lstm",
        hidden: int = 1024,
        share_special: bool = False,
        share_adaption: bool = False,
        share_recurrent: bool = False,
        limb_scale: bool = True,
        alpha: Sequence[float] | None = None,
        scale: Sequence[float] = (0.9, 1.1),
        scale_per: Literal["frame", "clip"] = "frame",
        machine_weights: str | None = None,
        trunk_weights: str | None = None,
        train_trunk: bool = False,
        pretrain_epochs: int = 50,
        pretrain_optimizer: Literal["sgd", "adam"] = "sgd",
        pretrain_lr: float = 1e-4,
        pretrain_momentum: float = 0.9,
        pretrain_decay: float = 5e-4,
        pretrain_scale: Sequence[float] = (0.8, 1.2),
        pretrain_rotation: float = 40.0,
        sigma: float = 0.875,
        epochs: int = 50,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        schedule: Literal["constant", "cosine"] = "constant",
    ) -> None:
        super().__init__()
        # Lists, not tuples, in the saved hyper-parameters: they survive JSON and YAML unchanged.
        channels = [list(group) for group in channels]
        scale, pretrain_scale = list(scale), list(pretrain_scale)
        alpha = None if alpha is None else list(alpha)
        self.save_hyperparameters()
        self._check()
        joints = len(self.skeleton)
        self.trunk = CPMTrunk(channels)
        stride = self.trunk.stride
        if image_size % stride:
            raise UsageError(
                f"rpsm: image_size {image_size} is no multiple of the trunk's stride {stride}"
            )
        self.heatmap = HeatmapLayer(self.trunk.out_channels, joints, stride, sigma)
        self.machine = SequenceMachine(
            self.trunk.out_channels, image_size // stride, 3 * joints, stages, special_channels,
            adaption_kernels, adaption_fc, hidden, adaption, recurrent,
            (share_special, share_adaption, share_recurrent),
        )  # fmt: skip
        self.space = PoseRange(self.skeleton, limb_scale)
        self.register_buffer("alpha", torch.tensor(alpha or [1.0] * stages), persistent=False)
        self.register_buffer("weights_taken", torch.tensor(False))
        self.memory = ClipMemory(max(1, round(frames * source_fps / clip_fps)))

    def _check(self) -> None:
        h = self.hparams
        choices = {
            "state": ("clip", "sequence"), "recurrent": ("lstm", "fc"),
            "scale_per": ("frame", "clip"), "pretrain_optimizer": ("sgd", "adam"),
            "schedule": ("constant", "cosine"),
        }  # fmt: skip
        for name, known in choices.items():
            if h[name] not in known:
                raise UsageError(suggest(str(h[name]), known, f"rpsm {name}"))
        for name in ("frames", "stages"):
            if h[name] < 1:
                raise UsageError(f"rpsm: {name} is {h[name]}; it must be at least 1")
        for name in ("clip_fps", "source_fps", "sigma"):
            if not h[name] > 0:
                raise UsageError(f"rpsm: {name} is {h[name]}; it must be above 0")
        for name in ("scale", "pretrain_scale"):
            if len(h[name]) != 2 or not 0 < h[name][0] <= h[name][1]:
                raise UsageError(
                    f"rpsm: {name} is {h[name]}; give the least and the largest factor, above 0"
                )
        if h["alpha"] is not None and len(h["alpha"]) != h["stages"]:
            raise UsageError(f"rpsm: alpha has {len(h['alpha'])} weights for {h['stages']} stages")
        if h["machine_weights"] and h["trunk_weights"]:
            raise UsageError("rpsm: give machine_weights or trunk_weights, not both")
        if h["recurrent"] == "fc" and h["state"] == "sequence":
            raise UsageError("rpsm: recurrent 'fc' has no state to carry; use state 'clip'")

    # ---- what it is -----------------------------------------------------------------------------

    @property
    def input_spec(self) -> InputSpec:
        """Clips of pictures, all frames of which are predicted."""
        h = self.hparams
        return InputSpec(
            "image", h["image_size"], h["frames"], h["clip_fps"], h["crop_scale"], tiled=True
        )

    def phases(self) -> tuple[Phase, ...]:
        """Sec. 4: the trunk on 2D annotations, then what stands on it."""
        h = self.hparams
        above = ("machine.", "trunk.") if h["train_trunk"] else ("machine.",)
        first = Phase("pretrain", h["pretrain_epochs"], ("trunk.", "heatmap."), h["pretrain_lr"])
        main = Phase("train", h["epochs"], above)
        return (main,) if h["trunk_weights"] else (first, main)

    # ---- what it computes -----------------------------------------------------------------------

    def forward(self, batch: PoseBatch) -> Prediction:
        """The last stage's poses of clips that start with their first frame.

        Args:
            batch: ``image``; any number of frames.

        Returns:
            ``pred_3d`` mm, pelvis at the origin; ``pred_2d`` px, read from the heatmap layer.
        """
        features = self._features(self._images(batch))
        return self._predict(features, self.machine(features)[0])

    def stage_poses(self, batch: PoseBatch) -> Tensor:
        """The poses of every stage, (K, B, T, J, 3) mm."""
        poses, _ = self.machine(self._features(self._images(batch)))
        return self.space.to_mm(poses.movedim(2, 0))

    def _images(self, batch: PoseBatch) -> Tensor:
        size = self.hparams["image_size"]
        if "image" not in batch:
            raise DataError("rpsm: the batch has no 'image'; this method needs pictures")
        image = batch["image"]
        if image.shape[-2:] != (size, size):
            height, width = image.shape[-2:]
            raise DataError(f"rpsm: images are {width} x {height} px; they must be {size} x {size}")
        return image

    def _features(self, image: Tensor) -> Tensor:
        """(B, T, 3, S, S) -> (B, T, C, F, F)."""
        features = self.trunk(image.flatten(0, 1))
        return features.reshape(*image.shape[:2], *features.shape[1:])

    def _predict(self, features: Tensor, poses: Tensor) -> Prediction:
        """(B, T, C, F, F) and (B, T, K, P)."""
        prediction = Prediction(pred_3d=self.space.to_mm(poses[:, :, -1]))
        if not self.hparams["train_trunk"]:
            points = self.heatmap.read(self.heatmap(features.flatten(0, 1)))
            prediction["pred_2d"] = points.reshape(*features.shape[:2], -1, 2)
        return prediction

    @torch.no_grad()
    def stream(self, batch: PoseBatch | None, state: Any = None) -> tuple[Prediction | None, Any]:
        """The next frames of a video, at once and with no look ahead.

        ``state="clip"`` starts afresh with every C-th frame, as in tests of the paper;
        ``"sequence"`` with the video only.
        """
        if batch is None:
            return None, None
        features = self._features(self._images(batch))
        length, clip = features.shape[1], self.hparams["frames"]
        if self.hparams["state"] == "sequence":
            poses, after = self.machine(features, state)
            return self._predict(features, poses), after
        before, position = state or (None, 0)  # the state of a clip, and its frames so far
        parts, at = [], 0
        while at < length:
            piece = features[:, at : at + clip - position]
            poses, before = self.machine(piece, before if position else None)
            parts.append(poses)
            at += piece.shape[1]
            position = (position + piece.shape[1]) % clip
        return self._predict(features, torch.cat(parts, dim=1)), (before, position)

    # ---- training -------------------------------------------------------------------------------

    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        """The loss of the running phase; outside a training that of the last one.

        Args:
            batch: ``image``; ``joints_2d`` and ``valid_2d`` in the first phase, ``joints_3d`` and
                ``valid_3d`` in the main one.

        Returns:
            ``loss``: half the squares of the heatmaps, mean over labelled frames; or Eq. 2 over
            P and the labelled frames, and its part of each stage, ``loss_stage1`` ...
        """
        image = self._images(batch)
        if self.phase is not None and self.phase.name == "pretrain":
            frames, points = image.flatten(0, 1), batch["joints_2d"].flatten(0, 1)
            if self.training:
                frames, points = self._turn(frames, points)
            maps = self.heatmap(self.trunk(frames))
            return {"loss": self.heatmap.loss(maps, points, batch["valid_2d"].flatten(0, 1))}
        if self.training:
            image = self._rescale(image)
        poses, _ = self.machine(self._features(image))
        clips, frames_a_clip = poses.shape[:2]
        target, known = self.space.target(
            batch["joints_3d"].flatten(0, 1), batch["valid_3d"].flatten(0, 1)
        )
        target, known = (v.reshape(clips, frames_a_clip, -1) for v in (target, known))
        labelled = process_share(known.any(dim=2).sum()) * self.machine.outputs
        result = {"loss": sequence_loss(poses, target, known, self.alpha).sum() / labelled}
        stages = stage_squares(poses.detach(), target, known).sum(dim=(0, 1)) / labelled
        return result | {f"loss_stage{k + 1}": value for k, value in enumerate(stages)}

    def _rescale(self, image: Tensor) -> Tensor:
        """A factor and a place for every frame (or clip), sec. 4."""
        low, high = self.hparams["scale"]
        if low == high == 1:
            return image
        per_clip = self.hparams["scale_per"] == "clip"
        draw = torch.rand(len(image), 1 if per_clip else image.shape[1], 3, device=image.device)
        draw = draw.expand(-1, image.shape[1], -1).flatten(0, 1)
        scaled = rescale_frames(image.flatten(0, 1), low + (high - low) * draw[:, 0], draw[:, 1:])
        return scaled.view(image.shape)

    def _turn(self, image: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """CPM's augmentation: a factor for half of the frames, a turn for all."""
        low, high = self.hparams["pretrain_scale"]
        largest = math.radians(self.hparams["pretrain_rotation"])
        if low == high == 1 and largest == 0:
            return image, points
        draw = torch.rand(len(image), 3, device=image.device)
        factor = torch.where(draw[:, 0] < 0.5, low + (high - low) * draw[:, 1], 1.0)
        return turn_frames(image, points, factor, largest * (2 * draw[:, 2] - 1))

    def fit_statistics(self, poses: PoseBatch) -> None:
        """Limb lengths and extrema of the training poses; nothing if no phase needs them.

        Raises:
            DataError: a joint is in none of the poses.
        """
        if self.hparams["epochs"] > 0:
            self.space.fit(poses["joints_3d"].flatten(0, 1), poses["valid_3d"].flatten(0, 1))
        self.statistics_fitted.fill_(True)

    def on_fit_start(self) -> None:
        """Fits the statistics and takes the trunk over, once: a checkpoint has both already."""
        fitted = bool(self.statistics_fitted)
        super().on_fit_start()
        if self.hparams["limb_scale"] and self.hparams["epochs"] > 0 and not fitted:
            rank_zero_info(
                "rpsm: limbs of the targets have the mean training lengths; perfect targets would "
                f"have an error of {float(self.space.floor_mm):.1f} mm (--model.limb_scale)"
            )
        trunk, machine = self.hparams["trunk_weights"], self.hparams["machine_weights"]
        if (trunk or machine) and not bool(self.weights_taken):
            from zoo.checkpoint import take_parts

            if trunk:
                take_parts(self, trunk, ("trunk.", "heatmap."))
            else:
                take_parts(self, machine, ("trunk.",), where="network.machine.")
            self.weights_taken.fill_(True)

    def configure_optimizers(self) -> Any:
        """Sec. 4: SGD for the 2D pre-training, Adam for the rest."""
        h, phase = self.hparams, self.phase
        first = phase is not None and phase.name == "pretrain"
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer: torch.optim.Optimizer
        if first and h["pretrain_optimizer"] == "sgd":
            optimizer = torch.optim.SGD(
                trained, h["pretrain_lr"], h["pretrain_momentum"],
                weight_decay=h["pretrain_decay"],
            )  # fmt: skip
        elif first:
            optimizer = adam(self, trained, h["pretrain_lr"], h["pretrain_decay"])
        else:
            optimizer = adam(self, trained, h["lr"], h["weight_decay"])
        if h["schedule"] == "constant":
            return optimizer
        return cosine_over_phase(self, optimizer)

    # ---- validation and test --------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Metrics with the error of every stage."""
        super().setup(stage)
        names = [f"mpjpe_stage{k + 1}_mm" for k in range(self.hparams["stages"])]
        for name in ("val_metrics", "test_metrics"):
            plain = getattr(self, name)
            if plain is not None:
                metrics = StagePoseMetrics(names, plain.protocol, self.skeleton, plain.action_names)
                setattr(self, name, metrics.to(self.device))

    def on_validation_epoch_start(self) -> None:
        """No state goes on from an earlier validation."""
        self.memory.clear()

    def on_test_epoch_start(self) -> None:
        """No state goes on from an earlier test."""
        self.memory.clear()

    def on_predict_epoch_start(self) -> None:
        """No state goes on from an earlier prediction."""
        self.memory.clear()

    def predict_step(self, batch: PoseBatch, batch_idx: int) -> Prediction:
        """The prediction alone."""
        features = self._features(self._images(batch))
        return self._predict(features, self._evaluated(batch, features))

    def _evaluate(self, batch: PoseBatch, metrics: PoseMetrics | None) -> Prediction:
        features = self._features(self._images(batch))
        poses = self._evaluated(batch, features)
        prediction = self._predict(features, poses)
        if metrics is not None:
            extra = {"stage_3d": self.space.to_mm(poses.movedim(2, 0))}
            metrics.update(prediction, cast(PoseBatch, {**batch, **extra}))
        return prediction

    def _evaluated(self, batch: PoseBatch, features: Tensor) -> Tensor:
        """(B, T, C, F, F) -> (B, T, K, P), with the states of earlier clips if they go on."""
        keys = self.memory.keys(batch) if self.hparams["state"] == "sequence" else []
        if not keys:
            poses: Tensor = self.machine(features)[0]
            return poses
        if self.trainer.world_size > 1:
            raise UsageError(
                "rpsm: state 'sequence' follows a recording from clip to clip, and N processes "
                "share them out; test on one (--gpus 1), or with --model.state clip"
            )
        result = features.new_zeros(
            *features.shape[:2], self.machine.stages, self.machine.outputs, dtype=torch.float32
        )
        for wave in self.memory.order(keys):
            fresh = self.machine.start(1, features.device)
            found = [self.memory.recall(keys[i]) or tuple(s[0] for s in fresh) for i in wave]
            before = cast(State, tuple(torch.stack([s[i] for s in found]) for i in (0, 1)))
            result[wave], after = self.machine(features[wave], before)
            for place, i in enumerate(wave):
                self.memory.keep(keys[i], (after[0][place], after[1][place]))
        return result

    @classmethod
    def tiny(cls) -> RPSM:
        """Every mechanism on 32 px images, 8 x 8 cells."""
        return cls(
            image_size=32, frames=3, stages=2, channels=[[4], [8], [8, 8]], special_channels=6,
            adaption_kernels=6, adaption_fc=12, hidden=10, pretrain_epochs=1, epochs=2,
        )  # fmt: skip
