"""The conformance kit itself: a correct method passes, and each broken rule is caught."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from zoo.base import InputSpec, Phase, PoseModule
from zoo.batch import PoseBatch, Prediction
from zoo.errors import UsageError
from zoo.skeleton import H36M_17, SKELETONS
from zoo.testing import CHECKS, check_method, random_batch, random_poses

sys.path.insert(0, str(Path(__file__).parent / "plugins" / "linear_lifter" / "src"))
from zoo_linear_lifter import LinearLifter

sys.path.pop(0)
BY_NAME = {check.__name__: check for check in CHECKS}


def test_a_correct_method_passes_and_the_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    check_method(LinearLifter)
    assert torch.equal(before, torch.get_rng_state())


def test_a_factory_may_be_a_function() -> None:
    BY_NAME["check_forward"](lambda: LinearLifter(hidden=4))


def test_a_factory_of_something_else_is_refused() -> None:
    with pytest.raises(AssertionError, match="returned a Linear, not a PoseModule"):
        BY_NAME["check_forward"](cast(Any, lambda: nn.Linear(1, 1)))


# ---- wrong methods: each breaks one rule ---------------------------------------------------------


class _Wrong(LinearLifter):
    """A base, so that the wrong methods build themselves."""

    @classmethod
    def tiny(cls) -> LinearLifter:
        return cls(hidden=16, image_size=64, epochs=2)


class HparamsForgotten(_Wrong):
    def __init__(
        self, hidden: int = 16, image_size: int = 64, epochs: int = 2, lr: float = 1e-3,
        depth: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(hidden, image_size, epochs, lr)
        self._hparams.pop("depth", None)


class HparamsOfNumpy(_Wrong):
    def __init__(
        self, hidden: int = 16, image_size: int = 64, epochs: int = 2, lr: float = 1e-3
    ) -> None:
        super().__init__(hidden, image_size, epochs, lr)
        self.hparams["lr"] = np.float32(lr)


class ArgumentsHidden(_Wrong):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)


class PhaseOfAnotherPrefix(_Wrong):
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("all", 2, train=("layer.",)),)


class PhaseThatForgets(_Wrong):
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("head", 2, train=("layers.2.",)),)


class PelvisMoves(_Wrong):
    def forward(self, batch: PoseBatch) -> Prediction:
        return {"pred_3d": super().forward(batch)["pred_3d"] + 1.0}


class NoTimeAxis(_Wrong):
    def forward(self, batch: PoseBatch) -> Prediction:
        return {"pred_3d": super().forward(batch)["pred_3d"][:, 0]}


class OtherKeysInTraining(_Wrong):
    def forward(self, batch: PoseBatch) -> Prediction:
        prediction = super().forward(batch)
        if self.training:
            prediction["pred_2d"] = batch["joints_2d"]
        return prediction


class DropoutInEval(_Wrong):
    def forward(self, batch: PoseBatch) -> Prediction:
        noise = torch.rand_like(batch["joints_3d"])
        noise[:, :, 0] = 0
        return {"pred_3d": super().forward(batch)["pred_3d"] + noise}


class BatchDependent(_Wrong):
    def forward(self, batch: PoseBatch) -> Prediction:
        pose = super().forward(batch)["pred_3d"]
        return {"pred_3d": pose - 0.5 * pose.mean(0, keepdim=True)}


class LooksAtTheTarget(_Wrong):
    def forward(self, batch: PoseBatch) -> Prediction:
        pose = super().forward(batch)["pred_3d"]
        return {"pred_3d": pose * (1 + batch["joints_3d"].abs().amax((1, 2, 3), keepdim=True))}


class LossWithoutMask(_Wrong):
    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        return {"loss": (self(batch)["pred_3d"] - batch["joints_3d"]).abs().mean()}


class LossDividesByNothing(_Wrong):
    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        valid = batch["valid_3d"]
        error = torch.where(valid[..., None], self(batch)["pred_3d"] - batch["joints_3d"], 0.0)
        return {"loss": error.abs().sum() / valid.sum()}


class LossSkipsEmptyBatches(_Wrong):
    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        if not bool(batch["valid_3d"].any()):
            return {"loss": torch.zeros(())}
        return super().compute_loss(batch)


class LossOfVisibleOnly(_Wrong):
    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        seen = cast(PoseBatch, dict(batch))
        seen["valid_3d"] = batch["valid_3d"] & ~batch["occluded"]
        return super().compute_loss(seen)


class LossIsVector(_Wrong):
    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        return {**super().compute_loss(batch), "parts": torch.zeros(3)}


class LossIsNoisy(_Wrong):
    count = 0

    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        type(self).count += 1
        return {"loss": super().compute_loss(batch)["loss"] * (1 + 0.1 * self.count)}


class UnusedLayer(_Wrong):
    def __init__(
        self, hidden: int = 16, image_size: int = 64, epochs: int = 2, lr: float = 1e-3
    ) -> None:
        super().__init__(hidden, image_size, epochs, lr)
        self.save_hyperparameters()
        self.spare = nn.Linear(2, 2)


class AscendsTheLoss(_Wrong):
    """The loss is right, the sign of its gradient is not."""

    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        loss = super().compute_loss(batch)["loss"]
        return {"loss": 2 * loss.detach() - loss}


class InMetres(_Wrong):
    def fit_statistics(self, poses: PoseBatch) -> None:
        metres = cast(PoseBatch, {**poses, "joints_3d": poses["joints_3d"] / 1000})
        super().fit_statistics(metres)

    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        metres = cast(PoseBatch, {**batch, "joints_3d": batch["joints_3d"] / 1000})
        return super().compute_loss(metres)


class StatisticsOfMissingJoints(_Wrong):
    def fit_statistics(self, poses: PoseBatch) -> None:
        self.mean_mm.copy_(poses["joints_3d"].mean((0, 1)))


class StatisticsGrow(_Wrong):
    def fit_statistics(self, poses: PoseBatch) -> None:
        super().fit_statistics(poses)
        self.register_buffer("examples", poses["joints_3d"][:, 0].clone())


class StatisticsNotStored(_Wrong):
    """What it uses is a plain attribute, so that a checkpoint forgets it."""

    factor = 1.0

    def fit_statistics(self, poses: PoseBatch) -> None:
        super().fit_statistics(poses)
        self.factor = 0.5

    def forward(self, batch: PoseBatch) -> Prediction:
        return {"pred_3d": super().forward(batch)["pred_3d"] * self.factor}


class StateOutsideTheCheckpoint(_Wrong):
    """Its loss depends on how many steps this process has seen."""

    steps_seen = 0

    def training_step(self, batch: PoseBatch, batch_idx: int) -> Tensor:
        self.steps_seen += 1
        return super().training_step(batch, batch_idx) * (1 + self.steps_seen)


class BranchesOnValues(_Wrong):
    def forward(self, batch: PoseBatch) -> Prediction:
        if bool(batch["valid_2d"].any()):
            return super().forward(batch)
        return {"pred_3d": 0 * super().forward(batch)["pred_3d"]}


class StreamForgets(_Wrong):
    """Its state does not survive from call to call: every call starts a video."""

    def stream(self, batch: PoseBatch | None, state: Any = None) -> tuple[Any, Any]:
        found, _ = super().stream(batch, None)
        if found is None:
            return None, None
        steps = torch.arange(1.0, found["pred_3d"].shape[1] + 1)
        return {**found, "pred_3d": found["pred_3d"] * steps[:, None, None]}, None


class StreamLosesTheEnd(_Wrong):
    """It looks a frame ahead and never gives the last one."""

    def stream(self, batch: PoseBatch | None, state: Any = None) -> tuple[Any, Any]:
        if batch is None:
            return None, None
        found, _ = super().stream(batch)
        assert found is not None
        late = cast(Prediction, {k: v[:, :-1] for k, v in found.items()})
        return (late if late["pred_3d"].shape[1] else None), 1


WRONG: list[tuple[type[PoseModule], str, str]] = [
    (HparamsForgotten, "check_constructor", "'depth' is not in hparams"),
    (HparamsOfNumpy, "check_constructor", r"lr is a numpy\.float32"),
    (ArgumentsHidden, "check_constructor", r"argument \*options hides the flags"),
    (PhaseOfAnotherPrefix, "check_phases", "no parameter's name starts with 'layer.'"),
    (PhaseThatForgets, "check_phases", "no phase trains layers.0.weight"),
    (PelvisMoves, "check_forward", "pelvis is not exactly 0"),
    (NoTimeAxis, "check_forward", "pred_3d has shape"),
    (OtherKeysInTraining, "check_forward", r"\['pred_2d', 'pred_3d'\] in training"),
    (DropoutInEval, "check_evaluation", "not deterministic"),
    (BatchDependent, "check_evaluation", "alone is predicted otherwise"),
    (LooksAtTheTarget, "check_no_leak", "depends on the targets"),
    (StreamForgets, "check_stream", r"comes in pieces of \(1, 1,"),
    (StreamLosesTheEnd, "check_stream", "gives 6 predictions for a video of 7 frames"),
    (LossWithoutMask, "check_invalid_joints", "not valid change the loss"),
    (LossDividesByNothing, "check_nothing_valid", "loss is nan where no joint is valid"),
    (LossDividesByNothing, "check_two_d_only", "loss is nan with 2D-only samples"),
    (LossSkipsEmptyBatches, "check_two_d_only", "has no graph"),
    (LossOfVisibleOnly, "check_occluded_joints", "depends on 'occluded'"),
    (LossIsVector, "check_loss", "'parts'.*no scalar"),
    (LossIsNoisy, "check_loss", "differs between two runs of the same seed"),
    (UnusedLayer, "check_gradients", "spare.weight gets no gradient"),
    (AscendsTheLoss, "check_learns", "do not lower the loss of phase 'all'"),
    (InMetres, "check_learns", "must be in mm"),
    (StatisticsOfMissingJoints, "check_statistics", "valid_3d false change mean_mm"),
    (StatisticsGrow, "check_statistics", "changes the shape of examples"),
    (StatisticsNotStored, "check_checkpoint", "restored from its state_dict predicts otherwise"),
    (StatisticsNotStored, "check_weight_file", "safetensors file predicts otherwise"),
    (StateOutsideTheCheckpoint, "check_fit", "resumed halfway ends in other weights"),
    (BranchesOnValues, "check_meta_device", "does not run on the meta device"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "check", "message"), WRONG, ids=[f"{w[0].__name__}-{w[1]}" for w in WRONG]
)
def test_a_broken_rule_is_named(method: type[PoseModule], check: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message) as caught:
        BY_NAME[check](method)
    text = str(caught.value)
    assert text.startswith(f"{method.__name__}: ")
    assert "\n" not in text


def test_every_check_has_caught_something() -> None:
    below = {"check_predict", "check_tiny", "check_unfitted"}
    assert set(BY_NAME) - {w[1] for w in WRONG} == below


def test_buffers_that_start_as_nan_are_named() -> None:
    class StartsAsNan(_Wrong):
        def __init__(
            self, hidden: int = 16, image_size: int = 64, epochs: int = 2, lr: float = 1e-3
        ) -> None:
            super().__init__(hidden, image_size, epochs, lr)
            self.mean_mm.fill_(float("nan"))

    with pytest.raises(AssertionError, match="not finite before fit_statistics"):
        BY_NAME["check_unfitted"](StartsAsNan)


def test_a_slow_tiny_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(_Wrong):
        def forward(self, batch: PoseBatch) -> Prediction:
            end = time.process_time() + 0.1
            while time.process_time() < end:
                pass
            return super().forward(batch)

    monkeypatch.setattr("zoo.testing.construction._TINY_SECONDS", 0.05)
    with pytest.raises(AssertionError, match=r"not small: a forward pass of 2 samples takes 0\.1"):
        BY_NAME["check_tiny"](Slow)


class FromPictures(PoseModule):
    """A small image method, so that the kit's image side is tested without the zoo's own ones."""

    def __init__(self, image_size: int = 32, width: int = 8, dropout: float = 0.2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.image_size = image_size
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 5, 4), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(dropout),
            nn.Flatten(), nn.LazyLinear(5 * len(self.skeleton)),
        )  # fmt: skip
        self.layers(torch.zeros(2, 3, image_size, image_size))

    @property
    def input_spec(self) -> InputSpec:
        return InputSpec("image", self.image_size, frames=3)

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("trunk", 1, ("layers.0", "layers.1", "layers.5")), Phase("all", 2, lr=1e-3))

    @classmethod
    def tiny(cls) -> PoseModule:
        return cls()

    def forward(self, batch: PoseBatch) -> Prediction:
        image = batch["image"]  # (B, T, 3, H, W)
        points = self.layers(image.flatten(0, 1)).reshape(*image.shape[:2], len(self.skeleton), 5)
        pose = 500 * points[..., :3]
        return {"pred_3d": pose - pose[:, :, :1], "pred_2d": self.image_size * points[..., 3:]}

    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        prediction = self(batch)
        losses = {}
        for dims, scale in (("3d", 500.0), ("2d", float(self.image_size))):
            valid = batch[f"valid_{dims}"][..., None]
            error = prediction[f"pred_{dims}"] - batch[f"joints_{dims}"]
            total = torch.where(valid, error / scale, 0.0).square().sum()
            losses[f"loss_{dims}"] = total / valid.sum().clamp(min=1)
        return {"loss": losses["loss_3d"] + losses["loss_2d"], **losses}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), 1e-2, 0.9)


def test_a_correct_image_method_passes() -> None:
    check_method(FromPictures)


def test_predict_that_loses_people_is_named() -> None:
    class LosesPeople(FromPictures):
        def predict(self, source: Any, **options: Any) -> list[Any]:
            return super().predict(source, **options)[:1]

    with pytest.raises(AssertionError, match=r"gives 1 poses for boxes=.* expected 2"):
        BY_NAME["check_predict"](LosesPeople)


def test_an_image_method_that_reads_2d_annotations_is_named() -> None:
    class ReadsAnnotations(FromPictures):
        def forward(self, batch: PoseBatch) -> Prediction:
            prediction = super().forward(batch)
            prediction["pred_2d"] = batch["joints_2d"]
            return prediction

    with pytest.raises(AssertionError, match=r"depends on the targets .*joints_2d"):
        BY_NAME["check_no_leak"](ReadsAnnotations)


# ---- random people -------------------------------------------------------------------------------

ROOTED = sorted(name for name, s in SKELETONS.items() if s.root in s.joints)
SPECS = st.builds(
    InputSpec,
    kind=st.sampled_from(["image", "keypoints"]),
    image_size=st.sampled_from([24, 64]),
    frames=st.integers(1, 4),
    crop_scale=st.floats(1.0, 2.0),
)


@given(
    spec=SPECS, name=st.sampled_from(ROOTED), size=st.integers(1, 4),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=30)
def test_random_people_are_seen_by_their_own_camera(
    spec: InputSpec, name: str, size: int, seed: int
) -> None:
    skeleton = SKELETONS[name]
    batch = random_batch(spec, skeleton, size, seed)
    shape = (size, spec.frames, len(skeleton))
    assert set(batch) == set(PoseBatch.__annotations__) - (
        {"image"} if spec.kind == "keypoints" else set()
    )
    assert batch["joints_2d"].shape == (*shape, 2)
    assert batch["joints_3d"].shape == (*shape, 3)
    for key in ("valid_2d", "valid_3d", "occluded"):
        assert batch[key].shape == shape  # type: ignore[literal-required]
        assert batch[key].dtype == torch.bool  # type: ignore[literal-required]
    valid = batch["valid_3d"]
    assert bool(valid.any()) == bool(valid[:1].any())
    absolute = batch["joints_3d"] + batch["root_3d"][:, :, None]
    seen = absolute @ batch["intrinsics"].mT
    projected = seen[..., :2] / seen[..., 2:]
    torch.testing.assert_close(projected[valid], batch["joints_2d"][valid], rtol=1e-4, atol=1e-2)
    inside = (batch["joints_2d"] >= -0.51) & (batch["joints_2d"] <= spec.image_size - 0.49)
    assert bool(inside.all())
    assert bool((batch["joints_3d"][~valid] == 0).all())
    if size > 1:
        assert not bool(valid[-1].any())
    if spec.kind == "image":
        image = batch["image"]
        assert image.shape == (size, spec.frames, 3, spec.image_size, spec.image_size)
        assert 0 <= float(image.min()) <= float(image.max()) <= 1


def test_random_people_stand_upright_and_have_human_bones() -> None:
    batch = random_poses(InputSpec(), H36M_17, count=200)
    whole = batch["valid_3d"].all(-1)[:, 0]
    assert int(whole.sum()) == 175  # seven of eight
    camera, pose = batch["world_to_camera"][whole], batch["joints_3d"][whole, 0]
    torch.testing.assert_close(camera @ camera.mT, torch.eye(3).expand_as(camera))
    torch.testing.assert_close(torch.linalg.det(camera), torch.ones(len(camera)))
    world = pose @ camera  # inverse rotation of row vectors
    height = world[:, H36M_17.index("thorax"), 2]
    assert float((height > 200).float().mean()) > 0.95
    shin = pose[:, H36M_17.index("r_ankle")] - pose[:, H36M_17.index("r_knee")]
    assert 300 < float(shin.norm(dim=-1).min()) < float(shin.norm(dim=-1).max()) < 600


def test_a_skeleton_without_its_root_is_refused() -> None:
    with pytest.raises(UsageError, match="coco_17 has no joint 'pelvis'"):
        random_batch(InputSpec(), SKELETONS["coco_17"])


def test_random_batch_repeats_and_differs_by_seed() -> None:
    one, two, other = (random_batch(InputSpec(), H36M_17, 3, seed) for seed in (4, 4, 5))
    assert all(torch.equal(one[k], two[k]) for k in one)  # type: ignore[literal-required]
    assert not torch.equal(one["joints_3d"], other["joints_3d"])
