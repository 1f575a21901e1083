"""The pose prior: planted models are found again, invariances hold, the likelihood never falls."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from zoo.errors import CheckpointError, DataError, OutputError, UsageError
from zoo.prior import FitProgress, Prior, fit_prior, mirror_poses, normalise_poses, pose_size
from zoo.prior.alignment import (
    PoseSet,
    align,
    closed_form_ppca,
    rotation_harmonics,
    rotation_step,
    turn,
)
from zoo.prior.mixture import fit_mixture, greedy_exemplars
from zoo.skeleton import get_skeleton

SKELETON = get_skeleton("h36m_17")
JOINTS = 17


def rotate_z(poses: Tensor, angle: Tensor) -> Tensor:
    c, s, o = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = torch.stack((c, -s, o, s, c, o, o, o, o + 1), -1).view(-1, 3, 3)
    return poses @ rows.transpose(1, 2)


def planted(stds: list[float], noise: float, seed: int = 0, bend: float = 0.0) -> Prior:
    """A model whose basis is orthogonal to translations and to a turn of its mean."""
    g = torch.Generator().manual_seed(seed)
    base = Prior.placeholder(1, 1)
    mean = base.mean[0].clone()
    mean[[2, 3], 1] -= 0.1  # one leg forward: the mean is not flat
    if bend:  # sit down
        mean[[2, 5], 1] -= bend
        mean[:, 2] *= 1 - bend
    mean = normalise_poses(mean)
    turned = torch.stack((-mean[:, 1], mean[:, 0], torch.zeros(JOINTS)), 1).flatten()
    shifts = torch.eye(3, dtype=torch.float64).repeat(JOINTS, 1)
    raw = torch.randn(51, len(stds), generator=g, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat((shifts, turned[:, None], raw), 1)).Q[:, 4:]
    return Prior(
        mean[None],
        basis.T.reshape(1, len(stds), JOINTS, 3),
        torch.tensor([stds], dtype=torch.float64).square(),
        torch.tensor([noise**2], dtype=torch.float64),
        torch.ones(1, dtype=torch.float64),
        size_mm=1000.0,
    )


def sample_unscaled(prior: Prior, count: int, seed: int = 1) -> Tensor:
    return prior.sample(count, torch.Generator().manual_seed(seed))


def vectors(poses: Tensor) -> Tensor:
    return poses.transpose(1, 2).flatten(1)


# ---- preprocessing ------------------------------------------------------------------------------


def test_normalised_poses_have_unit_sum_of_squared_limbs_and_no_offset() -> None:
    poses = Prior.placeholder(2, 6).sample(20, torch.Generator().manual_seed(0)) * 3 + 500
    unit = normalise_poses(poses)
    torch.testing.assert_close(pose_size(unit), torch.ones(20, dtype=torch.float64))
    assert float(unit.mean(1).abs().max()) < 1e-12
    torch.testing.assert_close(normalise_poses(unit * 7 - 2), unit)


def test_mirroring_twice_is_identity_and_swaps_sides() -> None:
    poses = torch.randn(4, JOINTS, 3)
    once = mirror_poses(poses)
    assert torch.equal(mirror_poses(once), poses)
    left, right = SKELETON.index("l_wrist"), SKELETON.index("r_wrist")
    assert torch.equal(once[:, left, 1:], poses[:, right, 1:])
    assert torch.equal(once[:, left, 0], -poses[:, right, 0])


# ---- the rotation step --------------------------------------------------------------------------


def test_harmonics_are_the_quadratic_form_and_the_step_finds_its_global_minimum() -> None:
    prior = planted([0.12, 0.09], 0.03)
    model = prior.gaussians()[0]
    x = vectors(normalise_poses(sample_unscaled(prior, 40)))
    harmonics = rotation_harmonics(x, model)
    grid = torch.linspace(0, 2 * math.pi, 20001, dtype=torch.float64)[:-1]
    dense = torch.stack([model.mahalanobis(turn(x, t.expand(40))) for t in grid[::500]], 1)
    t = grid[::500]
    table = torch.stack((torch.ones_like(t), t.cos(), t.sin(), (2 * t).cos(), (2 * t).sin()))
    torch.testing.assert_close(harmonics @ table, dense, rtol=1e-9, atol=1e-9)

    angle, value = rotation_step(harmonics)
    every = torch.stack(
        (torch.ones_like(grid), grid.cos(), grid.sin(), (2 * grid).cos(), (2 * grid).sin())
    )
    assert bool((value <= (harmonics @ every).min(1).values + 1e-9).all())
    torch.testing.assert_close(value, model.mahalanobis(turn(x, angle)), rtol=1e-9, atol=1e-9)
    # The stationary points are the roots of a quartic in exp(i t).
    for row, best in zip(harmonics[:5].numpy(), angle[:5].numpy(), strict=True):
        one, two = complex(row[1], -row[2]) / 2, complex(row[3], -row[4]) / 2
        roots = np.roots([2 * two, one, 0, -one.conjugate(), -2 * two.conjugate()])
        assert min(abs(roots - np.exp(1j * best))) < 1e-6


def test_without_a_basis_the_step_is_planar_procrustes() -> None:
    g = torch.Generator().manual_seed(0)
    poses = torch.randn(30, JOINTS, 3, dtype=torch.float64, generator=g)
    x = vectors(normalise_poses(poses))
    model = closed_form_ppca(x[0], torch.eye(51, dtype=torch.float64), 0, 48)
    harmonics = rotation_harmonics(x, model)
    assert float(harmonics[:, 3:].abs().max()) < 1e-12
    angle, _ = rotation_step(harmonics)
    expected = torch.atan2(-harmonics[:, 2], -harmonics[:, 1])
    assert float(torch.sin(angle - expected).abs().max()) < 1e-6


# ---- the fit ------------------------------------------------------------------------------------


def test_planted_ppca_is_recovered_from_randomly_turned_poses() -> None:
    stds, noise = [0.12, 0.09, 0.06, 0.04], 0.004
    truth = planted(stds, noise)
    poses = PoseSet(sample_unscaled(truth, 5000) / truth.size_mm, SKELETON, mirror=False)
    sizes = [size for size in range(5) for _ in range(3)]
    model, _ = align(poses, sizes)
    found = (model.eigenvalues - model.noise).sqrt()
    np.testing.assert_allclose(found.numpy(), stds, rtol=0.09)
    assert math.sqrt(model.noise) == pytest.approx(noise, rel=0.06)
    # The subspaces agree up to the common yaw of the model.
    target = truth.gaussians()[0]
    yaw, _ = rotation_step(rotation_harmonics(model.mean[None], target))
    basis = turn(model.basis.T, yaw.expand(4)).T
    cosine = torch.linalg.svdvals(basis.T @ target.basis).min()
    assert math.degrees(math.acos(min(1.0, float(cosine)))) < 3.0


@pytest.mark.parametrize("init", ["tk", "hips"])
@pytest.mark.parametrize("components", [1, 2])
def test_fit_ignores_the_ground_plane_turn_of_every_pose(init: str, components: int) -> None:
    poses = sample_unscaled(planted([0.1, 0.07, 0.05], 0.01), 600)
    angle = torch.rand(600, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 6.28
    log: dict[str, list[float]] = {"plain": [], "turned": []}
    fits = {}
    for name, data in (("plain", poses), ("turned", rotate_z(poses, angle))):
        fits[name] = fit_prior(
            data, components, 3, init=init, mirror=False, exemplar_distance=0.0,  # type: ignore[arg-type]
            progress=lambda p, name=name: log[name].append(p.nll),
        )  # fmt: skip
    # The common rotation is fixed by the hips of the mean, so the models are equal outright.
    for key in ("mean", "variances", "noise", "weights"):
        torch.testing.assert_close(
            getattr(fits["plain"], key), getattr(fits["turned"], key), rtol=1e-6, atol=1e-8
        )
    projector = [torch.einsum("mdi,mdj->mij", b, b) for b in
                 (fits[n].basis.flatten(2) for n in ("plain", "turned"))]  # fmt: skip
    torch.testing.assert_close(*projector, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(log["plain"], log["turned"], rtol=1e-7, atol=1e-7)


def test_objective_never_rises_while_the_basis_grows_and_in_em() -> None:
    poses = Prior.placeholder(3, 8).sample(800, torch.Generator().manual_seed(5))
    steps: list[FitProgress] = []
    prior = fit_prior(poses, 3, 6, exemplar_distance=0.0, progress=steps.append)
    assert prior.components == 3
    for stage in ("align", "mixture"):
        values = np.array([s.nll for s in steps if s.stage == stage and math.isfinite(s.nll)])
        assert len(values) > 3
        assert np.diff(values).max() <= 1e-9 * abs(values).max()
    assert [s.step for s in steps] == list(range(1, len(steps) + 1))
    assert steps[-1].step <= steps[-1].steps


def test_mirrored_training_makes_a_symmetric_model() -> None:
    poses = sample_unscaled(planted([0.1, 0.05], 0.01), 400)
    prior = fit_prior(poses, 1, 2, mirror=True)
    torch.testing.assert_close(mirror_poses(prior.mean), prior.mean, rtol=0, atol=1e-6)
    hips = prior.mean[0, 4] - prior.mean[0, 1]
    assert abs(float(hips[1])) < 1e-9
    assert float(hips[0]) > 0


def test_growing_on_a_part_and_finishing_on_all_agrees_with_using_all() -> None:
    poses = sample_unscaled(planted([0.1, 0.07, 0.05], 0.01), 3000)
    whole = fit_prior(poses, 1, 3)
    steps: list[FitProgress] = []
    part = fit_prior(poses.float(), 1, 3, grow_poses=500, chunk=700, progress=steps.append)
    assert {s.stage for s in steps} == {"align", "align-all"}
    torch.testing.assert_close(part.variances, whole.variances, rtol=0.02, atol=0)
    assert float(part.log_prob(poses).mean()) > float(whole.log_prob(poses).mean()) - 0.02


def test_poses_on_disk_fit_like_poses_in_memory(tmp_path: Path) -> None:
    poses = sample_unscaled(planted([0.1, 0.05], 0.01), 500).float().numpy()
    np.save(tmp_path / "poses.npy", poses)
    mapped = np.load(tmp_path / "poses.npy", mmap_mode="r")
    torch.testing.assert_close(fit_prior(mapped, 1, 2).mean, fit_prior(poses, 1, 2).mean)


# ---- the mixture --------------------------------------------------------------------------------


def two_modes(major: int, minor: int) -> tuple[PoseSet, Tensor]:
    standing = planted([0.05, 0.04, 0.03], 0.01, seed=1)
    sitting = planted([0.05, 0.04, 0.03], 0.015, seed=2, bend=0.35)
    g = torch.Generator().manual_seed(0)
    poses = torch.cat([standing.sample(major, g), sitting.sample(minor, g)]) / 1000
    labels = torch.cat((torch.zeros(major), torch.ones(minor))).long()
    return PoseSet(poses, SKELETON, mirror=False), labels


def test_greedy_exemplars_lower_the_cost_find_both_modes_and_stop() -> None:
    poses, labels = two_modes(400, 120)
    _, angles = align(poses, [0, 0, 0])
    x = torch.cat([turn(v, angles[part]) for part, v in poses.chunks(100)])
    distances = torch.cdist(x, x)
    chosen = greedy_exemplars(distances, 8, nearest=0.0)
    assert {int(labels[c]) for c in chosen[:2]} == {0, 1}
    costs = [float(distances[chosen[: k + 1]].min(0).values.sum()) for k in range(8)]
    assert costs == sorted(costs, reverse=True)
    best_first = min(range(len(x)), key=lambda i: float(distances[i].sum()))
    assert chosen[0] == best_first
    # By default a candidate in a mode that has one already is too close.
    assert len(greedy_exemplars(distances, 8)) < 8


def test_mixture_finds_planted_modes() -> None:
    poses, labels = two_modes(2000, 600)
    _, angles = align(poses, [0, 0, 0, 1, 1, 1])
    log: list[float] = []
    models, weights = fit_mixture(poses, angles, 3, 2, progress=log.append)
    np.testing.assert_allclose(weights.numpy(), [2000 / 2600, 600 / 2600], atol=0.005)
    x = torch.cat([turn(v, angles[part]) for part, v in poses.chunks(1000)])
    joint = torch.stack([-m.constant - m.mahalanobis(x) / 2 for m in models], 1) + weights.log()
    assert torch.equal(joint.argmax(1), labels)
    assert max(np.diff(log)) <= 1e-9 * abs(log[0])
    assert models[0].noise < models[1].noise


# ---- the record ---------------------------------------------------------------------------------


def test_log_prob_is_the_ppca_density() -> None:
    prior = planted([0.1, 0.05], 0.02)
    poses = sample_unscaled(prior, 30)
    x = vectors(normalise_poses(poses))
    model = prior.gaussians()[0]
    angle, _ = rotation_step(rotation_harmonics(x, model))
    shifts = torch.block_diag(*[torch.ones(JOINTS, 1, dtype=torch.float64)] * 3)
    basis = torch.linalg.qr(torch.cat((shifts, torch.eye(51, dtype=torch.float64)), 1)).Q[:, 3:51]
    inside = basis.T @ torch.linalg.inv(model.precision()) @ basis
    reference = torch.distributions.MultivariateNormal(torch.zeros(48).double(), inside)
    expected = reference.log_prob((turn(x, angle) - model.mean) @ basis)
    torch.testing.assert_close(prior.log_prob(poses), expected, rtol=1e-9, atol=1e-9)
    assert prior.log_prob(poses.numpy()[:0]).shape == (0,)


def test_file_round_trip(tmp_path: Path) -> None:
    prior = Prior.placeholder(3, 5)
    object.__setattr__(prior, "calibration", {"std_scale": 1.25})
    prior.save(tmp_path / "p.safetensors")
    back = Prior.load(tmp_path / "p.safetensors")
    for name in ("mean", "basis", "variances", "noise", "weights"):
        assert torch.equal(getattr(back, name), getattr(prior, name))
    assert (back.skeleton, back.size_mm) == (prior.skeleton, prior.size_mm)
    assert dict(back.calibration) == {"std_scale": 1.25}
    assert [f.name for f in tmp_path.iterdir()] == ["p.safetensors"]
    assert back.component(1).components == 1


def test_load_refuses_what_is_not_a_prior(tmp_path: Path) -> None:
    cases: dict[str, bytes | dict[str, Tensor]] = {
        "text": b"hello",
        "empty": b"",
        "others": {"weight": torch.zeros(3)},
    }
    for name, content in cases.items():
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            save_file(content, path)
        with pytest.raises(CheckpointError) as error:
            Prior.load(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match="no such file"):
        Prior.load(tmp_path / "absent")
    good = Prior.placeholder(1, 3)
    broken = {
        n: getattr(good, n).clone() for n in ("mean", "basis", "variances", "noise", "weights")
    }
    broken["noise"] = torch.full((1,), math.nan, dtype=torch.float64)
    about = {"format": "zoo-pose-prior", "version": "1", "skeleton": "h36m_17", "size_mm": "1000"}
    save_file(broken, tmp_path / "nan", metadata=about)
    with pytest.raises(CheckpointError, match="noise is not finite"):
        Prior.load(tmp_path / "nan")
    save_file(broken, tmp_path / "later", metadata={**about, "version": "9"})
    with pytest.raises(CheckpointError, match="version 9"):
        Prior.load(tmp_path / "later")
    with pytest.raises(OutputError):
        good.save(tmp_path / "no" / "folder.safetensors")


def test_bad_training_poses_are_named() -> None:
    poses = Prior.placeholder().sample(30)
    with pytest.raises(DataError, match=r"expected \(N, 17, 3\)"):
        fit_prior(poses[:, :16], 1, 2)
    spoiled = poses.clone()
    spoiled[7, 3, 1] = math.nan
    with pytest.raises(DataError, match="pose 7"):
        fit_prior(spoiled, 1, 2)
    with pytest.raises(DataError, match="too few"):
        fit_prior(poses[:3], 1, 12)
    with pytest.raises(UsageError, match="basis"):
        fit_prior(poses, 1, 48)
