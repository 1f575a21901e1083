"""``PoseModule``: what every method shares, and the contract of a plugin.

A method subclasses :class:`PoseModule` and writes ``__init__`` (every size, loss weight and rate an
argument), ``forward``, ``compute_loss``, ``configure_optimizers``, ``input_spec`` and ``tiny``. The
steps, the logging, the metrics, the statistics of the training set and ``predict`` are here.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from zoo.batch import FRAME_KEYS, PoseBatch, Prediction
from zoo.errors import UsageError
from zoo.skeleton import Skeleton, get_skeleton

if TYPE_CHECKING:
    from zoo.correction import Correction
    from zoo.metrics import PoseMetrics
    from zoo.pose import Pose
    from zoo.predict_video import FramePoses
    from zoo.projector import CorrectionTerms

    Corrector = Callable[[PoseBatch, CorrectionTerms | None], Prediction]

__all__ = ["InputSpec", "Phase", "PoseModule", "step_seed"]


@dataclass(frozen=True)
class InputSpec:
    """What a method wants to be fed; the command line hands it to the datamodule.

    Attributes:
        kind: ``image`` (needs ``batch["image"]``) or ``keypoints`` (2D joints suffice, nothing is
            rendered or decoded).
        image_size: side in px of the square crop in ``batch["image"]``; the unit of ``joints_2d``.
        frames: T, the number of frames of a clip.
        clip_fps: rate of the frames inside a clip; ignored for one frame.
        crop_scale: side of the crop over the longer side of the person's 2D box.
        tiled: validation and test of recordings cut them into clips side by side, each frame once,
            for methods that predict all frames of a clip; else a clip is centred on every frame.
    """

    kind: Literal["image", "keypoints"] = "image"
    image_size: int = 128
    frames: int = 1
    clip_fps: float = 10.0
    crop_scale: float = 1.25
    tiled: bool = False


@dataclass(frozen=True)
class Phase:
    """One stage of a staged training; ``callbacks.phases.TrainingPhases`` runs the list in order.

    Attributes:
        name: read by the method as ``self.phase.name`` in ``compute_loss`` and
            ``configure_optimizers``.
        epochs: length.
        train: prefixes of the parameter names that train; the rest is frozen and in eval mode.
            ``("",)`` trains everything.
        lr: learning rate of this phase; ``None`` keeps the method's own.
        monitor: logged key whose best weights feed the next phase; ``None`` feeds the last weights.
    """

    name: str
    epochs: int
    train: tuple[str, ...] = ("",)
    lr: float | None = None
    monitor: str | None = None


def step_seed(seed: int, epoch: int, batch: int, rank: int) -> int:
    """The seed of one training step on one process: 63 bits that scatter the four numbers."""
    packed = struct.pack("<4q", seed & 0x7FFFFFFFFFFFFFFF, epoch, batch, rank)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


class PoseModule(pl.LightningModule):
    """Base class of every method of the zoo.

    The contract, checked by ``zoo.testing.check_method``:

    * ``forward(batch)`` returns a :class:`~zoo.batch.Prediction` in train and eval mode alike, in
      mm and px, whatever the method's own normalisation; it accepts joints that are not valid.
    * ``compute_loss(batch)`` returns a dict of scalars; ``"loss"`` is the one that is minimised.
      Joints with ``valid_2d``/``valid_3d`` false, and nothing else, carry no loss.
    * fitted parts without gradients (means, bases, scales) are buffers, filled by
      ``fit_statistics`` from training poses, so they travel in the checkpoint.
    * ``phases()`` lists the training stages; most methods have one.
    * constructor arguments are plain values (numbers, strings, lists, dicts, None), and
      ``save_hyperparameters()`` is called.
    """

    skeleton_name: ClassVar[str] = "h36m_17"
    statistics_fitted: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("statistics_fitted", torch.tensor(False))
        self.zoo_name = ""  # registry name, set by zoo.create
        self.phase: Phase | None = None
        self.run_seed: int | None = None  # of the training; part of its checkpoints
        self.val_metrics: PoseMetrics | None = None
        self.test_metrics: PoseMetrics | None = None
        self.corrector: Corrector | None = None

    # ---- what a method writes -------------------------------------------------------------------

    @property
    def input_spec(self) -> InputSpec:
        """What the method wants to be fed."""
        raise NotImplementedError

    def forward(self, batch: PoseBatch) -> Prediction:
        """Predicts 3D (and 2D) joints for a batch."""
        raise NotImplementedError

    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        """Scalar losses of a batch; the key ``loss`` is minimised, all keys are logged."""
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        """Optimiser and schedule, as Lightning takes them; reads ``self.phase``."""
        raise NotImplementedError

    def fit_statistics(self, poses: PoseBatch) -> None:
        """Fills the method's fitted buffers from training poses (no images); default: nothing.

        Args:
            poses: ``joints_3d`` (N, 1, J, 3) mm, ``valid_3d``, ``joints_2d``, ``world_to_camera``
                and the ids of N training samples, the same on every process.
        """

    def phases(self) -> tuple[Phase, ...]:
        """The training stages in order."""
        raise NotImplementedError

    @classmethod
    def tiny(cls) -> PoseModule:
        """A very small instance with every mechanism, for tests."""
        raise NotImplementedError

    # ---- what follows from it -------------------------------------------------------------------

    @property
    def skeleton(self) -> Skeleton:
        """The skeleton of inputs and predictions."""
        return get_skeleton(self.skeleton_name)

    @property
    def predicted_frames(self) -> tuple[int, ...]:
        """Indices into the clip's T frames that ``forward`` predicts; default: all."""
        return tuple(range(self.input_spec.frames))

    @property
    def total_epochs(self) -> int:
        """Sum of the phases' lengths."""
        return sum(phase.epochs for phase in self.phases())

    def select_frames(self, batch: PoseBatch) -> PoseBatch:
        """The batch with its (B, T, ...) entries cut to ``predicted_frames``."""
        frames = list(self.predicted_frames)
        if len(frames) == self.input_spec.frames:
            return batch
        return _take_frames(batch, torch.tensor(frames))

    def stream(self, batch: PoseBatch | None, state: Any = None) -> tuple[Prediction | None, Any]:
        """The next frames of one running video of one person.

        As many predictions come out as frames went in, in their order; a method that looks ahead
        gives them later. How the video is cut into calls changes nothing. The frames come at
        ``input_spec.clip_fps``: who calls sees to that.

        By default a method of single frames sees each alone. One of clips sees, for every frame,
        the ``input_spec.frames`` frames around it, the video's first and last repeated at its ends.
        A recurrent method overrides this and carries its own state.

        Args:
            batch: (1, T, ...) the next T >= 1 frames; None: the video is over.
            state: what the call before has returned; None starts a video. It belongs to the method,
                does not grow with the video, and is not changed in place.

        Returns:
            (1, T', ...) predictions of the next T' frames, None if there are none yet, and the
            state. After the end all frames have come, and the state is None.
        """
        frames = self.input_spec.frames
        if frames == 1:
            if batch is None:
                return None, None
            # Frames become samples, and predictions of one frame frames again.
            alone = {k: cast(Tensor, v).transpose(0, 1) for k, v in batch.items()
                     if k in FRAME_KEYS}  # fmt: skip
            prediction = self.estimate(cast(PoseBatch, alone))
            return _over_frames(prediction, 0), state
        at = min(
            range(len(self.predicted_frames)),
            key=lambda k: abs(self.predicted_frames[k] - frames // 2),
        )
        before = self.predicted_frames[at]
        # The frames from number `first` on; how many were seen and how many predicted.
        kept, first, seen, given = state or (None, 0, 0, 0)
        if batch is not None:
            new = {k: cast(Tensor, v) for k, v in batch.items() if k in FRAME_KEYS}
            kept = new if kept is None else {k: torch.cat((kept[k], new[k]), 1) for k in new}
            seen += batch["joints_2d"].shape[1]
        if kept is None:
            return None, None
        ready = seen if batch is None else max(given, seen - (frames - 1 - before))
        result = None
        if ready > given:
            index = torch.arange(given, ready)[:, None] + torch.arange(frames) - before
            index = index.clamp(0, seen - 1) - first  # (T', frames)
            windows = {k: v[0][index.to(v.device)] for k, v in kept.items()}
            result = _over_frames(self.estimate(cast(PoseBatch, windows)), at)
        if batch is None:
            return result, None
        start = max(first, ready - before)
        # Copies: a slice would keep all frames of this call in memory.
        kept = {k: v[:, start - first :].clone() for k, v in kept.items()}
        return result, (kept, start, seen, ready)

    def on_fit_start(self) -> None:
        """Fits the statistics once, from the datamodule's training poses."""
        if not bool(self.statistics_fitted):
            datamodule = getattr(self.trainer, "datamodule", None)
            if datamodule is not None:
                self.fit_statistics(datamodule.training_poses())
            self.statistics_fitted.fill_(True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Stamps the method's name: ``zoo.load`` then knows the class without a path."""
        checkpoint["zoo"] = {"method": self.zoo_name, "seed": self.run_seed}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes over the seed of the training that is resumed."""
        self.run_seed = checkpoint.get("zoo", {}).get("seed")

    def on_train_batch_start(self, batch: PoseBatch, batch_idx: int) -> None:
        """Keys dropout, noise and random crops by seed, epoch, batch and process.

        A step then draws the same numbers whatever was drawn before it, so that a training that
        was interrupted anywhere and resumed is bit for bit the one that was not. The seed is that
        of ``--seed_everything``; a resumed training has the one it began with.
        """
        if self.run_seed is None:
            self.run_seed = int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed()))
        torch.manual_seed(step_seed(self.run_seed, self.current_epoch, batch_idx, self.global_rank))

    def setup(self, stage: str) -> None:
        """Builds the metrics of the datamodule's protocol."""
        from zoo.metrics import PoseMetrics

        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is None:
            return
        self.val_metrics = PoseMetrics(
            datamodule.protocol("val"), self.skeleton, datamodule.action_names
        ).to(self.device)
        self.test_metrics = PoseMetrics(
            datamodule.protocol("test"), self.skeleton, datamodule.action_names
        ).to(self.device)

    def training_step(self, batch: PoseBatch, batch_idx: int) -> Tensor:
        """Logs every loss as ``train/NAME`` and returns ``loss``."""
        losses = self.compute_loss(batch)
        size = batch["joints_2d"].shape[0]
        for name, value in losses.items():
            self.log(
                f"train/{name}", value.detach(), prog_bar=name == "loss", batch_size=size,
                on_step=True, on_epoch=False,
            )  # fmt: skip
        return losses["loss"]

    def validation_step(self, batch: PoseBatch, batch_idx: int) -> Prediction:
        """Feeds the validation metrics."""
        return self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: PoseBatch, batch_idx: int) -> Prediction:
        """Feeds the test metrics."""
        return self._evaluate(batch, self.test_metrics)

    def predict_step(self, batch: PoseBatch, batch_idx: int) -> Prediction:
        """The prediction alone."""
        return self.estimate(batch)

    def estimate(self, batch: PoseBatch) -> Prediction:
        """What is reported of a batch: ``forward``, or ``corrector`` where one is set.

        ``zoo.correction.correcting`` sets it for a while: the correction at test time.
        """
        if self.corrector is not None:
            return self.corrector(batch, None)
        prediction: Prediction = self(batch)
        return prediction

    def on_validation_epoch_end(self) -> None:
        """Logs ``val/METRIC``."""
        self._log_metrics("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        """Logs ``test/METRIC``; ``test_metrics`` keeps its state for the reports of callbacks."""
        self._log_metrics("test", self.test_metrics, reset=False)

    def on_test_start(self) -> None:
        """Forgets an earlier test."""
        if self.test_metrics is not None:
            self.test_metrics.reset()

    def _evaluate(self, batch: PoseBatch, metrics: PoseMetrics | None) -> Prediction:
        prediction = self.estimate(batch)
        if metrics is not None:
            metrics.update(prediction, self.select_frames(batch))
        return prediction

    def _log_metrics(self, split: str, metrics: PoseMetrics | None, reset: bool = True) -> None:
        if metrics is None:
            return
        for name, value in metrics.compute().items():
            # Every process has computed the same number from all samples: nothing left to reduce.
            self.log(f"{split}/{name}", value, prog_bar=name == "mpjpe_mm", rank_zero_only=False)
        if reset:
            metrics.reset()

    def predict(
        self,
        source: Any,
        *,
        boxes: Any = None,
        flip_test: bool = False,
        batch_size: int = 32,
        correct: Correction | str | None = None,
        fps: float | None = None,
        smooth: str | None = None,
    ) -> list[Pose]:
        """3D poses of the people in pictures, or in the frames of a video.

        Args:
            source: path of an image, a folder of images, an (H, W, 3) uint8 RGB array, or a list of
                these; or path of a video.
            boxes: per picture a list of person boxes (x0, y0, x1, y1) in px; ``None`` takes the
                whole picture as one person, an empty list means nobody. For a video see
                :meth:`predict_frames`.
            flip_test: average with the prediction of the mirrored crop.
            batch_size: crops per forward pass.
            correct: self-correction (``zoo.correction``) of models that have it: ``on``, ``off``,
                ``release``, or settings such as ``lr=0.002,steps=1``; None: the model's own.
            fps: makes the source the frames of a video at this rate.
            smooth: ``one-euro`` smooths the poses of a video over time.

        Returns:
            One :class:`~zoo.pose.Pose` a person and picture, in order; ``[]`` if there is no one.
            Poses of a video have their ``frame_index``.

        Raises:
            zoo.errors.DataError: a source is missing, unreadable or not a picture.
            zoo.errors.UsageError: ``correct`` is wrong, or asked of a model that has no correction;
                ``smooth`` for pictures.
        """
        from zoo.predict import predict
        from zoo.video import is_video

        if fps is not None or is_video(source):
            frames = self.predict_frames(
                source, fps=fps, boxes=boxes, flip_test=flip_test, smooth=smooth,
                correct=correct, batch_size=min(batch_size, 8),
            )  # fmt: skip
            return [pose for frame in frames for pose in frame.poses]
        if smooth is not None:
            raise UsageError("pictures are not smoothed over time; frames of a video need fps")
        return predict(
            self, source, boxes=boxes, flip_test=flip_test, batch_size=batch_size, correct=correct
        )

    def predict_frames(self, source: Any, **options: Any) -> Iterator[FramePoses]:
        """The poses of a video, frame by frame and in bounded memory; frames are read lazily.

        Args:
            source: path of a video, a folder of its frames, or an iterable of (H, W, 3) uint8 RGB
                arrays.
            options: ``fps``, ``boxes``, ``follow``, ``flip_test``, ``smooth``, ... of
                :func:`zoo.predict_video.predict_frames`.

        Returns:
            An iterator over every frame in order, :class:`~zoo.predict_video.FramePoses`; its
            ``poses`` are empty where there is nobody.

        Raises:
            zoo.errors.DataError: the source is missing or cannot be read.
            zoo.errors.UsageError: an option is wrong, or frames without a rate.
        """
        from zoo.predict_video import predict_frames

        return predict_frames(self, source, **options)


def _take_frames(batch: PoseBatch, frames: Tensor) -> PoseBatch:
    """The batch with its (B, T, ...) entries cut to some frames."""
    cut = {k: cast(Tensor, v)[:, frames] if k in FRAME_KEYS else v for k, v in batch.items()}
    return cast(PoseBatch, cut)


def _over_frames(prediction: Prediction, at: int) -> Prediction:
    """(N, T', ...) predictions of N clips as (1, N, ...): the frame ``at`` of each."""
    return cast(Prediction, {k: cast(Tensor, v)[:, at][None] for k, v in prediction.items()})


PathLike = str | Path
Boxes = Sequence[Sequence[float]]
