"""``LiftingFromTheDeep``: the three names of Tome et al. 2017; see the package's docstring."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from zoo.base import InputSpec, Phase, PoseModule
from zoo.batch import PoseBatch, Prediction
from zoo.cpm import NINE_CHANNELS, VGG_CHANNELS, Init, NineCPM, VggCPM, centre_map
from zoo.errors import DataError, UsageError, suggest
from zoo.heatmaps import (
    append_background,
    argmax_points,
    belief_loss,
    belief_targets,
    gaussian_maps,
    read_points,
    soft_argmax,
)
from zoo.lifting import PPCALift, calibrate
from zoo.methods.tome.camera import stored_prior, upright_camera
from zoo.methods.tome.network import FusedMachine, StageMaps, SurrogateArgmax
from zoo.metrics import PoseMetrics, mpjpe
from zoo.prior import Prior, fit_prior, pose_size

__all__ = ["LiftingFromTheDeep"]

LiftGrad = Literal["none", "surrogate", "softargmax"]

LOOP_PITCH_STEP = math.radians(2.0)
"""Cameras inside the loop are told apart to this; each distinct pitch costs a search of its own."""

FINAL_PITCH_STEP = math.radians(0.5)

MIN_EXTENT = 0.25
"""Joints that all fall into one spot (cells) tell no pose: the mean pose takes their place."""


class StageMetrics(PoseMetrics):
    """The protocol's metrics, and the 2D error of each stage's fused maps (Figure 3).

    ``error_2d_stage1_px`` ... are in px of the crop; the batch brings ``stage_2d`` (S, B, T, J, 2).
    """

    def __init__(self, stages: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stage_names = tuple(f"error_2d_stage{t + 1}_px" for t in range(stages))
        self.names = (*self.names, *self.stage_names)
        self.width = len(self.names)
        self._open()

    def _errors_2d(self, pred: Tensor, batch: PoseBatch) -> dict[str, Tensor]:
        values = super()._errors_2d(pred, batch)
        counted = self._mask(pred).expand(pred.shape[:-1])
        if "valid_2d" in batch:
            counted = counted & batch["valid_2d"]
        stage_2d = cast(dict[str, Tensor], batch)["stage_2d"]
        for name, points in zip(self.stage_names, stage_2d, strict=True):
            values[name] = mpjpe(points, batch["joints_2d"], counted, "none")
        return values


class LiftingFromTheDeep(PoseModule):
    """Tome, Russell, Agapito 2017; defaults are the paper's full model with a mixture prior.

    Args:
        image_size: side of ``image`` in px.
        crop_scale: side of the crop over the longer side of the person's box; CPM's training makes
            it 1.57.
        network: ``vgg`` (the released models) or ``9x9``.
        channels: widths of the image layers; ``None`` takes the paper's. ``vgg``: groups with
            pooling between them. ``9x9``: one group, the tower and the 5 x 5 layer after it.
        head: width of the first stage's hidden layers.
        stages: T.
        width: of the later stages.
        kernel: of the later stages; ``None`` takes the paper's, 7 (``vgg``) or 11 (``9x9``).
        init: first weights, see ``zoo.cpm``.
        machine_weights: name or checkpoint of this class whose convolutions training starts from:
            the paper refines a pose machine that others had trained on 2D poses. Not read again
            when a training is resumed or fine-tuned.
        lift_in_loop: 3D in every stage; false leaves a plain pose machine with a final lift.
        components: M of the prior.
        basis: D of the prior.
        rotations: R, angles that the lift tries.
        gain: factor on the penalty of Eq. 4: how much noisier 2D is than the model itself.
        scale_min: least scale, see ``PPCALift``.
        lift_grad: whether errors reach the beliefs through the lift (supplement, sec. 1): not at
            all, by the paper's ``surrogate`` gradient of the maximum, or with ``softargmax`` in
            the maximum's place.
        surrogate_gain: k of the surrogate gradient.
        sigma: of the target maps, cells: 7 px over a stride of 8.
        projection_sigma: of the projected maps, cells.
        camera: ``known`` uses ``world_to_camera`` where the batch has it and searches ``pitches``
            where not; ``search`` always searches; ``level`` never does.
        pitches: camera pitches that are searched, rad; positive looks down.
        mix_2d: final lift: weight of the measured 2D against the model's own, whose x and y are
            then the weighted mean; the authors' code has 1.55.
        size_mm: root of the sum of squared limb lengths of every predicted pose; ``None`` takes the
            mean training person's.
        prior: file of ``zoo prior fit`` with M components and D basis vectors, read when training
            starts; ``None`` fits the prior then, to the training poses.
        epochs: length of the training; CPM's 600,000 batches of 16 are 480 epochs of 20,000.
        warmup_epochs: of these, first ones without the lift, for a network that starts from nothing
            and has no maxima to lift.
        optimizer: ``sgd`` or ``adam``.
        lr: learning rate.
        schedule: ``step`` (CPM's) or ``cosine`` to zero over the whole training.
        lr_step: batches after which ``step`` multiplies the rate by ``lr_gamma``, again and again.
        lr_gamma: see there.
        bias_lr: factor of the rate of biases.
        stage_lr: factor of the rate of later stages (``vgg``: 4) or the first one (``9x9``: 5);
            ``None`` takes these.
        fusion_lr: factor of the rate of w_t.
        momentum: of SGD.
        weight_decay: on weights, not on biases and w_t.
    """

    def __init__(
        self,
        image_size: int = 368,
        crop_scale: float = 1.57,
        network: Literal["vgg", "9x9"] = "vgg",
        channels: Sequence[Sequence[int]] | None = None,
        head: int = 512,
        stages: int = 6,
        width: int = 128,
        kernel: int | None = None,
        init: Init = "he",
        machine_weights: str | None = None,
        lift_in_loop: bool = True,
        components: int = 3,
        basis: int = 25,
        rotations: int = 80,
        gain: float = 3.0,
        scale_min: float = 0.8,
        lift_grad: LiftGrad = "none",
        surrogate_gain: float = 1.0,
        sigma: float = 0.875,
        projection_sigma: float = 1.0,
        camera: Literal["known", "level", "search"] = "known",
        pitches: Sequence[float] = (-0.1, 0.0, 0.1, 0.2, 0.3),
        mix_2d: float = 0.0,
        size_mm: float | None = None,
        prior: str | None = None,
        epochs: int = 480,
        warmup_epochs: int = 0,
        optimizer: Literal["sgd", "adam"] = "sgd",
        lr: float = 8e-5,
        schedule: Literal["step", "cosine"] = "step",
        lr_step: int = 136_106,
        lr_gamma: float = 0.333,
        bias_lr: float = 2.0,
        stage_lr: float | None = None,
        fusion_lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
    ) -> None:
        super().__init__()
        # Lists, not tuples, in the saved hyper-parameters: they survive JSON and YAML unchanged.
        pitches = list(pitches)
        channels = None if channels is None else [list(group) for group in channels]
        self.save_hyperparameters()
        self._check()
        joints = len(self.skeleton)
        machine: VggCPM | NineCPM
        if network == "vgg":
            groups = VGG_CHANNELS if channels is None else channels
            machine = VggCPM(joints + 1, stages, groups, head, width, kernel or 7, init=init)
        else:
            widths = NINE_CHANNELS if channels is None else [w for g in channels for w in g]
            machine = NineCPM(joints + 1, stages, widths, head, width, kernel or 11, init=init)
        self.stride = machine.stride
        if image_size % self.stride:
            raise UsageError(
                f"tome: image_size {image_size} is no multiple of the network's stride "
                f"{self.stride}"
            )
        centre = centre_map(image_size, self.stride, 21 / 368 * image_size)
        self.network = FusedMachine(machine, centre, lift_in_loop)
        with torch.device("cpu"):  # also where the rest is only counted, on the meta device
            self.lift = PPCALift(
                stored_prior(Prior.placeholder(components, basis), components), rotations,
                (0.0,) if camera == "level" else pitches, gain=gain, scale_min=scale_min,
            )  # fmt: skip

    def _check(self) -> None:
        choices = {
            "network": ("vgg", "9x9"), "init": ("he", "gaussian"),
            "lift_grad": ("none", "surrogate", "softargmax"),
            "camera": ("known", "level", "search"), "optimizer": ("sgd", "adam"),
            "schedule": ("step", "cosine"),
        }  # fmt: skip
        for name, known in choices.items():
            if self.hparams[name] not in known:
                raise UsageError(suggest(str(self.hparams[name]), known, f"tome {name}"))
        if self.hparams["components"] < 1:
            raise UsageError(f"tome: components is {self.hparams['components']}; at least 1")
        if not 0 <= self.hparams["warmup_epochs"] < self.hparams["epochs"]:
            raise UsageError(
                f"tome: warmup_epochs {self.hparams['warmup_epochs']} must be fewer than the "
                f"{self.hparams['epochs']} epochs"
            )
        for name in ("sigma", "projection_sigma"):
            if not self.hparams[name] > 0:
                raise UsageError(f"tome: {name} is {self.hparams[name]}; it must be positive")

    @property
    def input_spec(self) -> InputSpec:
        """One picture, the person in its middle."""
        return InputSpec("image", self.hparams["image_size"], 1, 1.0, self.hparams["crop_scale"])

    def phases(self) -> tuple[Phase, ...]:
        """Warm-up of the convolutions, if any, then everything (sec. 5: end to end)."""
        warmup, epochs = self.hparams["warmup_epochs"], self.hparams["epochs"]
        whole = Phase("train", epochs - warmup)
        return (Phase("warm-up", warmup, ("network.machine.",)), whole) if warmup else (whole,)

    # ---- what it computes -----------------------------------------------------------------------

    def forward(self, batch: PoseBatch) -> Prediction:
        """All stages, then the final lift of the last maps.

        Args:
            batch: ``image``; ``world_to_camera`` helps where it is there.

        Returns:
            ``pred_3d`` mm, pelvis at the origin; ``pred_2d`` px; ``std_3d`` mm.
        """
        frames = self._images(batch).shape[:2]
        maps = self._stages(batch)[-1].fused[:, :-1]
        points = read_points(maps, self.stride)
        pose, std = self._final_lift(points, self._camera(batch, FINAL_PITCH_STEP))
        return Prediction(
            pred_3d=pose.reshape(*frames, -1, 3), pred_2d=points.reshape(*frames, -1, 2),
            std_3d=std.reshape(*frames, -1),
        )  # fmt: skip

    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        """Eq. 8 over all stages.

        Args:
            batch: ``image``, ``joints_2d`` and ``valid_2d``; 3D is not looked at.

        Returns:
            ``loss``, ``loss_1`` ... of the stages, and with 3D in the loop the weights ``w_1`` ...
        """
        stages = self._stages(batch)
        height, width = stages[0].fused.shape[-2:]
        target, counted = belief_targets(
            batch["joints_2d"].flatten(0, 1), batch["valid_2d"].flatten(0, 1), height, width,
            self.stride, self.hparams["sigma"],
        )  # fmt: skip
        losses = [belief_loss(stage.fused, target, counted) for stage in stages]
        result = {"loss": torch.stack(losses).sum()}
        result |= {f"loss_{t + 1}": loss.detach() for t, loss in enumerate(losses)}
        if self.hparams["lift_in_loop"]:
            weights = self.network.fusion_weights().detach()
            result |= {f"w_{t + 1}": weight for t, weight in enumerate(weights)}
        return result

    def stage_points(self, batch: PoseBatch) -> Tensor:
        """2D joints read from the fused maps of every stage, (S, B, T, J, 2) px of the crop."""
        return self._read_stages(self._stages(batch), self._images(batch).shape[:2])

    def _read_stages(self, stages: list[StageMaps], frames: Sequence[int]) -> Tensor:
        points = [read_points(stage.fused[:, :-1], self.stride) for stage in stages]
        return torch.stack([p.reshape(*frames, -1, 2) for p in points])

    def _images(self, batch: PoseBatch) -> Tensor:
        size = self.hparams["image_size"]
        if "image" not in batch:
            raise DataError("tome: the batch has no 'image'; this method needs pictures")
        image = batch["image"]
        if image.shape[-2:] != (size, size):
            height, width = image.shape[-2:]
            raise DataError(f"tome: images are {width} x {height} px; they must be {size} x {size}")
        return image

    def _stages(self, batch: PoseBatch) -> list[StageMaps]:
        image = self._images(batch).flatten(0, 1)
        warming = self.phase is not None and self.phase.name == "warm-up"
        if not self.hparams["lift_in_loop"] or warming:
            return self.network(image, None)
        camera = self._camera(batch, LOOP_PITCH_STEP)

        def project(belief: Tensor) -> Tensor:
            if self.hparams["lift_grad"] != "none":
                return self._project(belief, camera)
            with torch.no_grad():
                return self._project(belief, camera)

        return self.network(image, project)

    def _project(self, belief: Tensor, camera: Tensor | None) -> Tensor:
        """Belief maps (N, J + 1, H, W) -> maps of the lifted pose's projection, the same shape."""
        maps, mode = belief[:, :-1], self.hparams["lift_grad"]
        if mode == "surrogate":
            points = SurrogateArgmax.apply(maps, self.hparams["surrogate_gain"])
        else:
            points = soft_argmax(maps) if mode == "softargmax" else argmax_points(maps)  # Eq. 3
        if not maps.is_meta:  # the lift decides by values; sizes do not depend on it
            points = self.lift(self._spread(points), None, camera).reprojection  # Eq. 4, 5
        height, width = maps.shape[-2:]
        return append_background(
            gaussian_maps(points, height, width, self.hparams["projection_sigma"])  # Eq. 6
        )

    def _camera(self, batch: PoseBatch, step: float) -> Tensor | None:
        """(N, 3, 3) of the folded frames, or None: level, or to be searched."""
        if self.hparams["camera"] != "known" or "world_to_camera" not in batch:
            return None
        if batch["world_to_camera"].is_meta:
            return None
        camera = upright_camera(batch["world_to_camera"], step)
        return camera.repeat_interleave(self._images(batch).shape[1], dim=0)

    def _spread(self, points: Tensor) -> Tensor:
        """Points (N, J, 2) in cells that can be lifted, see ``MIN_EXTENT``."""
        extent = (points.amax(dim=1) - points.amin(dim=1)).amax(dim=-1)
        figure = self.lift.mean[0][:, [0, 2]].to(points.dtype) * points.new_tensor([1.0, -1.0])
        standing = points.mean(dim=1, keepdim=True).detach() + figure
        return torch.where((extent < MIN_EXTENT)[:, None, None], standing, points)

    def _final_lift(self, points: Tensor, camera: Tensor | None) -> tuple[Tensor, Tensor]:
        """(N, J, 2) px -> (N, J, 3) mm, camera axes, pelvis at the origin; std (N, J) mm."""
        root = self.skeleton.index(self.skeleton.root)
        if points.is_meta:
            return points.new_empty(*points.shape[:2], 3), points.new_empty(points.shape[:2])
        result = self.lift(
            self._spread(points / self.stride) * self.stride, None, camera, uncertainty=True
        )
        pose, mix = result.pose_3d, self.hparams["mix_2d"]
        if mix > 0:
            image = (result.reprojection + mix * points) / (1.0 + mix)
            image = (image - image[:, root : root + 1]) / result.scale[:, None, None]
            pose = torch.cat((image, pose[..., 2:]), dim=-1)
        size = self.hparams["size_mm"] or self.lift.size_mm
        factor = (size / pose_size(pose, self.skeleton_name).clamp(min=1e-6)).to(pose.dtype)
        return pose * factor[:, None, None], result.std_3d * factor[:, None]

    # ---- the prior ------------------------------------------------------------------------------

    def fit_statistics(self, poses: PoseBatch) -> None:
        """Fits the prior to the complete training poses, turned into the world, or reads its file.

        Raises:
            DataError: too few poses are complete.
            CheckpointError: the file is no prior.
            UsageError: the file's sizes are not those of this model.
        """
        if self.hparams["prior"] is None:
            prior = self._fitted(poses)
        else:
            prior = self._read_prior(self.hparams["prior"])
        self.lift.set_prior(stored_prior(prior, self.hparams["components"]))
        self.statistics_fitted.fill_(True)

    def on_fit_start(self) -> None:
        """Fits the prior and takes the convolutions over, once: a checkpoint has both already."""
        begun = bool(self.statistics_fitted)
        super().on_fit_start()
        if self.hparams["machine_weights"] and not begun:
            from zoo.checkpoint import take_parts

            take_parts(self, self.hparams["machine_weights"], ("network.machine.",))

    def _fitted(self, poses: PoseBatch) -> Prior:
        pose, valid = poses["joints_3d"].flatten(0, 1), poses["valid_3d"].flatten(0, 1)
        frames = poses["joints_3d"].shape[1]
        rotation = poses["world_to_camera"].repeat_interleave(frames, dim=0)
        whole = valid.all(dim=1)
        # camera = E world, so world = E^T camera; poses are rows.
        world = (pose[whole].double() @ rotation[whole].double()).cpu()
        basis = self.hparams["basis"]
        if len(world) < basis + 2:
            raise DataError(
                f"tome: {len(world)} training poses have all joints; a prior of {basis} basis "
                f"vectors needs at least {basis + 2}: give more, or a fitted --model.prior"
            )
        # A distance of zero: as many components as asked for.
        prior = fit_prior(
            world, self.hparams["components"], basis, skeleton=self.skeleton_name,
            exemplar_distance=0.0,
        )  # fmt: skip
        if len(world) < 30:
            return prior
        options = {"rotations": self.hparams["rotations"], "gain": self.hparams["gain"]}
        return calibrate(prior, world, scale_min=self.hparams["scale_min"], **options)

    def _read_prior(self, path: str) -> Prior:
        prior = Prior.load(path)
        found = (prior.skeleton, prior.components, prior.basis_size)
        wanted = (self.skeleton_name, self.hparams["components"], self.hparams["basis"])
        if found != wanted:
            raise UsageError(
                f"{path}: a prior of {found[0]} with {found[1]} components and {found[2]} basis "
                f"vectors; this model has {wanted[0]}, {wanted[1]} and {wanted[2]} "
                "(--model.components, --model.basis)"
            )
        return prior

    # ---- training and test ----------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Metrics with the 2D error of every stage."""
        super().setup(stage)
        for name in ("val_metrics", "test_metrics"):
            plain = getattr(self, name)
            if plain is not None:
                metrics = StageMetrics(
                    self.hparams["stages"], plain.protocol, self.skeleton, plain.action_names
                )
                setattr(self, name, metrics.to(self.device))

    def _evaluate(self, batch: PoseBatch, metrics: PoseMetrics | None) -> Prediction:
        prediction: Prediction = self(batch)
        if metrics is not None:
            extra = {"stage_2d": self.stage_points(batch)}
            metrics.update(prediction, cast(PoseBatch, {**batch, **extra}))
        return prediction

    def configure_optimizers(self) -> Any:
        """SGD with CPM's rates, or Adam."""
        hparams = self.hparams
        lr = hparams["lr"] if self.phase is None or self.phase.lr is None else self.phase.lr
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            groups.setdefault(self._rates(name, parameter), []).append(parameter)
        options = [
            {"params": parameters, "lr": lr * factor, "weight_decay": decay}
            for (factor, decay), parameters in groups.items()
        ]
        optimizer: torch.optim.Optimizer
        if hparams["optimizer"] == "sgd":
            optimizer = torch.optim.SGD(options, lr=lr, momentum=hparams["momentum"])
        else:
            optimizer = torch.optim.AdamW(options, lr=lr)
        total, before = self._steps()

        def factor(step: int) -> float:
            if hparams["schedule"] == "step":
                return float(hparams["lr_gamma"] ** ((before + step) // hparams["lr_step"]))
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (before + step) / total)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _rates(self, name: str, parameter: nn.Parameter) -> tuple[float, float]:
        """(factor of the rate, weight decay) of a parameter."""
        hparams = self.hparams
        if name.endswith("fusion_logits"):
            return hparams["fusion_lr"], 0.0
        first = not name.startswith(("network.machine.later.", "network.machine.features."))
        if hparams["network"] == "vgg":
            faster, factor = not first, 4.0
        else:
            faster, factor = name.startswith("network.machine.first."), 5.0
        if hparams["stage_lr"] is not None:
            factor = hparams["stage_lr"]
        factor = factor if faster else 1.0
        if parameter.ndim == 1:
            return factor * hparams["bias_lr"], 0.0
        return factor, hparams["weight_decay"]

    def _steps(self) -> tuple[int, int]:
        """Batches of the whole training, and those before the running phase."""
        if getattr(self, "_trainer", None) is None:
            return max(1, self.total_epochs), 0
        total = int(self.trainer.estimated_stepping_batches)
        epochs = self.trainer.max_epochs or self.total_epochs
        late = self.phase is not None and self.phase.name == "train"
        done = self.hparams["warmup_epochs"] if late else 0
        return max(1, total), round(total * done / max(1, epochs))

    @classmethod
    def tiny(cls) -> LiftingFromTheDeep:
        """Every mechanism on 32 px images, 8 x 8 cells."""
        return cls(
            image_size=32, crop_scale=1.25, channels=[[4], [8], [8, 8]], head=8, stages=2, width=8,
            components=2, basis=3, rotations=12, epochs=3, warmup_epochs=1, bias_lr=1.0,
            stage_lr=1.0,
        )  # fmt: skip
