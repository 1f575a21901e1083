"""Regression into the latent space of a pose autoencoder, and temporal refinement.

Isinsu Katircioglu, Bugra Tekin, Mathieu Salzmann, Vincent Lepetit, Pascal Fua: "Learning Latent
Representations of 3D Human Pose with Deep Neural Networks", IJCV 2018 (online 2017). Equations,
sections and tables are of that paper.

**In**: ``image`` (B, T, 3, 128, 128), or 2D joints in px of a 128 px crop, drawn as heatmaps; a
112 px part is seen, random in training, the middle in evaluation. **Out**: ``pred_3d`` mm. Without
``temporal`` a sample is one frame (T = 1). With it, it is T = 5 frames at 10 fps (5 frames apart at
50 fps), and the centre frame is predicted.

=====================  ===========================================================================
CNN-Direct             ``LatentPose(head="direct")``
CNN-ExtraFC[2000]      ``LatentPose(head="extrafc")``
CNN-PCA[40]            ``LatentPose(head="pca", components=40)``
2 layers, FT           ``LatentPose()``; one layer: ``hidden=[2000]``; no FT: ``finetune_epochs=0``
ShallowNet-Hm          ``LatentPose(input="heatmap")``
ResNet                 ``LatentPose(backbone="resnet50")``
BLSTM-Pose             ``LatentPose(backbone="resnet50", temporal="blstm")``
BLSTM-Feature          the same with ``level="feature"``
=====================  ===========================================================================

**Stages** (``phases()``): 2D detection (images only; sec. 3.2 starts the convolutions from it), the
autoencoder layer by layer and as a whole (Eq. 2), latent regression (Eq. 3), fine-tuning (Eq. 4),
the temporal head (Eq. 7 or 8). The best weights of each feed the next.

**Choices where the paper is silent or has two readings**

* Widths: 32, 64, 64 maps with "same" padding, layers of 1024, 2048 and 4096.
* The ResNet ends at its fourth level (conv4_x; "up to level 5", "features of level 4"); the two
  convolutions are 3x3, the first with stride 2. It sees the same 112 px patches.
* The decoder's hidden layer is linear as the text says (``decoder_hidden_act``).
* Greedy layers have the Jacobian of their own map, the last stage that of the whole encoder.
  Missing entries of ``noise`` repeat the last one.
* The target of Eq. 3 is the code of the clean pose, by the frozen autoencoder. Eq. 4 trains a
  copy of the decoder; the encoder takes no part any more.
* The regressor, and the last layer of a temporal head, count from the mean of their targets in
  units of their deviation from it (:class:`zoo.layers.TargetLinear`). In the paper's mm both are
  far from what Adam reaches in time; and a plain layer on an overcomplete code, whose units vary
  little, killed the features below it. Images are centred and scaled by constants.
* The window is symmetric about its frame (``T / 2`` is no integer for T = 5); ``causal`` windows
  end at it. LSTMs of 512 a direction; BLSTM-Pose ends in one linear layer (sec. 5.2),
  BLSTM-Feature goes through the decoder (sec. 4.2.2; with ``head="direct"`` it does not). Poses
  enter and leave BLSTM-Pose relative to the mean training pose, in units of their deviation from
  it: in mm they would saturate every gate.
* PCA's mean and directions are fine-tuned as a decoder (``finetune_epochs=0``: not).
* A pose with missing joints: its gaps are filled by the mean pose, for codes by the autoencoder's
  reconstruction of that; they carry no loss.
* The pelvis is predicted like other joints, and reported as 0, its value by definition.

**Differences from the paper**: one model for all actions; heatmaps are drawn at 2D joints of any
source in place of a stacked hourglass's; no early stopping, but the best epoch by validation.

**Source**: own work from the paper; no code was available.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from zoo.autoencoder import LinearDecoder, TiedAutoencoder
from zoo.base import InputSpec, Phase
from zoo.batch import PoseBatch, Prediction
from zoo.errors import UsageError, suggest
from zoo.layers import TargetLinear
from zoo.methods.latent.baselines import PoseBasis
from zoo.methods.latent.common import LatentModule
from zoo.methods.latent.loss import autoencoder_loss, latent_loss, pose_loss
from zoo.methods.latent.network import Detector, LevelTrunk, ShallowTrunk
from zoo.recurrent import RECURRENT_KINDS, window_head, window_index
from zoo.skeleton import get_skeleton

__all__ = ["LatentPose"]

HEADS = ("ae", "pca", "direct", "extrafc")


class LatentPose(LatentModule):
    """Katircioglu et al. 2017; defaults are ShallowNet-Autoencoder with two layers, fine-tuned.

    Args:
        input: ``image``, or ``heatmap``: 2D joints drawn as heatmaps.
        head: what the CNN regresses: the code of the autoencoder (``ae``), principal components
            (``pca``), the pose (``direct``), or the pose after one more layer (``extrafc``).
        image_size: side of ``image``, and of the crop that 2D joints are in, in px.
        crop_size: side of the part of it that the network sees.
        channels: of the three convolutions of the shallow CNN.
        fc: widths of its fully connected layers.
        dropout: after each of them.
        backbone: timm model instead of the shallow CNN.
        backbone_pretrained: start from timm's weights.
        backbone_level: last level of it that is used.
        frozen_levels: levels that the 3D stages keep constant.
        extra_channels: of the two convolutions after it.
        hidden: widths of the autoencoder's layers.
        decoder_hidden_act: ``linear``, or ``relu`` between the decoder's layers.
        noise: standard deviation of the noise on each layer's input, mm.
        contractive: lambda of Eq. 2, for poses in mm.
        penalty_probes: random probes a pose in place of the exact penalty of a deep encoder; 0 is
            exact.
        components: of ``pca``.
        extra_fc: width of the layer of ``extrafc``.
        unit_mm: unit that poses are trained in; noise and lambda are converted. Eq. 2 is the same
            up to a factor (sec. 3.1); the CNN's effective step size is not.
        temporal: ``none``, ``lstm``, ``blstm``, or ``fc`` (the control of sec. 5.4).
        level: ``pose``: the temporal head sees the poses of the frames (Eq. 6). ``feature``: it
            sees the features of a frozen CNN-Direct and gives the code (Eq. 8).
        frames: T.
        clip_fps: rate of the frames of a window.
        causal: the window ends at the predicted frame.
        recurrent_hidden: size of each direction of the LSTM.
        recurrent_layers: stacked LSTM layers.
        temporal_fc: width of ``fc``.
        train_decoder: let Eq. 8 train the decoder too.
        heatmap_cells: side of the heatmaps before they are enlarged.
        heatmap_sigma: standard deviation of the Gaussians, in cells.
        noise_2d: standard deviation in px of noise on 2D joints, in training, with heatmap input.
        missing_2d: probability that training hides a 2D joint, with heatmap input.
        detect_epochs: length of the 2D detection stage.
        layer_epochs: of the greedy training of each autoencoder layer, where there are several.
        ae_epochs: of the training of the whole autoencoder.
        regress_epochs: of latent regression.
        finetune_epochs: of fine-tuning; 0 keeps the autoencoder's decoder ("no FT").
        direct_epochs: of the training of ``direct`` and ``extrafc``, and of the frozen CNN-Direct.
        temporal_epochs: of the temporal head.
        lr: learning rate of Adam.
        finetune_lr: the same in fine-tuning.
        autoencoder_weights: checkpoint or weights whose autoencoder is taken; its stages are then
            left out. Read when a training starts, never needed afterwards.
        base_weights: the same for the single-frame part (CNN, decoder and autoencoder): only the
            temporal head trains.
    """

    decoder_ready: Tensor
    regressor_ready: Tensor
    temporal_ready: Tensor

    def __init__(
        self,
        input: Literal["image", "heatmap"] = "image",
        head: Literal["ae", "pca", "direct", "extrafc"] = "ae",
        image_size: int = 128,
        crop_size: int = 112,
        channels: Sequence[int] = (32, 64, 64),
        fc: Sequence[int] = (1024, 2048, 4096),
        dropout: float = 0.5,
        backbone: str | None = None,
        backbone_pretrained: bool = False,
        backbone_level: int = 4,
        frozen_levels: int = 3,
        extra_channels: Sequence[int] = (512, 128),
        hidden: Sequence[int] = (300, 300),
        decoder_hidden_act: Literal["linear", "relu"] = "linear",
        noise: Sequence[float] = (40.0, 20.0),
        contractive: float = 0.1,
        penalty_probes: int = 0,
        components: int = 40,
        extra_fc: int = 2000,
        unit_mm: float = 1.0,
        temporal: Literal["none", "lstm", "blstm", "fc"] = "none",
        level: Literal["pose", "feature"] = "pose",
        frames: int = 5,
        clip_fps: float = 10.0,
        causal: bool = False,
        recurrent_hidden: int = 512,
        recurrent_layers: int = 2,
        temporal_fc: int = 2829,
        train_decoder: bool = True,
        heatmap_cells: int = 64,
        heatmap_sigma: float = 1.0,
        noise_2d: float = 0.0,
        missing_2d: float = 0.0,
        detect_epochs: int = 10,
        layer_epochs: int = 10,
        ae_epochs: int = 20,
        regress_epochs: int = 40,
        finetune_epochs: int = 40,
        direct_epochs: int = 80,
        temporal_epochs: int = 20,
        lr: float = 0.001,
        finetune_lr: float = 0.001,
        autoencoder_weights: str = "",
        base_weights: str = "",
    ) -> None:
        super().__init__()
        # Lists, not tuples, in the saved hyper-parameters: they survive JSON and YAML unchanged.
        channels, fc, extra_channels = list(channels), list(fc), list(extra_channels)
        hidden, noise = list(hidden), list(noise)
        self.save_hyperparameters()
        self._check()
        self._check_sizes()
        joints = len(get_skeleton(self.skeleton_name))
        pose_size = 3 * joints
        in_channels = 3 if input == "image" else len(self.heatmap_joints.target)
        self.trunk: ShallowTrunk | LevelTrunk
        if backbone is None:
            self.trunk = ShallowTrunk(in_channels, crop_size, channels, fc, dropout)
        else:
            self.trunk = LevelTrunk(
                backbone, in_channels, crop_size, backbone_level, frozen_levels, extra_channels,
                backbone_pretrained,
            )  # fmt: skip
        self.detector: Detector | None = None
        if input == "image":
            self.detector = Detector(self.trunk.map_channels, joints, crop_size)

        self.autoencoder: TiedAutoencoder | None = None
        self.basis: PoseBasis | None = None
        self.decoder: LinearDecoder | None = None
        relu = decoder_hidden_act == "relu"
        if head == "ae":
            self.autoencoder = TiedAutoencoder(pose_size, hidden, relu)
            self.decoder = LinearDecoder.like(self.autoencoder)
        elif head == "pca":
            self.basis = PoseBasis(pose_size, components)
            self.decoder = LinearDecoder([components, pose_size])
        code = self._codec.latent_features if self._codec is not None else pose_size

        features = self.trunk.num_features
        outputs = code if not self._features_refined else pose_size
        self.regressor = nn.Sequential(TargetLinear(features, outputs))
        if head == "extrafc":
            self.regressor = nn.Sequential(
                nn.Linear(features, extra_fc), nn.ReLU(), nn.Dropout(dropout),
                TargetLinear(extra_fc, outputs),
            )  # fmt: skip
        self.refiner: nn.Module | None = None
        if temporal != "none":
            sizes = (features, code) if self._features_refined else (pose_size, pose_size)
            self.refiner = window_head(
                temporal, *sizes, frames, recurrent_hidden, recurrent_layers, temporal_fc
            )
        for flag in ("decoder_ready", "regressor_ready", "temporal_ready"):
            self.register_buffer(flag, torch.tensor(False))

    def _check(self) -> None:
        h = self.hparams
        kinds: tuple[tuple[str, Sequence[str]], ...] = (
            ("input", ("image", "heatmap")), ("head", HEADS), ("level", ("pose", "feature")),
            ("temporal", ("none", *RECURRENT_KINDS)), ("decoder_hidden_act", ("linear", "relu")),
        )  # fmt: skip
        for name, known in kinds:
            if h[name] not in known:
                raise UsageError(suggest(str(h[name]), known, f"latent {name}"))
        if not h["noise"]:
            raise UsageError("latent: noise is empty; give a standard deviation in mm, 0 for none")
        if h["frames"] < 1:
            raise UsageError(f"latent: frames is {h['frames']}; it must be at least 1")

    # ---- what it is -----------------------------------------------------------------------------

    @property
    def _features_refined(self) -> bool:
        return self.hparams["temporal"] != "none" and self.hparams["level"] == "feature"

    @property
    def _codec(self) -> TiedAutoencoder | PoseBasis | None:
        return self.autoencoder or self.basis

    @property
    def input_spec(self) -> InputSpec:
        """One frame or a window of them; 2D joints suffice for heatmaps."""
        h = self.hparams
        kind: Literal["image", "keypoints"] = "image" if h["input"] == "image" else "keypoints"
        spec = InputSpec(kind, h["image_size"], frames=1, crop_scale=1.25)
        if h["temporal"] == "none":
            return spec
        return replace(spec, frames=h["frames"], clip_fps=h["clip_fps"])

    @property
    def predicted_frames(self) -> tuple[int, ...]:
        """The centre of the window, or its end if causal."""
        if self.refiner is None:
            return (0,)
        frames = self.hparams["frames"]
        return (frames - 1,) if self.hparams["causal"] else (frames // 2,)

    def phases(self) -> tuple[Phase, ...]:
        """Detection, autoencoder, regression, fine-tuning, temporal head: those that apply."""
        h = self.hparams
        trunk = tuple(f"trunk.{part}." for part in self.trunk.trained_parts)
        cnn = (*trunk, "regressor.")
        stages: list[Phase] = []
        if not h["base_weights"]:
            if self.detector is not None:
                convs = tuple(f"trunk.{part}." for part in self.trunk.conv_parts)
                stages.append(self._stage("detect", "detect_epochs", (*convs, "detector.")))
            if self._features_refined or h["head"] in ("direct", "extrafc"):
                stages.append(self._stage("direct", "direct_epochs", cnn, "val/mpjpe_mm"))
        if self.autoencoder is not None and not (
            h["autoencoder_weights"] or (h["base_weights"] and not self._features_refined)
        ):
            layers = len(self.autoencoder.layers)
            for j in range(layers if layers > 1 else 0):
                stages.append(
                    self._stage(f"ae{j + 1}", "layer_epochs", (f"autoencoder.layers.{j}.",))
                )
            stages.append(self._stage("ae", "ae_epochs", ("autoencoder.",)))
        if self._codec is not None and not (h["base_weights"] or self._features_refined):
            stages.append(self._stage("regress", "regress_epochs", cnn))
            fine = self._stage("finetune", "finetune_epochs", (*cnn, "decoder."), "val/mpjpe_mm")
            stages.append(replace(fine, lr=h["finetune_lr"]))
        if self.refiner is not None:
            decoder = self._features_refined and self.decoder is not None and h["train_decoder"]
            parts = ("refiner.", "decoder.") if decoder else ("refiner.",)
            stages.append(self._stage("temporal", "temporal_epochs", parts, "val/mpjpe_mm"))
        stages = [stage for stage in stages if stage.epochs > 0]
        # Poses of a CNN under a temporal head are not what is validated: only its loss is.
        return tuple(
            replace(stage, monitor=f"val/{stage.name}_loss")
            if stage.monitor is None or (self.refiner is not None and stage.name != "temporal")
            else stage
            for stage in stages
        )

    def _stage(
        self, name: str, epochs: str, train: tuple[str, ...], monitor: str | None = None
    ) -> Phase:
        return Phase(name, self.hparams[epochs], train, monitor=monitor)

    # ---- the network ----------------------------------------------------------------------------

    def forward(self, batch: PoseBatch) -> Prediction:
        """The decoded code (sec. 3.3), through the temporal head if there is one (sec. 4.2).

        Args:
            batch: ``image``, or ``joints_2d`` and ``valid_2d``; the crop is random in training
                mode, else the middle.

        Returns:
            ``pred_3d`` mm, pelvis at the origin.
        """
        maps, _ = self._maps(batch)
        features = self.trunk(maps)
        pose = self._refine(features, batch) if self.refiner is not None else self._pose(features)
        samples, frames = len(batch["joints_2d"]), len(self.predicted_frames)
        return Prediction(pred_3d=self._to_mm(pose).reshape(samples, frames, -1, 3))

    def _pose(self, features: Tensor) -> Tensor:
        """(N, F) features -> (N, P) poses in units, one frame each."""
        code = self.regressor(features)
        return code if self.decoder is None or self._features_refined else self.decoder(code)

    def _refine(self, features: Tensor, batch: PoseBatch) -> Tensor:
        """(B T, F) features of windows -> (B, P) poses in units (Eq. 6-8)."""
        window = features if self._features_refined else self._pose(features)
        return self._refine_window(self._windows(window, batch))

    def _windows(self, vectors: Tensor, batch: PoseBatch) -> Tensor:
        """(B T, F) -> (B, T, F)."""
        return vectors.reshape(len(batch["joints_2d"]), -1, vectors.shape[-1])

    def _refine_window(self, window: Tensor) -> Tensor:
        """(B, T, F or P) -> (B, P) in units."""
        assert self.refiner is not None
        if not self._features_refined:
            return self.refiner((window - self.mean_pose) / self.pose_std)
        code = self.refiner(window)
        return code if self.decoder is None else self.decoder(code)

    @torch.no_grad()
    def predict_recording(self, batch: PoseBatch, stride: int = 5, chunk: int = 64) -> Tensor:
        """A pose for every frame of a recording.

        Args:
            batch: one sample (B = 1) whose T axis is the whole recording.
            stride: frames of the recording between two frames of a window.
            chunk: frames a forward pass of the CNN.

        Returns:
            (T, J, 3) mm. Frames whose window leaves the recording keep their single-frame pose
            (the paper excludes them); so do all frames without a temporal head.
        """
        training = self.training
        self.eval()
        keys = ("image", "joints_2d", "valid_2d")
        length = batch["joints_2d"].shape[1]
        parts = []
        for first in range(0, length, chunk):
            cut = {k: v[:, first : first + chunk] for k, v in batch.items() if k in keys}  # type: ignore[index]
            parts.append(self.trunk(self._maps(cast(PoseBatch, cut))[0]))
        features = torch.cat(parts)
        poses = self._pose(features)
        if self.refiner is not None:
            h = self.hparams
            index, inside = window_index(length, h["frames"], stride, h["causal"])
            if bool(inside.any()):
                source = features if self._features_refined else poses
                poses[inside] = self._refine_window(source[index[inside]])
        self.train(training)
        return self._to_mm(poses)

    @torch.no_grad()
    def stream(self, batch: PoseBatch | None, state: Any = None) -> tuple[Prediction | None, Any]:
        """The next frames of a video; each frame goes through the CNN once.

        A frame comes when its window is complete, T // 2 frames later (at once if ``causal``). In
        total the poses are those of ``predict_recording`` with a stride of 1.
        """
        if self.refiner is None:
            return super().stream(batch, state)
        frames = self.hparams["frames"]
        before = frames - 1 if self.hparams["causal"] else frames // 2
        # What windows are made of, single-frame poses, from frame `first` on; seen, given.
        vectors: Tensor | None
        poses: Tensor | None
        vectors, poses, first, seen, given = state or (None, None, 0, 0, 0)
        if batch is not None:
            features = self.trunk(self._maps(batch)[0])
            single = self._pose(features)
            new = features if self._features_refined else single
            vectors = new if vectors is None else torch.cat((vectors, new))
            poses = single if poses is None else torch.cat((poses, single))
            seen += len(new)
        if vectors is None or poses is None:
            return None, None
        after = frames - 1 - before
        ready = seen if batch is None else max(given, seen - after)
        result = None
        if ready > given:
            at = torch.arange(given, ready)
            index = at[:, None] + torch.arange(-before, after + 1)
            inside = ((index >= 0) & (index < seen)).all(1)
            found = poses[at - first].clone()
            if bool(inside.any()):
                found[inside] = self._refine_window(vectors[index[inside] - first])
            result = Prediction(pred_3d=self._to_mm(found)[None])
        if batch is None:
            return result, None
        start = max(first, ready - before)
        # Copies: a slice would keep all frames of this call in memory.
        kept = (vectors[start - first :].clone(), poses[start - first :].clone())
        return result, (*kept, start, seen, ready)

    # ---- losses ---------------------------------------------------------------------------------

    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        """The loss of the running phase; outside a training that of the last one.

        Args:
            batch: the network's input, ``joints_3d`` and ``valid_3d``; in the 2D stage
                ``joints_2d`` and ``valid_2d``. All frames of a window are samples of the
                single-frame stages.

        Returns:
            ``loss`` in squared units, summed over dimensions, mean over samples; in the stages of
            the autoencoder its parts, too.
        """
        stage = self.phases()[-1].name if self.phase is None else self.phase.name
        if stage.startswith("ae"):
            return self._autoencoder_loss(stage, batch)
        maps, corner = self._maps(batch)
        if stage == "detect":
            assert self.detector is not None
            points = batch["joints_2d"] - corner[:, None, None]
            return {
                "loss": self.detector.loss(
                    self.trunk.maps(maps), points.flatten(0, 1), batch["valid_2d"].flatten(0, 1)
                )
            }
        if stage == "temporal":
            with torch.no_grad():
                features = self.trunk(maps)
                if not self._features_refined:
                    features = self._pose(features)
            window = self._windows(features, batch)
            target, known = self._targets(self.select_frames(batch))
            return {"loss": pose_loss(self._refine_window(window), target, known)}
        target, known = self._targets(batch)
        code = self.regressor(self.trunk(maps))
        if stage == "direct":
            return {"loss": pose_loss(code, target, known)}
        assert self.decoder is not None
        if stage == "finetune":
            return {"loss": pose_loss(self.decoder(code), target, known)}
        return {"loss": latent_loss(code, self._code(target, known), known)}

    @torch.no_grad()
    def _code(self, pose: Tensor, known: Tensor) -> Tensor:
        """h_L of clean poses; gaps are completed by the codec's own reconstruction."""
        codec = self._codec
        assert codec is not None
        complete = torch.where(known, pose, codec.decode(codec.encode(pose)))
        return codec.encode(complete)

    @torch.no_grad()
    def pose_codes(self, joints: Tensor) -> Tensor | None:
        """h_L of complete poses (N, J, 3) mm, (N, D); ``None`` for a model without autoencoder."""
        if self.autoencoder is None:
            return None
        return self.autoencoder.encode(
            joints.to(self.mean_pose).flatten(1) / self.hparams["unit_mm"]
        )

    def _autoencoder_loss(self, stage: str, batch: PoseBatch) -> dict[str, Tensor]:
        """Eq. 2 in units: noise / c, lambda / c^2."""
        h, autoencoder = self.hparams, self.autoencoder
        assert autoencoder is not None
        pose, known = self._targets(batch)
        penalty = h["contractive"] / h["unit_mm"] ** 2
        whole = stage == "ae"
        index = 0 if whole else int(stage[2:]) - 1
        std = h["noise"][min(index, len(h["noise"]) - 1)] / h["unit_mm"]
        noise = None
        if self._validation_noise is not None:
            width = [autoencoder.in_features, *autoencoder.hidden][index]
            noise = torch.randn(len(pose), width, generator=self._validation_noise).to(pose)
        if whole:
            errors, contraction = autoencoder.terms(
                pose, std, penalty, noise, h["penalty_probes"] if self.training else 0
            )
        else:
            errors, contraction = autoencoder.layer_terms(index, pose, std, penalty, noise)
        return autoencoder_loss(errors, contraction, known, of_codes=index > 0)

    # ---- fitting --------------------------------------------------------------------------------

    def fit_statistics(self, poses: PoseBatch) -> None:
        """Mean pose, deviation from it, and the principal components, all in units.

        Raises:
            DataError: a joint is in none of the poses.
        """
        filled, known = self._fit_mean(poses)
        if self.basis is not None:
            self.basis.fit(filled[known.all(dim=1)])
        self.statistics_fitted.fill_(True)

    def _take_weights(self) -> None:
        base, autoencoder = self.hparams["base_weights"], self.hparams["autoencoder_weights"]
        if base:
            parts: tuple[str, ...] = ("trunk.", "regressor.")
            # Under BLSTM-Feature lies a CNN-Direct, without autoencoder and decoder.
            if not self._features_refined:
                parts += ("decoder.", "autoencoder.", "basis.")
                self.decoder_ready.fill_(True)
            self._take(base, parts)
            self.regressor_ready.fill_(True)
        if autoencoder:
            self._take(autoencoder, ("autoencoder.",))

    def on_train_epoch_start(self) -> None:
        """At the first epoch of a stage: the decoder's copy, and the targets' mean and deviation.

        ``TrainingPhases`` has loaded the best weights of the stage before. What is done is kept in
        buffers, so that a resumed training does not do it again; training poses are the same on
        every process, and so is the result.
        """
        stage = "" if self.phase is None else self.phase.name
        if stage in ("direct", "regress", "finetune", "temporal"):
            self._prepare(stage)

    @torch.no_grad()
    def _prepare(self, stage: str) -> None:
        codec = self._codec
        refined = self._features_refined
        needs_decoder = stage == "temporal" or not refined
        if codec is not None and self.decoder is not None and needs_decoder:
            if not bool(self.decoder_ready):
                self.decoder.copy_(codec.decoder_weights())
            self.decoder_ready.fill_(True)
        if stage != "temporal" and not bool(self.regressor_ready):
            last = cast(TargetLinear, self.regressor[-1])
            last.calibrate(*self._target_statistics(of_codes=codec is not None and not refined))
            self.regressor_ready.fill_(True)
        if stage == "temporal" and not bool(self.temporal_ready):
            merge = cast(TargetLinear, cast(Any, self.refiner).merge)
            merge.calibrate(*self._target_statistics(of_codes=codec is not None and refined))
            self.temporal_ready.fill_(True)

    def _target_statistics(self, of_codes: bool, count: int = 4096) -> tuple[Tensor, Tensor]:
        """Mean and deviation from it of training poses, or of their codes g(y), in units.

        A training from bare loaders knows no poses (``on_fit_start``): mean pose and deviation are
        then 0 and 1, and the code is that of the mean pose.
        """
        if not of_codes:
            return self.mean_pose, self.pose_std
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None:
            assert self._codec is not None
            return self._codec.encode(self.mean_pose), self.pose_std
        poses = cast(PoseBatch, datamodule.training_poses())
        step = max(1, len(poses["joints_3d"]) // count)
        cut = {k: poses[k][::step].to(self.device) for k in ("joints_3d", "valid_3d")}
        codes = self._code(*self._targets(cast(PoseBatch, cut)))
        mean = codes.mean(dim=0)
        return mean, (codes - mean).square().mean().sqrt()

    @classmethod
    def tiny(cls) -> LatentPose:
        """Every single-frame stage on 32 px images."""
        return cls(
            image_size=32, crop_size=28, channels=(4, 6, 6), fc=(12, 12, 16), dropout=0.2,
            extra_channels=(8, 4), hidden=(24, 20), components=12, extra_fc=16, unit_mm=300.0,
            recurrent_hidden=8, temporal_fc=16, heatmap_cells=16, detect_epochs=1, layer_epochs=1,
            ae_epochs=1, regress_epochs=1, finetune_epochs=1, direct_epochs=1, temporal_epochs=1,
        )  # fmt: skip
