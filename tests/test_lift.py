"""The lift against slow plain versions, planted poses, invariances and gradients."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datamodules.bodies import PARENTS, bodies, retarget
from datamodules.motion import MotionBank
from zoo.errors import UsageError
from zoo.lifting import MIN_JOINTS, LiftResult, PPCALift, calibrate
from zoo.lifting.bank import view_rotation
from zoo.lifting.calibration import hide_joints, random_views
from zoo.prior import Prior, fit_prior

F64 = torch.float64
LEVEL = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=F64)


def camera(pitch: float = 0.0, roll: float = 0.0, azimuth: float = 0.0) -> Tensor:
    def turn(axis: int, t: float) -> Tensor:
        c, s = math.cos(t), math.sin(t)
        x = torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]], dtype=F64)
        z = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=F64)
        return x if axis == 0 else z

    return turn(2, roll) @ turn(0, pitch) @ LEVEL @ turn(2, azimuth)


def scene(
    prior: Prior, count: int, rotation: Tensor = LEVEL, seed: int = 0, noise: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Image points (px) and true poses (mm, camera, root-relative) under weak perspective."""
    g = torch.Generator().manual_seed(seed)
    pose = prior.sample(count, g) @ rotation.T
    scale = 0.2 + 0.3 * torch.rand(count, 1, 1, dtype=F64, generator=g)
    shift = 200 * torch.rand(count, 1, 2, dtype=F64, generator=g)
    points = pose[..., :2] * scale + shift
    points = points + noise * torch.randn(points.shape, dtype=F64, generator=g)
    return points, pose - pose[:, :1]


def random_weights(count: int, kind: str, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(count, 17, generator=g, dtype=F64)
    if kind == "real":
        return weights.clamp_min(0.1)
    weights = (weights > 0.3).to(F64)
    weights[:, [0, 4, 8, 10, 16]] = 1.0
    return weights


def brute_force(
    lift: PPCALift, points: Tensor, weights: Tensor, rotation: Tensor
) -> list[dict[str, np.ndarray]]:
    """Eq. 4 for one pose at a time: a plain least squares an angle, translation as two columns."""
    prior, out = lift.prior, []
    height = prior.mean.mean(0)[:, 2].numpy()
    for y, w in zip(points.numpy(), weights.numpy(), strict=True):
        seen = w > 0
        model_tall = max(np.ptp(height[seen]), 0.25 * np.ptp(height))
        best: list[dict[str, np.ndarray]] = []
        # The cap is measured upright, so the camera's roll is undone.
        up = rotation.numpy()[:, 2]
        roll = math.atan2(up[0], -up[1])
        vertical = -math.sin(roll) * y[:, 0] + math.cos(roll) * y[:, 1]
        least = lift.scale_min * np.ptp(vertical[seen]) / model_tall
        for k in range(prior.components):
            shapes = torch.cat((prior.mean[k : k + 1], prior.basis[k])).numpy()
            sigma = lift.gain * np.sqrt(prior.noise[k].item() / prior.variances[k].numpy())
            costs, solutions = [], []
            for r in range(lift.rotations):
                t = 2 * math.pi * r / lift.rotations
                # The grid counts from the camera's azimuth.
                first = math.cos(roll) * rotation[0] + math.sin(roll) * rotation[1]
                t = t - math.atan2(-first[1].item(), first[0].item())
                c, s = math.cos(t), math.sin(t)
                turned = shapes @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T
                image = (turned @ rotation.numpy().T)[..., :2]
                a = np.concatenate(
                    (image.reshape(len(shapes), 34).T, np.tile(np.eye(2), (17, 1))), 1
                )
                rows = np.repeat(w, 2)[:, None] * a
                ridge = np.zeros((len(sigma), a.shape[1]))
                ridge[:, 1 : 1 + len(sigma)] = np.diag(sigma)
                system = np.concatenate((rows, ridge))
                right = np.zeros(len(system))
                right[:34] = np.repeat(w, 2) * np.where(np.repeat(seen, 2), y.ravel(), 0)
                z = np.linalg.lstsq(system, right, rcond=None)[0]
                if z[0] < least:
                    rest = np.linalg.lstsq(system[:, 1:], right - least * system[:, 0], rcond=None)[
                        0
                    ]
                    z = np.concatenate(([least], rest))
                costs.append(((system @ z - right) ** 2).sum())
                solutions.append((z, turned @ rotation.numpy().T, t, a))
            r = int(np.argmin(costs))
            z, camera_shapes, t, a = solutions[r]
            coefficients = z[1 : 1 + len(sigma)] / z[0]
            pose = camera_shapes[0] + np.einsum("d,dji->ji", coefficients, camera_shapes[1:])
            logdet = prior.logdet[k].item()
            score = costs[r] / (2 * z[0] ** 2 * prior.noise[k].item()) + logdet / 2
            best.append({
                "costs": np.array(costs), "cost": costs[r], "scale": z[0] / prior.size_mm,
                "pose": (pose - pose[0]) * prior.size_mm, "image": (a @ z).reshape(17, 2),
                "angle": t % (2 * math.pi), "score": score, "k": k,
            })  # fmt: skip
        out.append(min(best, key=lambda b: float(b["score"])))
    return out


def assert_equals_brute_force(
    lift: PPCALift, result: LiftResult, slow: list[dict[str, np.ndarray]]
) -> None:
    for i, truth in enumerate(slow):
        assert int(result.component[i]) == int(truth["k"])
        assert float(result.cost[i]) == pytest.approx(float(truth["cost"]), rel=1e-6)
        assert float(result.scale[i]) == pytest.approx(float(truth["scale"]), rel=1e-6)
        turn = float(result.angle[i]) - float(truth["angle"])
        assert abs(math.sin(turn / 2)) < 1e-6
        np.testing.assert_allclose(result.pose_3d[i].numpy(), truth["pose"], atol=1e-3)
        np.testing.assert_allclose(result.reprojection[i].numpy(), truth["image"], atol=1e-4)


@pytest.fixture(scope="module")
def prior() -> Prior:
    return Prior.placeholder(1, 8)


@pytest.fixture(scope="module")
def mixture() -> Prior:
    return Prior.placeholder(3, 6)


# ---- the closed form ----------------------------------------------------------------------------


@pytest.mark.parametrize("view", [(0.0, 0.0, 0.0), (0.3, 0.0, 1.0), (-0.2, 0.25, -2.0)])
@pytest.mark.parametrize("kind", ["all", "binary", "real"])
def test_equals_brute_force_least_squares(
    mixture: Prior, kind: str, view: tuple[float, float, float]
) -> None:
    rotation = camera(*view)
    points, _ = scene(mixture, 8, rotation, seed=3)
    weights = torch.ones(8, 17, dtype=F64) if kind == "all" else random_weights(8, kind)
    lift = PPCALift(mixture, rotations=24)
    slow = brute_force(lift, points, weights, rotation)
    assert_equals_brute_force(lift, lift(points, weights, rotation), slow)


def test_every_angle_has_the_brute_force_cost(prior: Prior) -> None:
    points, _ = scene(prior, 4)
    lift = PPCALift(prior, rotations=16, scale_min=1e-6)
    bank = lift.bank(0.0, F64)
    costs, scales = bank.costs(points.flatten(1))
    costs = bank.capped(costs, scales, 1e-6 * torch.ones(4, 1, dtype=F64))
    slow = brute_force(lift, points, torch.ones(4, 17, dtype=F64), LEVEL)
    np.testing.assert_allclose(costs.numpy(), np.stack([s["costs"] for s in slow]), rtol=1e-6)


def test_scale_cap_equals_solving_with_the_scale_fixed(prior: Prior) -> None:
    points, _ = scene(prior, 12)
    lift = PPCALift(prior, rotations=12, scale_min=1.2)
    for weights in (torch.ones(12, 17, dtype=F64), random_weights(12, "binary")):
        result = lift(points, weights)
        slow = brute_force(lift, points, weights, LEVEL)
        assert_equals_brute_force(lift, result, slow)
        assert bool((result.scale * prior.size_mm >= 0).all())


@pytest.mark.parametrize("kind", ["all", "binary"])
@pytest.mark.parametrize("components", [1, 3])
def test_float32_agrees_with_float64(components: int, kind: str) -> None:
    prior = Prior.placeholder(components, 20)
    points, _ = scene(prior, 600, seed=1)
    weights = None if kind == "all" else random_weights(600, kind)
    lift = PPCALift(prior)
    wide, narrow = lift(points, weights), lift(points.float(), weights)
    assert narrow.pose_3d.dtype == torch.float32
    same = (narrow.component == wide.component) & (
        torch.sin((narrow.angle - wide.angle) / 2).abs() < 1e-3
    )
    assert float(same.double().mean()) > 0.99
    assert float((narrow.pose_3d - wide.pose_3d)[same].norm(dim=2).max()) < 0.01
    # Where another angle wins, it is a tie: its cost is the same.
    ok = narrow.component == wide.component
    assert float((narrow.cost / wide.cost - 1).abs()[ok].max()) < 5e-4


def test_planted_pose_at_a_grid_angle_is_found_exactly(prior: Prior) -> None:
    lift = PPCALift(prior, rotations=80)
    t = torch.arange(80, dtype=F64) * (2 * math.pi / 80)
    bank = lift.bank(0.0, F64)
    points = (prior.mean[0] @ bank.view.transpose(1, 2))[..., :2] * 170 + 90
    result = lift(points)
    torch.testing.assert_close(result.angle, t)
    torch.testing.assert_close(result.scale * prior.size_mm, torch.full((80,), 170.0, dtype=F64))
    assert float(result.coefficients.abs().max()) < 1e-9
    torch.testing.assert_close(result.reprojection, points)


def test_the_planted_component_is_chosen() -> None:
    prior = Prior.placeholder(3, 4)
    lift = PPCALift(prior)
    for k in range(3):
        points, _ = scene(prior.component(k), 60, seed=k, noise=0.0)
        assert float((lift(points).component == k).double().mean()) > 0.95


# ---- cameras ------------------------------------------------------------------------------------


def test_azimuth_only_shifts_the_angle_and_roll_only_turns_the_picture(prior: Prior) -> None:
    points, _ = scene(prior, 6)
    lift = PPCALift(prior, rotations=40)
    step = 2 * math.pi / 40
    plain = lift(points, camera=camera(0.2))
    around = lift(points, camera=camera(0.2, azimuth=3 * step))
    torch.testing.assert_close(around.pose_3d, plain.pose_3d)
    assert float(torch.sin((plain.angle - around.angle - 3 * step) / 2).abs().max()) < 1e-9
    c, s = math.cos(0.4), math.sin(0.4)
    spin = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=F64)
    rolled = lift(points @ spin[:2, :2].T, camera=camera(0.2, roll=0.4))
    torch.testing.assert_close(rolled.pose_3d, plain.pose_3d @ spin.T, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rolled.angle, plain.angle)


def test_each_pose_has_its_own_camera(prior: Prior) -> None:
    views = [camera(p, r, a) for p, r, a in ((0.0, 0.0, 0.3), (0.3, 0.1, 1.0), (0.3, 0.0, 2.0))]
    points, _ = scene(prior, 3)
    lift = PPCALift(prior, rotations=20)
    together = lift(points, camera=torch.stack(views))
    for i, view in enumerate(views):
        alone = lift(points[i : i + 1], camera=view)
        torch.testing.assert_close(together.pose_3d[i : i + 1], alone.pose_3d)
    many = torch.stack([camera(0.01 * i) for i in range(40)])
    points, _ = scene(prior, 40)
    binned = lift(points, camera=many)
    true_pitch = torch.arange(40, dtype=F64) * 0.01
    assert float((binned.pitch - true_pitch).abs().max()) <= math.radians(0.25) + 1e-9


def test_an_unknown_pitch_is_found_beside_the_angles(prior: Prior) -> None:
    rotation = camera(0.35)
    points, truth = scene(prior, 60, rotation, noise=0.5)
    level = PPCALift(prior)(points)
    searched = PPCALift(prior, pitches=[-0.35, 0.0, 0.35])(points)
    known = PPCALift(prior)(points, camera=rotation)

    def error(result: LiftResult) -> float:
        return float((result.pose_3d - truth).norm(dim=2).mean())

    assert float((searched.pitch == 0.35).double().mean()) > 0.8
    assert bool((searched.cost <= level.cost + 1e-9).all())
    assert error(known) <= error(searched) < 0.75 * error(level)


# ---- missing joints -----------------------------------------------------------------------------


def test_a_joint_of_weight_zero_is_not_read_and_its_place_is_predicted(prior: Prior) -> None:
    points, _ = scene(prior, 20)
    weights = random_weights(20, "binary")
    lift = PPCALift(prior)
    spoiled = torch.where((weights > 0)[:, :, None], points, math.nan)
    once, again = lift(points, weights), lift(spoiled, weights)
    for a, b in zip(once[:-1], again[:-1], strict=True):
        torch.testing.assert_close(a, b)
    # Filling the holes with the prediction changes nothing: it is the optimum over the holes.
    filled = torch.where((weights > 0)[:, :, None], points, once.reprojection)
    whole = lift(filled)
    torch.testing.assert_close(whole.pose_3d, once.pose_3d, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(whole.cost, once.cost, rtol=1e-6, atol=1e-9)


def test_a_shared_visibility_gets_tables_of_its_own_and_the_same_answers(mixture: Prior) -> None:
    points, _ = scene(mixture, 600)
    weights = torch.ones(600, 17, dtype=F64)
    weights[:, [2, 7, 9, 14]] = 0
    shared, single = PPCALift(mixture, rotations=20), PPCALift(mixture, rotations=20)
    first = shared(points, weights, camera(0.2, 0.1))
    assert any(key[2] for key in shared._banks)
    for start in range(0, 30, 10):
        part = slice(start, start + 10)
        few = single(points[part], weights[part], camera(0.2, 0.1))
        for a, b in zip(few[:-1], first[:-1], strict=True):
            torch.testing.assert_close(a, b[part], rtol=1e-7, atol=1e-7)
    assert not any(key[2] for key in single._banks)
    slow = brute_force(shared, points[:4], weights[:4], camera(0.2, 0.1))
    again = shared(points[:4], weights[:4], camera(0.2, 0.1))
    assert_equals_brute_force(shared, again, slow)


def test_single_poses_and_batches_agree_with_missing_joints(prior: Prior) -> None:
    points, _ = scene(prior, 40)
    weights = random_weights(40, "binary")
    lift = PPCALift(prior, rotations=20)
    batch = lift(points, weights)
    for i in range(0, 40, 7):
        one = lift(points[i : i + 1], weights[i : i + 1])
        torch.testing.assert_close(one.pose_3d[0], batch.pose_3d[i], rtol=1e-7, atol=1e-6)


def test_half_of_the_joints_missing_still_gives_sensible_poses() -> None:
    prior = Prior.placeholder(1, 8)
    points, truth = scene(prior, 200)
    g = torch.Generator().manual_seed(0)
    order = torch.rand(200, 17, generator=g).argsort(1)
    weights = torch.ones(200, 17, dtype=F64).scatter(1, order[:, :8], 0.0)
    result = PPCALift(prior)(points.float(), weights)
    assert bool(torch.isfinite(result.pose_3d).all())
    limbs = [(1, 2), (2, 3), (4, 5), (5, 6), (11, 12), (12, 13)]
    error = (result.pose_3d - truth).norm(dim=2).mean()
    mean = prior.mean[0] - prior.mean[0, 0]
    spread = (truth - (mean * prior.size_mm) @ LEVEL.T).norm(dim=2).mean()
    assert float(error) < 0.6 * float(spread)
    for a, b in limbs:
        length = (result.pose_3d[:, a] - result.pose_3d[:, b]).norm(dim=1)
        true = (truth[:, a] - truth[:, b]).norm(dim=1)
        assert float(length.median() / true.median()) == pytest.approx(1.0, abs=0.35)


@settings(max_examples=25)
@given(st.sets(st.integers(0, 16), min_size=MIN_JOINTS, max_size=17), st.integers(0, 5))
def test_any_subset_of_five_or_more_joints_is_lifted(seen: set[int], seed: int) -> None:
    prior = Prior.placeholder(2, 5)
    points, _ = scene(prior, 2, seed=seed)
    weights = torch.zeros(2, 17)
    weights[:, list(seen)] = 1
    result = PPCALift(prior, rotations=12)(points, weights, uncertainty=True)
    assert all(bool(torch.isfinite(field).all()) for field in result if field is not None)
    assert bool((result.scale > 0).all())


def test_wrong_input_is_refused_in_one_line(prior: Prior) -> None:
    lift = PPCALift(prior, rotations=4)
    weights = torch.ones(3, 17)
    weights[1, 4:] = 0
    with pytest.raises(UsageError, match="pose 1 has 4 visible joints; the lift needs 5"):
        lift(torch.zeros(3, 17, 2), weights)
    with pytest.raises(UsageError, match=r"expected \(B, 17, 2\)"):
        lift(torch.zeros(3, 16, 2))
    with pytest.raises(UsageError, match="weights have shape"):
        lift(torch.zeros(3, 17, 2), torch.ones(3, 16))
    with pytest.raises(UsageError, match="lie in"):
        lift(torch.zeros(3, 17, 2), torch.full((3, 17), 2.0))
    with pytest.raises(UsageError, match="rotation"):
        PPCALift(prior, rotations=0)


def test_an_empty_batch_gives_an_empty_result(prior: Prior) -> None:
    for lift in (PPCALift(prior, rotations=4), PPCALift(prior, rotations=4, refine=1)):
        result = lift(torch.zeros(0, 17, 2), torch.zeros(0, 17), uncertainty=True)
        assert result.pose_3d.shape == (0, 17, 3)


# ---- invariances and refinement -----------------------------------------------------------------


def test_shift_and_scale_of_the_picture_change_nothing_else(mixture: Prior) -> None:
    points, _ = scene(mixture, 20)
    lift = PPCALift(mixture)
    for weights in (None, random_weights(20, "real")):
        a = lift(points, weights)
        b = lift(points * 2.5 + torch.tensor([1000.0, -300.0]), weights)
        torch.testing.assert_close(a.pose_3d, b.pose_3d, rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(a.scale * 2.5, b.scale)
        torch.testing.assert_close(a.angle, b.angle)


def test_refinement_lowers_the_cost_and_finds_planted_angles(prior: Prior) -> None:
    g = torch.Generator().manual_seed(4)
    t = torch.rand(50, dtype=F64, generator=g) * 2 * math.pi
    stiff = PPCALift(prior, rotations=20, refine=5)
    points = (prior.mean[0] @ view_rotation(t, torch.zeros(50, dtype=F64)).transpose(1, 2))[..., :2]
    result = stiff(points * 300)
    assert float(torch.sin((result.angle - t) / 2).abs().max()) < 1e-4
    points, _ = scene(prior, 100)
    weights = random_weights(100, "binary")
    for w in (None, weights):
        coarse = PPCALift(prior, rotations=20)(points, w)
        fine = PPCALift(prior, rotations=20, refine=5)(points, w)
        dense = PPCALift(prior, rotations=1000)(points[:20], None if w is None else w[:20])
        assert bool((fine.cost <= coarse.cost * (1 + 1e-9)).all())
        same = torch.sin((fine.angle[:20] - dense.angle) / 2).abs() < 0.1
        assert int(same.sum()) >= 15
        assert bool((fine.cost[:20] <= dense.cost * (1 + 1e-6))[same].all())


def test_coefficients_rebuild_the_pose_and_the_cost(mixture: Prior) -> None:
    points, _ = scene(mixture, 10)
    lift = PPCALift(mixture)
    r = lift(points)
    k = r.component
    unit = mixture.mean[k] + torch.einsum("bd,bdji->bji", r.coefficients, mixture.basis[k])
    c, s, o = r.angle.cos(), r.angle.sin(), torch.zeros_like(r.angle)
    turn = torch.stack((c, -s, o, s, c, o, o, o, o + 1), -1).view(-1, 3, 3)
    pose = unit @ turn.transpose(1, 2) @ LEVEL.T * mixture.size_mm
    torch.testing.assert_close(r.pose_3d, pose - pose[:, :1])
    image = r.scale[:, None, None] * pose[..., :2]
    centre = (points - image).mean(1, keepdim=True)
    torch.testing.assert_close(r.reprojection, image + centre)
    sigma = (mixture.noise[k, None] / mixture.variances[k]).sqrt()
    penalty = (sigma * r.coefficients * r.scale[:, None] * mixture.size_mm).square().sum(1)
    torch.testing.assert_close(r.cost, (points - r.reprojection).square().sum((1, 2)) + penalty)


# ---- gradients ----------------------------------------------------------------------------------


def test_reprojection_gradient_is_a_g_at(prior: Prior) -> None:
    """Supplement, Eq. 8: with angle and component fixed, d yhat / d y = A G A^T (+ translation)."""
    points, _ = scene(prior, 1)
    lift = PPCALift(prior)
    base = lift(points)
    index = int((base.angle / (2 * math.pi / 80)).round())
    view = lift.bank(0.0, F64).view[index]
    shapes = torch.cat((prior.mean, prior.basis[0]))
    a = (shapes @ view.T)[..., :2].reshape(9, 34).T
    d = torch.cat((torch.zeros(1, dtype=F64), (prior.noise[0] / prior.variances[0]).sqrt()))
    expected = a @ torch.linalg.inv(a.T @ a + torch.diag(d.square())) @ a.T
    expected = expected + torch.kron(torch.ones(17, 17, dtype=F64), torch.eye(2, dtype=F64)) / 17
    jacobian = torch.autograd.functional.jacobian(lambda y: lift(y).reprojection, points)
    torch.testing.assert_close(jacobian.view(34, 34), expected, rtol=1e-9, atol=1e-9)
    values = torch.linalg.eigvalsh(expected)
    assert float(values.min()) > -1e-9
    assert float(values.max()) < 1 + 1e-9


@pytest.mark.parametrize("kind", ["all", "binary", "capped"])
@pytest.mark.parametrize("refine", [0, 2])
def test_gradients_equal_finite_differences(prior: Prior, kind: str, refine: int) -> None:
    points, _ = scene(prior, 2)
    weights = random_weights(2, "binary") if kind == "binary" else None
    lift = PPCALift(prior, rotations=40, refine=refine, scale_min=1.3 if kind == "capped" else 0.8)
    rotation = camera(0.2, 0.1)
    start = lift(points, weights, rotation)

    def outputs(y: Tensor) -> Tensor:
        r = lift(y, weights, rotation)
        return torch.cat([f.flatten() for f in (r.reprojection, r.pose_3d / 100, r.scale * 100)])

    if kind == "capped" or refine:
        # The cap's extent and the refined angle are constants of the gradient, as the angle is.
        assert bool(torch.isfinite(torch.autograd.functional.jacobian(outputs, points)).all())
        return
    jacobian = torch.autograd.functional.jacobian(outputs, points).flatten(1)
    step, columns = 1e-4, []
    for i in range(points.numel()):
        e = torch.zeros(points.numel(), dtype=F64)
        e[i] = step
        e = e.view_as(points)
        assert torch.equal(lift(points + e, weights, rotation).angle, start.angle)
        columns.append((outputs(points + e) - outputs(points - e)) / (2 * step))
    torch.testing.assert_close(jacobian, torch.stack(columns, 1), rtol=1e-5, atol=1e-6)


def test_float32_gradient_is_finite_in_large_batches(mixture: Prior) -> None:
    points, _ = scene(mixture, 1500)
    y = points.float().requires_grad_()
    lift = PPCALift(mixture, rotations=20)
    result = lift(y, random_weights(1500, "binary"))
    (result.reprojection.sum() + result.pose_3d.square().sum()).backward()
    assert y.grad is not None
    assert bool(torch.isfinite(y.grad).all())
    assert not list(lift.parameters())


# ---- the module ---------------------------------------------------------------------------------


def test_state_dict_carries_the_prior(prior: Prior, mixture: Prior) -> None:
    points, _ = scene(mixture, 5)
    source, target = PPCALift(mixture), PPCALift(prior)
    target(points)  # its banks belong to the old prior
    target.load_state_dict(source.state_dict())
    torch.testing.assert_close(target(points).pose_3d, source(points).pose_3d)
    torch.testing.assert_close(target.prior.basis, mixture.basis)
    other = copy.deepcopy(source)
    other.set_prior(prior)
    torch.testing.assert_close(other(points).pose_3d, PPCALift(prior)(points).pose_3d)


def test_autocast_does_not_lower_the_precision(prior: Prior) -> None:
    points, _ = scene(prior, 5)
    lift = PPCALift(prior)
    plain = lift(points.float())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = lift(points.float())
    assert torch.equal(plain.pose_3d, mixed.pose_3d)


# ---- uncertainty --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibrated() -> tuple[Prior, Tensor]:
    """A prior fitted to generated motion, calibrated on other motion; and unseen test poses."""
    poses = {}
    for split in ("train", "val", "test"):
        bank = MotionBank.generated(0, splits=[split], recordings={split: 2}, seconds=6.0)
        frames = torch.as_tensor(bank.positions[::6], dtype=F64)
        lengths = np.stack([body.lengths for body in bodies(split, 0)])
        who = np.arange(len(frames)) % len(lengths)
        poses[split] = torch.as_tensor(
            retarget(frames.numpy()[:, None], PARENTS, lengths[who][:, None])[:, 0], dtype=F64
        )
    prior = fit_prior(poses["train"], 1, 10)
    return calibrate(prior, poses["val"]), poses["test"]


@pytest.mark.parametrize("hidden", [0.0, 0.2, 0.45])
@pytest.mark.parametrize("noise", [0.0, 8.0])
def test_intervals_cover_on_unseen_motion(
    calibrated: tuple[Prior, Tensor], hidden: float, noise: float
) -> None:
    prior, poses = calibrated
    views = random_views(poses, noise_mm=noise, seed=11)
    lift = PPCALift(prior, uncertainty=True)
    weights = hide_joints(len(poses), 17, hidden, seed=12)
    result = lift(views.points, weights, views.camera)
    assert result.std_3d is not None
    error = (result.pose_3d - views.truth).norm(dim=2)[:, 1:]
    for level in (0.5, 0.9):
        inside = error <= lift.radius(level) * result.std_3d[:, 1:]
        assert float(inside.double().mean()) == pytest.approx(level, abs=0.05)


def test_hidden_joints_and_noisy_pictures_are_less_certain(
    calibrated: tuple[Prior, Tensor],
) -> None:
    prior, poses = calibrated
    lift = PPCALift(prior, uncertainty=True)
    clean = random_views(poses[:200], seed=3)
    weights = torch.ones(200, 17, dtype=F64)
    weights[:, 13] = 0
    plain, hidden = (lift(clean.points, w, clean.camera).std_3d for w in (None, weights))
    noisy = random_views(poses[:200], noise_mm=40.0, seed=3)
    shaken = lift(noisy.points, None, noisy.camera).std_3d
    assert plain is not None
    assert hidden is not None
    assert shaken is not None
    assert float(hidden[:, 13].mean()) > 1.2 * float(plain[:, 13].mean())
    assert float(shaken[:, 1:].mean()) > 1.2 * float(plain[:, 1:].mean())
    assert float(plain[:, 0].abs().max()) == 0


def test_posterior_std_is_the_spread_of_the_linearised_posterior(prior: Prior) -> None:
    """Against sampling: draws of (s, b, angle, pitch) from the Laplace posterior, posed exactly."""
    points, _ = scene(prior, 1, noise=0.2)
    lift = PPCALift(prior, rotations=400, refine=5)
    r = lift(points, uncertainty=True)
    assert r.std_3d is not None
    numbers = torch.cat(
        (r.scale * prior.size_mm, (r.coefficients * r.scale[:, None] * prior.size_mm)[0], r.angle,
         r.pitch)
    )  # fmt: skip

    def pose(p: Tensor) -> Tensor:
        shape = prior.mean[0] + torch.einsum("d,dji->ji", p[1:9] / p[0], prior.basis[0])
        out = shape @ view_rotation(p[9], p[10]).T
        return out * p[0]

    def residual(p: Tensor) -> Tensor:
        image = pose(p)[:, :2]
        sigma = (prior.noise[0] / prior.variances[0]).sqrt()
        y = points[0] - points[0].mean(0)
        return torch.cat(((image - image.mean(0) - y).flatten(), sigma * p[1:9]))

    jacobian = torch.autograd.functional.jacobian(residual, numbers)
    freedom = 30.0
    level = prior.noise[0] * (10 + r.cost[0] / (numbers[0].square() * prior.noise[0])) / (
        10 + freedom)  # fmt: skip
    precision = jacobian.T @ jacobian / (level * numbers[0].square())
    precision[-1, -1] += math.radians(5.0) ** -2
    to_pose = torch.autograd.functional.jacobian(
        lambda p: ((pose(p) - pose(p)[:1]) / p[0]).flatten(), numbers
    )
    spread = (to_pose @ torch.linalg.inv(precision) @ to_pose.T).diagonal().view(17, 3).mean(1)
    expected = (spread + 2 * level).sqrt() * prior.size_mm
    torch.testing.assert_close(r.std_3d[0, 1:], expected[1:], rtol=1e-6, atol=1e-6)
