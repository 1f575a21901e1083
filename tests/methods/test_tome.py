"""Tome et al. 2017: fusion, losses, gradients through the lift, the final lift, the prior."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

import zoo
from zoo.base import Phase
from zoo.batch import PoseBatch
from zoo.checkpoint import save_weights
from zoo.errors import CheckpointError, DataError, UsageError
from zoo.geometry import px_to_cell
from zoo.heatmaps import (
    append_background,
    argmax_points,
    belief_loss,
    gaussian_maps,
    read_points,
)
from zoo.lifting.bank import camera_tilt
from zoo.methods.tome import LiftingFromTheDeep
from zoo.methods.tome.camera import stored_prior, upright_camera
from zoo.methods.tome.method import StageMetrics
from zoo.methods.tome.network import FusedMachine, SurrogateArgmax
from zoo.prior import Prior, fit_prior, pose_size
from zoo.protocols import Protocol
from zoo.reproduce.table import read_table
from zoo.skeleton import H36M_17
from zoo.testing import random_batch, random_poses

PITCH = math.radians(6)


def build(**changes: Any) -> LiftingFromTheDeep:
    tiny = dict(LiftingFromTheDeep.tiny().hparams)
    return LiftingFromTheDeep(**{**tiny, "warmup_epochs": 0, **changes}).eval()


def make_batch(model: LiftingFromTheDeep, size: int = 3, seed: int = 0) -> PoseBatch:
    return random_batch(model.input_spec, model.skeleton, size, seed)


def level_camera(pitch: float = 0.0, azimuth: float = 0.0, roll: float = 0.0) -> torch.Tensor:
    """World (z up) to camera; built from scratch, not by the code under test."""

    def turn(axis: int, angle: float) -> torch.Tensor:
        c, s = math.cos(angle), math.sin(angle)
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        out = torch.eye(3, dtype=torch.float64)
        out[i, i] = out[j, j] = c
        out[i, j], out[j, i] = -s, s
        return out

    level = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=torch.float64)
    return turn(2, roll) @ turn(0, pitch) @ level @ turn(2, azimuth)


def planted(prior: Prior, count: int, pitch: float, seed: int = 0) -> torch.Tensor:
    """Poses of the model (no residual), (N, J, 3) unit size, in a camera of that pitch."""
    rng = torch.Generator().manual_seed(seed)
    k = torch.randint(prior.components, (count,), generator=rng)
    a = torch.randn(count, prior.basis_size, generator=rng, dtype=torch.float64)
    a = a * prior.variances[k].sqrt()
    world = prior.mean[k] + torch.einsum("nd,ndji->nji", a, prior.basis[k])
    yaw = torch.randint(80, (count,), generator=rng) * (2 * math.pi / 80)
    cameras = torch.stack([level_camera(pitch, float(angle)) for angle in yaw])
    return world @ cameras.mT


# ---- fusion --------------------------------------------------------------------------------------


def test_weight_one_is_the_plain_machine_bit_for_bit_and_weight_zero_the_projection():
    model = build(stages=3)
    image = torch.rand(2, 3, 32, 32)
    projected = torch.rand(2, 18, 8, 8)
    plain = model.network(image, None)
    assert all(stage.projected is None and stage.fused is stage.belief for stage in plain)
    with torch.no_grad():
        model.network.fusion_logits.fill_(200.0)
        for one, other in zip(model.network(image, lambda b: projected), plain, strict=True):
            assert torch.equal(one.fused, other.fused)
        model.network.fusion_logits.fill_(-200.0)
        for stage in model.network(image, lambda b: projected):
            assert torch.equal(stage.fused, projected)


def test_fusion_is_equation_7_and_feeds_the_next_stage():
    model = build(stages=2)
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        model.network.fusion_logits.copy_(torch.tensor([0.7, -1.1]))
        weights = model.network.fusion_weights()
        first, second = model.network(image, lambda b: b.abs() + 1)
        for weight, stage in zip(weights, (first, second), strict=True):
            expected = weight * stage.belief + (1 - weight) * (stage.belief.abs() + 1)
            torch.testing.assert_close(stage.fused, expected)
        machine = model.network.machine
        _, features = machine.begin(image)
        again = machine.refine(1, first.fused, features, model.network.centre)
        assert torch.equal(second.belief, again)


def test_fusion_weights_start_at_a_half_and_stay_inside():
    model = build(stages=4)
    assert model.network.fusion_weights().tolist() == [0.5] * 4
    with torch.no_grad():
        model.network.fusion_logits.copy_(torch.tensor([-50.0, -1, 1, 50]))
    weights = model.network.fusion_weights()
    assert ((weights >= 0) & (weights <= 1)).all()
    assert build(lift_in_loop=False).network.fusion_weights().tolist() == [1.0, 1.0]
    assert "network.fusion_logits" not in build(lift_in_loop=False).state_dict()


# ---- the loss ------------------------------------------------------------------------------------


def test_loss_is_zero_at_the_targets_and_equation_8_elsewhere():
    target = torch.rand(3, 4, 5, 5)
    counted = torch.ones(3, 4, dtype=torch.bool)
    assert float(belief_loss(target, target, counted)) == 0
    fused = torch.rand(3, 4, 5, 5)
    plain = sum(
        float((fused[n, c, y, x] - target[n, c, y, x]) ** 2)
        for n in range(3) for c in range(4) for y in range(5) for x in range(5)
    )  # fmt: skip
    assert float(belief_loss(fused, target, counted)) == pytest.approx(plain / (2 * 3), rel=1e-5)
    counted[0] = False
    counted[1, 2] = False
    rest = (fused - target).square().sum((2, 3))
    expected = (rest[1, [0, 1, 3]].sum() + rest[2].sum()) / (2 * 2)
    torch.testing.assert_close(belief_loss(fused, target, counted), expected)


def test_the_loss_sums_all_stages_and_vanishes_where_the_maps_are_right(monkeypatch):
    model = build(stages=3)
    batch = make_batch(model)
    batch["valid_2d"][:] = True
    losses = model.compute_loss(batch)
    parts = [losses[f"loss_{t}"] for t in (1, 2, 3)]
    torch.testing.assert_close(losses["loss"].detach(), sum(parts))
    assert {f"w_{t}" for t in (1, 2, 3)} <= set(losses)
    assert float(losses["w_2"]) == 0.5
    height, width = 8, 8
    cells = px_to_cell(batch["joints_2d"][:, 0], model.stride)
    right = append_background(gaussian_maps(cells, height, width, model.hparams["sigma"]))
    exact = model.network(batch["image"][:, 0], None)[0]._replace(fused=right)
    monkeypatch.setattr(model, "_stages", lambda _: [exact] * 3)
    inside = (batch["joints_2d"] > 0).all() & (batch["joints_2d"] < 31).all()
    assert bool(inside)
    assert float(model.compute_loss(batch)["loss"]) < 1e-9


def test_warm_up_leaves_3d_out_and_trains_the_convolutions():
    model = build(epochs=5, warmup_epochs=2)
    assert [(p.name, p.epochs) for p in model.phases()] == [("warm-up", 2), ("train", 3)]
    assert model.phases()[0].train == ("network.machine.",)
    assert [(p.name, p.epochs) for p in build(epochs=5).phases()] == [("train", 5)]
    batch = make_batch(model)
    whole = model.compute_loss(batch)["loss"]
    model.phase = model.phases()[0]
    warm = model.compute_loss(batch)["loss"]
    stages = model._stages(batch)
    assert all(stage.projected is None for stage in stages)
    assert not torch.equal(whole, warm)
    with torch.no_grad():
        model.network.fusion_logits.fill_(200.0)
    model.phase = model.phases()[1]
    torch.testing.assert_close(model.compute_loss(batch)["loss"], warm)


# ---- gradients through the lift ------------------------------------------------------------------


def test_surrogate_gradient_equals_the_plain_rule():
    torch.manual_seed(1)
    maps = torch.rand(2, 3, 6, 7, requires_grad=True)
    gradient = torch.randn(2, 3, 2)
    gradient[0, 1] = 0
    cells = SurrogateArgmax.apply(maps, 1.7)
    assert torch.equal(cells, argmax_points(maps.detach()))
    (cells * gradient).sum().backward()
    expected = torch.zeros_like(maps)
    for n in range(2):
        for j in range(3):
            (x, y), (gx, gy) = cells[n, j].tolist(), gradient[n, j].tolist()
            strength = 1.7 * math.hypot(gx, gy)
            expected[n, j, int(y), int(x)] = strength
            for row in range(6):
                for column in range(7):
                    dx, dy = column - x, row - y
                    if dx * -gx > 0 and dy * -gy > 0:  # the quadrant that -g points into
                        bell = math.exp(-(dx**2 + dy**2) / 2) / (2 * math.pi)
                        expected[n, j, row, column] = -strength * bell
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad, expected)


def test_a_surrogate_step_lowers_the_maximum_and_raises_the_quadrant_pointed_to():
    maps = gaussian_maps(torch.tensor([[[3.0, 4.0]]]), 9, 9, 1.0).requires_grad_()
    cells = SurrogateArgmax.apply(maps, 1.0)
    wanted = torch.tensor([6.0, 1.0])  # to the right and up
    (cells - wanted).square().sum().backward()
    assert maps.grad is not None
    change = -maps.grad[0, 0]
    assert float(change[4, 3]) < 0
    assert (change[:4, 4:] > 0).all()
    change[:4, 4:] = 0
    change[4, 3] = 0
    assert not change.any()


@pytest.mark.parametrize("mode", ["surrogate", "softargmax"])
def test_errors_reach_the_beliefs_through_the_lift_only_if_asked(mode):
    batch = make_batch(build())
    reached = {}
    for kind in ("none", mode):
        torch.manual_seed(0)
        model = build(lift_grad=kind)
        camera = model._camera(batch, 0.01)
        belief = torch.rand(3, 18, 8, 8, requires_grad=True)
        projected = model._project(belief, camera)
        if kind == "none":
            # _project itself is differentiable; the loop cuts it.
            stages = model._stages(batch)
            assert stages[0].projected is not None
            assert not stages[0].projected.requires_grad
            continue
        target = torch.rand(projected.shape, generator=torch.Generator().manual_seed(3))
        (projected - target).square().sum().backward()
        assert belief.grad is not None
        assert belief.grad.isfinite().all()
        reached[kind] = float(belief.grad[:, :-1].abs().sum())
        assert not belief.grad[:, -1].any()  # the background does not move the joints
        assert model._stages(batch)[0].projected.requires_grad
    assert reached[mode] > 0


def test_gradient_of_the_projected_maps_is_exact_with_softargmax():
    model = build(lift_grad="softargmax", components=1)
    camera = level_camera(PITCH)[None]
    pose = planted(model.lift.prior, 1, PITCH)[0]
    cells = pose[None, :, :2] * 6 + 11.5
    belief = append_background(gaussian_maps(cells, 24, 24, 0.9)).double()
    weight = torch.randn(1, 18, 24, 24, dtype=torch.float64)
    belief.requires_grad_()

    def value(maps: torch.Tensor) -> torch.Tensor:
        # Without the background: its maximum over joints has kinks.
        return (model._project(maps, camera)[:, :-1] * weight[:, :-1]).sum()

    value(belief).backward()
    assert belief.grad is not None
    scale = float(belief.grad.abs().max())
    assert scale > 1e-3
    for index in belief.grad.abs().flatten().topk(5).indices.tolist():
        step = torch.zeros_like(belief).flatten()
        step[index] = 1e-6
        step = step.view_as(belief)
        slope = (value(belief.detach() + step) - value(belief.detach() - step)) / 2e-6
        exact = float(belief.grad.flatten()[index])
        assert float(slope) == pytest.approx(exact, abs=1e-5 * scale)


def test_maps_without_any_maximum_are_lifted_harmlessly():
    model = build(lift_grad="softargmax")
    belief = torch.zeros(2, 18, 8, 8, requires_grad=True)
    projected = model._project(belief, None)
    assert projected.isfinite().all()
    projected.sum().backward()
    assert belief.grad is not None
    assert belief.grad.isfinite().all()
    pose, std = model._final_lift(torch.full((2, 17, 2), 5.0), None)
    assert pose.isfinite().all()
    assert std.isfinite().all()


# ---- the camera ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("pitch", "azimuth", "roll"), [(0.1, 2.0, 0.3), (-0.07, -1.0, 0.0)])
def test_camera_keeps_roll_and_rounded_pitch_and_drops_the_azimuth(pitch, azimuth, roll):
    camera = level_camera(pitch, azimuth, roll)
    upright = upright_camera(camera, 0.02)
    found = [float(angle) for angle in camera_tilt(upright)]
    assert found == pytest.approx([roll, round(pitch / 0.02) * 0.02, 0.0], abs=1e-9)
    torch.testing.assert_close(upright @ upright.mT, torch.eye(3, dtype=torch.float64))
    fine = upright_camera(camera, 1e-6)
    torch.testing.assert_close(fine, level_camera(pitch, 0.0, roll), atol=1e-6, rtol=0)


def test_known_level_and_searched_cameras():
    pitch = 0.2
    models = {kind: build(camera=kind, gain=0.1) for kind in ("known", "level", "search")}
    pose = planted(models["known"].lift.prior, 16, pitch)
    points = (pose[..., :2] * 60 + 40).float()
    camera = level_camera(pitch).float().expand(16, 3, 3)
    batch = PoseBatch(image=torch.rand(16, 1, 3, 32, 32), world_to_camera=camera)
    truth = pose - pose[:, :1]
    truth = truth / pose_size(truth)[:, None, None]
    error = {}
    for kind, model in models.items():
        known = model._camera(batch, math.radians(0.5))
        assert (known is not None) == (kind == "known")
        found, _ = model._final_lift(points, known)
        found = found / pose_size(found)[:, None, None]
        error[kind] = float((found - truth).norm(dim=-1).mean())
    assert error["known"] < 0.4 * error["level"]
    assert error["search"] < 0.6 * error["level"]
    bare = PoseBatch(image=batch["image"])
    assert models["known"]._camera(bare, 0.01) is None
    assert models["known"].lift.pitches == models["search"].lift.pitches
    assert models["level"].lift.pitches == (0.0,)


def test_a_prediction_does_not_depend_on_the_pitches_of_its_batch():
    model = build(rotations=8)
    batch = random_batch(model.input_spec, model.skeleton, 40)
    with torch.no_grad():
        whole, alone = model(batch), model({k: v[:1] for k, v in batch.items()})
    torch.testing.assert_close(alone["pred_3d"], whole["pred_3d"][:1], atol=0.05, rtol=0)


# ---- the final lift ------------------------------------------------------------------------------


def test_planted_maps_give_the_planted_pose():
    model = build(rotations=80, gain=0.05, scale_min=0.2, image_size=384)
    pose = planted(model.lift.prior, 24, PITCH)
    points = (pose[..., :2] * 160 + 190).float()
    camera = level_camera(PITCH).expand(24, 3, 3)
    truth = (pose - pose[:, :1]).float()
    truth = truth / pose_size(truth)[:, None, None] * model.lift.size_mm.float()
    exact, _ = model._final_lift(points, camera)
    assert float((exact - truth).norm(dim=-1).mean()) < 2.0
    maps = gaussian_maps(px_to_cell(points, model.stride), 96, 96, 0.875)
    read = read_points(maps, model.stride)
    assert float((read - points).abs().max()) <= 0.25 * model.stride + 1e-3
    found, std = model._final_lift(read, camera)
    quantised = float((found - truth).norm(dim=-1).mean())
    # A quarter of a cell is 1 px, 7 mm at this size; depth is worse than the image plane.
    assert quantised < 40
    assert std.shape == (24, 17)
    assert (std[:, 1:] > 0).all()


def test_the_whole_forward_pass_reads_the_last_fused_maps(monkeypatch):
    model = build(rotations=80, gain=0.05, scale_min=0.2)
    batch = make_batch(model, 2)
    maps = append_background(torch.rand(2, 17, 8, 8))
    stages = model._stages(batch)
    stages[-1] = stages[-1]._replace(fused=maps)
    monkeypatch.setattr(model, "_stages", lambda _: stages)
    prediction = model(batch)
    points = read_points(maps[:, :-1], 4)
    assert torch.equal(prediction["pred_2d"][:, 0], points)
    pose, _ = model._final_lift(points, model._camera(batch, math.radians(0.5)))
    assert torch.equal(prediction["pred_3d"][:, 0], pose)
    assert torch.equal(model.stage_points(batch)[-1, :, 0], points)


@pytest.mark.parametrize("mix", [0.0, 1.55])
@pytest.mark.parametrize("size", [None, 1000.0])
def test_every_pose_has_the_training_constants_size(mix, size):
    model = build(mix_2d=mix, size_mm=size)
    pose, _ = model._final_lift(torch.rand(9, 17, 2) * 30, None)
    expected = 1000.0 if size else float(model.lift.size_mm)
    bones = torch.tensor(H36M_17.bones)
    squares = (pose[:, bones[:, 0]] - pose[:, bones[:, 1]]).square().sum((1, 2))
    torch.testing.assert_close(squares, torch.full((9,), expected**2), rtol=1e-4, atol=0)
    assert not pose[:, 0].any()


def test_mixing_moves_the_image_plane_towards_the_measured_joints_and_keeps_depth():
    points = torch.rand(5, 17, 2) * 30
    pure, _ = build()._final_lift(points, None)
    mixed, _ = build(mix_2d=1e6)._final_lift(points, None)
    shape = points - points[:, :1]
    for n in range(5):
        # With all weight on the measurement, x and y are the 2D joints up to one factor.
        factor = (mixed[n, :, :2] * shape[n]).sum() / shape[n].square().sum()
        torch.testing.assert_close(mixed[n, :, :2], factor * shape[n], atol=0.5, rtol=0)
        ratio = (mixed[n, :, 2] * pure[n, :, 2]).sum() / pure[n, :, 2].square().sum()
        torch.testing.assert_close(mixed[n, :, 2], ratio * pure[n, :, 2], atol=0.5, rtol=0)


def test_frames_of_a_clip_are_folded():
    model = build()
    batch = make_batch(model, 4)
    keys = ("image", "joints_2d", "valid_2d")
    clip = PoseBatch(**{k: batch[k].view(2, 2, *batch[k].shape[2:]) for k in keys})
    clip["world_to_camera"] = batch["world_to_camera"][::2]
    same = {**batch, "world_to_camera": clip["world_to_camera"].repeat_interleave(2, 0)}
    torch.testing.assert_close(
        model(clip)["pred_3d"].flatten(0, 1), model(same)["pred_3d"][:, 0], atol=0.05, rtol=0
    )
    assert model(clip)["pred_2d"].shape == (2, 2, 17, 2)
    assert torch.equal(model(clip)["pred_2d"].flatten(0, 1), model(same)["pred_2d"][:, 0])


# ---- the prior -----------------------------------------------------------------------------------


def test_the_prior_is_that_of_the_complete_poses_in_the_world():
    model = build(components=1, basis=3)
    poses = random_poses(model.input_spec, model.skeleton, 80)
    model.fit_statistics(poses)
    assert bool(model.statistics_fitted)
    whole = poses["valid_3d"][:, 0].all(-1)
    assert 0 < int((~whole).sum()) < 40
    camera, pose = poses["world_to_camera"][whole].double(), poses["joints_3d"][whole, 0].double()
    world = torch.stack([p @ e for p, e in zip(pose, camera, strict=True)])
    expected = fit_prior(world, 1, 3, exemplar_distance=0.0)
    torch.testing.assert_close(model.lift.prior.mean, expected.mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.lift.prior.noise, expected.noise, rtol=1e-5, atol=0)
    assert model.lift.prior.size_mm == pytest.approx(expected.size_mm, rel=1e-6)
    # Heads are above pelvises: the world's z was found.
    assert float(model.lift.prior.mean[0, 10, 2] - model.lift.prior.mean[0, 0, 2]) > 0.3
    few = PoseBatch(**{k: v[:4] for k, v in poses.items()})
    with pytest.raises(DataError, match="4 training poses have all joints"):
        model.fit_statistics(few)


def test_a_prior_with_too_few_components_is_filled_up_without_effect():
    prior = Prior.placeholder(2, 4)
    filled = stored_prior(prior, 5)
    assert filled.components == 5
    assert torch.equal(filled.weights[2:], torch.zeros(3, dtype=torch.float64))
    points = (planted(prior, 20, 0.0)[..., :2] * 20 + 20).float() + 0.3 * torch.randn(20, 17, 2)
    for counted in (False, True):
        two, five = (build(components=n, basis=4, scale_min=1e-3) for n in (2, 5))
        two.lift.component_weights = five.lift.component_weights = counted
        two.lift.set_prior(stored_prior(prior, 2))
        five.lift.set_prior(filled)
        for one, other in zip(
            two._final_lift(points, None), five._final_lift(points, None), strict=True
        ):
            torch.testing.assert_close(one, other, atol=0.05, rtol=1e-3)
    assert torch.equal(filled.mean, filled.mean.float().double())


def test_a_fitted_prior_is_read_from_its_file(tmp_path):
    prior = dataclasses.replace(Prior.placeholder(2, 3), size_mm=1234.0)
    prior = dataclasses.replace(prior, mean=prior.mean * 1.01)
    prior.save(tmp_path / "prior.safetensors")
    model = build(prior=str(tmp_path / "prior.safetensors"))  # components 2, basis 3
    poses = random_poses(model.input_spec, model.skeleton, 8)
    model.fit_statistics(poses)
    torch.testing.assert_close(model.lift.prior.mean, prior.mean, atol=1e-7, rtol=1e-6)
    assert float(model.lift.size_mm) == 1234.0
    with pytest.raises(UsageError, match="2 components and 3 basis"):
        build(prior=str(tmp_path / "prior.safetensors"), components=3).fit_statistics(poses)
    with pytest.raises(CheckpointError, match="no such file"):
        build(prior=str(tmp_path / "none")).fit_statistics(poses)


# ---- training and test ---------------------------------------------------------------------------


def rates(model: LiftingFromTheDeep) -> dict[str, tuple[float, float]]:
    made = model.configure_optimizers()
    names = {id(p): n for n, p in model.named_parameters()}
    groups = made["optimizer"].param_groups
    return {names[id(p)]: (g["initial_lr"], g["weight_decay"]) for g in groups for p in g["params"]}


def test_cpms_rates_for_stages_biases_and_fusion():
    vgg = rates(build(lr=0.1, bias_lr=2.0, stage_lr=None, fusion_lr=7.0, weight_decay=0.5))
    assert len(vgg) == len(list(build().parameters()))
    expected = {
        "network.machine.trunk.layers.0.weight": (0.1, 0.5),
        "network.machine.trunk.layers.0.bias": (0.2, 0.0),
        "network.machine.first.0.weight": (0.1, 0.5),
        "network.machine.later.0.0.weight": (0.4, 0.5),
        "network.machine.later.0.0.bias": (0.8, 0.0),
        "network.fusion_logits": (0.7, 0.0),
    }
    for name, pair in expected.items():
        assert vgg[name] == pytest.approx(pair), name
    nine = rates(build(network="9x9", channels=[[4, 8, 5]], lr=0.1, bias_lr=2.0, stage_lr=None))
    assert nine["network.machine.first.0.weight"][0] == pytest.approx(0.5)
    assert nine["network.machine.tower.0.weight"][0] == pytest.approx(0.1)
    assert nine["network.machine.later.0.0.weight"][0] == pytest.approx(0.1)


def curve(model: LiftingFromTheDeep, steps: int) -> list[float]:
    made = model.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    assert made["lr_scheduler"]["interval"] == "step"
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return values


def test_schedules():
    steps = curve(build(lr=1.0, lr_step=3, lr_gamma=0.5), 7)
    assert steps == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.25])
    cosine = curve(build(lr=1.0, schedule="cosine", optimizer="adam", epochs=4), 6)
    half = math.sqrt(0.5)
    assert cosine == pytest.approx([1, 0.5 + half / 2, 0.5, 0.5 - half / 2, 0, 0], abs=1e-9)


class Rates(pl.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *rest: Any) -> None:
        self.values.append(trainer.optimizers[0].param_groups[0]["lr"])


class People(pl.LightningDataModule):
    """Four training batches an epoch; a test set whose last batch repeats its first one."""

    action_names = ("walking", "sitting")

    def __init__(self, model: LiftingFromTheDeep) -> None:
        super().__init__()
        self.batches = [make_batch(model, 4, seed) for seed in range(4)]
        for number, batch in enumerate(self.batches):
            batch["sequence"] = torch.full((4,), number)
        self.poses = random_poses(model.input_spec, model.skeleton, 60)

    def training_poses(self) -> PoseBatch:
        return self.poses

    def protocol(self, split: str) -> Protocol:
        return Protocol(f"random-{split}", "random people", ("S1",), ("S1",))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader([*self.batches[:2], self.batches[0]], batch_size=None)  # type: ignore[arg-type]


def quiet_trainer(epochs: int, *callbacks: pl.Callback) -> pl.Trainer:
    from callbacks.phases import TrainingPhases

    return pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0,
        callbacks=[TrainingPhases(), *callbacks],
    )  # fmt: skip


def test_one_cosine_runs_through_warm_up_and_training(in_tmp):
    model = build(
        lr=1.0, schedule="cosine", optimizer="adam", epochs=3, warmup_epochs=1, basis=2,
        components=1,
    )  # fmt: skip
    seen = Rates()
    quiet_trainer(3, seen).fit(model, datamodule=People(model))
    expected = [0.5 + 0.5 * math.cos(math.pi * step / 12) for step in range(12)]
    assert seen.values == pytest.approx(expected)


def test_a_shipped_file_keeps_the_prior_exactly(tmp_path):
    model = zoo.create("tome-mixture", **build().hparams)
    with torch.no_grad():
        for value in (model.lift.mean, model.lift.noise):
            value.copy_(torch.rand_like(value) * 1e-7)  # float16 would make this zero
    path = save_weights(model, tmp_path / "model.safetensors")
    stored = zoo.load(path)
    assert torch.equal(stored.lift.mean, model.lift.mean)
    assert torch.equal(stored.lift.noise, model.lift.noise)


def test_training_refines_a_trained_pose_machine_with_its_own_prior(tmp_path, in_tmp):
    machine = zoo.create("cpm", **{**build(components=1).hparams, "lift_in_loop": False})
    path = save_weights(machine, tmp_path / "machine.safetensors", half=False)
    refined = build(machine_weights=str(path), lr=0.0, weight_decay=0.0)
    quiet_trainer(1).fit(refined, datamodule=People(refined))
    trained = machine.network.machine.state_dict()
    for name, value in refined.network.machine.state_dict().items():
        torch.testing.assert_close(value, trained[name], rtol=0, atol=0)
    assert bool(refined.statistics_fitted)
    assert not torch.equal(refined.lift.mean[0], machine.lift.mean[0])

    path.unlink()  # a training that is resumed or fine-tuned does not need the file again
    quiet_trainer(1).fit(refined, datamodule=People(refined))
    narrow = build(width=7, machine_weights=str(save_weights(machine, path)))
    with pytest.raises(CheckpointError, match="use the sizes it was trained with"):
        quiet_trainer(1).fit(narrow, datamodule=People(narrow))


def test_a_test_logs_the_2d_error_of_every_stage_and_counts_samples_once(in_tmp):
    model = build(stages=3)
    data = People(model)
    trainer = quiet_trainer(1)
    trainer.test(model, datamodule=data, verbose=False)
    logged = {k: float(v) for k, v in trainer.callback_metrics.items()}
    expected = []
    for batch in data.batches[:2]:  # the third batch is the first once more
        with torch.no_grad():
            distance = (model.stage_points(batch) - batch["joints_2d"]).norm(dim=-1)
        valid = batch["valid_2d"]
        expected.append(torch.where(valid, distance, 0).sum(-1) / valid.sum(-1))
    means = torch.cat(expected, 1).mean((1, 2))
    for t in range(3):
        assert logged[f"test/error_2d_stage{t + 1}_px"] == pytest.approx(float(means[t]), rel=1e-5)
    assert logged["test/error_2d_stage3_px"] == pytest.approx(logged["test/error_2d_px"])
    assert isinstance(model.test_metrics, StageMetrics)
    report = model.test_metrics.per_action()["all frames"]
    assert report["samples"] == 8
    assert report["error_2d_stage2_px"] == pytest.approx(float(means[1]), rel=1e-5)


def test_2d_alone_trains_it():
    model = build()
    batch = make_batch(model)
    flat = PoseBatch(**{k: batch[k] for k in ("image", "joints_2d", "valid_2d")})
    assert model.compute_loss(flat)["loss"].requires_grad


def test_overfits_a_few_pictures():
    torch.manual_seed(0)
    model = build(width=16, channels=[[8], [16], [16, 16]], components=1).train()
    batch = make_batch(model, 4)
    batch["valid_2d"][:] = True
    model.phase = Phase("warm-up", 1)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(160):
        if step == 60:
            model.phase = None
        optimizer.zero_grad()
        model.compute_loss(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        error = (model.eval().stage_points(batch)[-1] - batch["joints_2d"]).norm(dim=-1)
    assert float(error.median()) < 2.5  # px; a cell has 4


def test_the_paper_network_is_the_sheets(monkeypatch):
    with torch.device("meta"):
        for name, million in (("vgg", 29.95), ("9x9", 31.46)):
            model = LiftingFromTheDeep(network=name, components=1, basis=1, rotations=1)
            count = sum(p.numel() for p in model.parameters())
            assert count / 1e6 == pytest.approx(million, abs=0.005)
            assert isinstance(model.network, FusedMachine)
    assert model.stride == 8
    assert model.input_spec.image_size == 368


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"network": "resnet"}, "network"),
        ({"lift_grad": "autograd"}, "lift_grad"),
        ({"camera": "unknown"}, "camera"),
        ({"image_size": 30}, "no multiple of the network's stride 4"),
        ({"components": 0}, "components is 0"),
        ({"epochs": 3, "warmup_epochs": 3}, "warmup_epochs 3"),
        ({"sigma": 0.0}, "sigma is 0.0"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(UsageError, match=words):
        build(**arguments)


def test_wrong_batches_are_named():
    model = build()
    with pytest.raises(DataError, match="no 'image'"):
        model(PoseBatch(joints_2d=torch.zeros(1, 1, 17, 2)))
    with pytest.raises(DataError, match="48 x 48 px; they must be 32 x 32"):
        model(PoseBatch(image=torch.zeros(1, 1, 3, 48, 48)))


def test_the_table_compares_like_with_like():
    table = read_table("tome-table1")
    assert [row.method for row in table.rows] == ["cpm", "tome-single", "tome-mixture"]
    assert len({(row.recipe, row.epochs, str(row.data), str(row.model)) for row in table.rows}) == 1
    assert all(row.model["machine_weights"] == "cpm" for row in table.rows)  # one under all
    assert table.images % (table.rows[0].epochs * 16) == 0
    pairs = {(c.better, c.worse, c.metric) for c in table.claims}
    assert ("tome-single", "cpm", "error_2d_px") in pairs
    assert ("tome-mixture", "tome-single", "mpjpe_mm") in pairs
