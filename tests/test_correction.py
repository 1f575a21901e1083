"""Self-correction at test time: a plain loop, its rules, and that it leaves nothing behind."""

from __future__ import annotations

import copy
import csv
import math
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from callbacks.correction import SelfCorrection
from tests.callbacks.callback_toy import Poses, ToyData, ToyLifter, trainer
from zoo.base import InputSpec
from zoo.batch import PoseBatch
from zoo.correction import (
    PRESETS,
    ROBUST_JOINTS,
    Corrected,
    Correction,
    correct,
    correct_poses,
    correcting,
    frame_losses,
)
from zoo.errors import UsageError
from zoo.projector import CorrectionTerms, Projector, Regressor
from zoo.skeleton import get_skeleton

SKELETON = get_skeleton("h36m_17")
J = len(SKELETON)
ROBUST = [SKELETON.index(joint) for joint in ROBUST_JOINTS]
FREE = {"eps_mm": 0.0, "tau_mm": math.inf, "dead_zone": 0.0}  # every step is taken and kept


def to_mm(pose: Tensor) -> Tensor:
    """A unit is 1 m; the first joint is the origin."""
    joints = 1000 * pose.unflatten(-1, (-1, 3))
    return joints - joints[..., :1, :]


# ---- a projector that knows something ------------------------------------------------------------


def people(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """(N, P) true poses, (N, P) noisy ones, (N, J, 2) exact projections in [0, 1]."""
    rng = torch.Generator().manual_seed(seed)
    few = torch.randn(count, 6, generator=rng)
    basis = torch.randn(6, 3 * J, generator=torch.Generator().manual_seed(99)) * 0.12
    true = few @ basis
    true = (true.unflatten(-1, (-1, 3)) - true.unflatten(-1, (-1, 3))[:, :1]).flatten(1)
    noisy = true + 0.05 * torch.randn(count, 3 * J, generator=rng)
    return true, noisy, 0.5 + 0.3 * true.unflatten(-1, (-1, 3))[..., :2]


@cache
def trained(width: int = 96, batch_norm: bool = False) -> tuple[Regressor, Projector]:
    torch.manual_seed(0)
    psi_c, psi_p = Regressor(3 * J, width), Projector(3 * J, 2 * J, width, batch_norm)
    optimizer = torch.optim.Adam([*psi_c.parameters(), *psi_p.parameters()], lr=1e-3)
    true, noisy, points = people(4096, 1)
    for step in range(300):
        pick = torch.arange(64) + 64 * (step % 64)
        pose = psi_c(noisy[pick])
        loss = (pose - true[pick]).square().sum(-1).mean()
        loss = loss + (psi_p(pose) - points[pick].flatten(1)).square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return psi_c.eval(), psi_p.eval()


def fresh(width: int = 96, batch_norm: bool = False) -> tuple[Regressor, Projector]:
    """A copy, so that a test that breaks it does not break others."""
    psi_c, psi_p = copy.deepcopy(trained(width, batch_norm))
    return psi_c, psi_p


def run(
    parts: tuple[nn.Module, nn.Module], pose: Tensor, points: Tensor, **options: Any
) -> Corrected:
    chosen = {k: options.pop(k) for k in list(options) if k in Correction.__dataclass_fields__}
    return correct_poses(
        *parts, pose, points, to_mm=to_mm, robust=ROBUST, bones=SKELETON.bones,
        settings=Correction(**chosen), **options,
    )  # fmt: skip


def plain(
    parts: tuple[nn.Module, nn.Module], pose: Tensor, points: Tensor, valid: Tensor, s: Correction
) -> list[dict[str, Any]]:
    """The rule as the paper has it, one frame at a time, weights by hand."""
    results = []
    for p3, p2, known in zip(pose, points.flatten(1), valid, strict=True):
        psi_c, psi_p = (copy.deepcopy(part).eval() for part in parts)
        weights = [*psi_c.parameters()] + ([*psi_p.parameters()] if s.update == "C+P" else [])
        mask = known.repeat_interleave(2)
        average = [torch.zeros_like(w) for w in weights]
        square = [torch.zeros_like(w) for w in weights]
        y = first = psi_c(p3[None])
        steps, kept = 0, bool(known.any())
        first_2d = psi_p(first)[0].detach()
        error = math.sqrt(float((p2 - first_2d)[mask].square().sum()) / max(int(known.sum()), 1))
        moved = 0.0
        if kept and error >= s.dead_zone:
            for step in range(1, s.steps + 1):
                loss = (p2 - psi_p(psi_c(p3[None]))[0])[mask].square().sum()
                gradients = torch.autograd.grad(loss, weights)
                with torch.no_grad():
                    for i, (w, g) in enumerate(zip(weights, gradients, strict=True)):
                        if s.optimizer == "sgd":
                            w -= s.lr * g
                            continue
                        average[i] = 0.9 * average[i] + 0.1 * g
                        square[i] = 0.999 * square[i] + 0.001 * g * g
                        root = (square[i] / (1 - 0.999**step)).sqrt() + 1e-8
                        w -= s.lr * average[i] / (1 - 0.9**step) / root
                    new = psi_c(p3[None])
                steps += 1
                change = (to_mm(new) - to_mm(y))[0, ROBUST].norm(dim=-1).mean()
                y = new
                if change < s.eps_mm:
                    break
            moved = float((to_mm(y) - to_mm(first))[0, ROBUST].norm(dim=-1).mean())
            kept = moved <= s.tau_mm
        results.append(
            {"pose": (y[0] if kept else p3).detach(), "steps": steps, "kept": kept,
             "before": error, "moved": moved}
        )  # fmt: skip
    return results


@pytest.mark.parametrize("update", ["C+P", "C"])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(
    ("optimizer", "lr", "how"),
    [("sgd", 0.02, "rank-one"), ("sgd", 0.02, "stacked"), ("sgd", 0.02, "loop"),
     ("adam", 2e-4, "stacked"), ("adam", 2e-4, "loop")],
)  # fmt: skip
def test_every_way_equals_the_plain_loop(
    optimizer: str, lr: float, how: Any, update: Any, batch_norm: bool
) -> None:
    _, pose, points = people(14, 2)
    points = points + 0.02 * torch.randn(points.shape)
    valid = torch.rand(14, J) > 0.15
    valid[4] = False
    # Thresholds in the middle of what happens: some stop early, some are discarded.
    s = Correction(
        optimizer, lr, steps=3, update=update, eps_mm=2.0 if optimizer == "sgd" else 6.0,
        tau_mm=6.0 if optimizer == "sgd" else 20.0, dead_zone=0.03,
    )  # fmt: skip
    parts = fresh(batch_norm=batch_norm)
    want = plain(parts, pose, points, valid, s)
    got = correct_poses(
        *parts, pose, points, valid=valid, to_mm=to_mm, robust=ROBUST, settings=s, how=how
    )
    torch.testing.assert_close(got.pose, torch.stack([w["pose"] for w in want]), atol=1e-5, rtol=0)
    assert got.steps.tolist() == [w["steps"] for w in want]
    assert got.kept.tolist() == [w["kept"] for w in want]
    known = valid.any(-1)
    before = torch.tensor([w["before"] for w in want])
    torch.testing.assert_close(got.before[known], before[known], atol=1e-5, rtol=1e-4)
    assert got.before[~known].isnan().all()
    moved = torch.tensor([w["moved"] for w in want])
    torch.testing.assert_close(got.moved_mm, moved, atol=2e-2, rtol=1e-3)
    assert len(set(got.steps.tolist())) > 1  # the case is not a trivial one


def test_the_rank_one_form_is_exact_in_double_precision() -> None:
    parts = tuple(part.double() for part in fresh())
    _, pose, points = (x.double() for x in people(9, 3))
    options = {"lr": 0.01, "steps": 4, **FREE}
    one = run(parts, pose, points, how="rank-one", **options)
    other = run(parts, pose, points, how="stacked", **options)
    assert (one.pose - other.pose).abs().max() < 1e-12
    assert (one.pose - parts[0](pose)).abs().max() > 1e-3


@pytest.mark.parametrize("how", ["rank-one", "stacked"])
def test_chunks_order_and_neighbours_do_not_matter(how: Any) -> None:
    parts, (_, pose, points) = fresh(), people(11, 4)
    options = {"lr": 0.01, "how": how}
    whole = run(parts, pose, points, **options)
    for chunk in (1, 3, 11):
        part = run(parts, pose, points, chunk=chunk, **options)
        torch.testing.assert_close(part.pose, whole.pose, atol=1e-6, rtol=0)
        assert torch.equal(part.steps, whole.steps)
    order = torch.randperm(11)
    mixed = run(parts, pose[order], points[order], **options)
    torch.testing.assert_close(mixed.pose, whole.pose[order], atol=1e-6, rtol=0)
    alone = run(parts, pose[7:8], points[7:8], **options)
    torch.testing.assert_close(alone.pose, whole.pose[7:8], atol=1e-6, rtol=0)
    none = run(parts, pose[:0], points[:0], **options)
    assert none.pose.shape == (0, 3 * J)
    assert none.kept.dtype == torch.bool


# ---- what the correction does --------------------------------------------------------------------


def mpjpe(pose: Tensor, true: Tensor) -> float:
    return float((to_mm(pose) - to_mm(true)).norm(dim=-1).mean())


def test_each_small_step_lowers_the_disagreement_and_the_error_falls() -> None:
    parts, (true, pose, points) = fresh(), people(200, 5)
    found = [run(parts, pose, points, lr=2e-3, steps=i, **FREE) for i in range(4)]
    for less, more in pairwise(found):
        assert (more.after < less.after).float().mean() > 0.99
    assert torch.equal(found[0].pose, parts[0](pose).detach())  # I = 0 gives y_0
    errors = [mpjpe(f.pose, true) for f in found]
    assert errors[1] < errors[0]
    assert errors[2] < errors[1]
    noisy = points + 0.15 * torch.randn(points.shape)
    with_noise = run(parts, pose, noisy, lr=2e-3, steps=2, **FREE)
    assert mpjpe(with_noise.pose, true) > errors[2]


@pytest.mark.parametrize("how", ["rank-one", "stacked", "loop"])
def test_nothing_moves_where_2d_agrees(how: Any) -> None:
    parts, (_, pose, _) = fresh(), people(6, 6)
    first = run(parts, pose, torch.zeros(6, J, 2), steps=0, how=how)
    with torch.no_grad():
        agreed = parts[1](first.pose)
    got = run(parts, pose, agreed + 1e-7, how=how)
    assert torch.equal(got.pose, first.pose)
    assert got.steps.tolist() == [0] * 6
    assert got.kept.all()


def test_fresh_adam_needs_the_dead_zone() -> None:
    """The first step of Adam is a fixed length: rounding errors of the 2D pose move joints far."""
    parts, (_, pose, _) = fresh(), people(6, 7)
    with torch.no_grad():
        first = parts[0](pose)
        agreed = parts[1](first) + 2e-7
    loose = run(parts, pose, agreed, optimizer="adam", lr=1.5e-4, **FREE)
    moved = (to_mm(loose.pose) - to_mm(first)).norm(dim=-1).amax()
    assert moved > 2  # mm, for a disagreement of 2e-7 of the picture
    guarded = run(parts, pose, agreed, optimizer="adam", lr=1.5e-4)
    torch.testing.assert_close(guarded.pose, first, atol=1e-6, rtol=0)


def shifted(millimetres: float) -> tuple[tuple[nn.Module, nn.Module], Tensor, Tensor]:
    """A linear Psi_C that one step moves by exactly so many mm at all joints but the first."""

    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3 * J))

        def forward(self, pose: Tensor) -> Tensor:
            return pose + self.bias

    class Drop(nn.Module):
        def forward(self, pose: Tensor) -> Tensor:
            return pose.unflatten(-1, (-1, 3))[..., :2].flatten(-2)

    pose = 0.1 * torch.randn(1, 3 * J)
    points = pose.unflatten(-1, (-1, 3))[..., :2].clone()
    points[:, 1:, 0] += millimetres / 1000  # SGD with lr 0.5 on a square goes all the way
    return (Bias(), Drop()), pose, points


@pytest.mark.parametrize(
    ("millimetres", "kept"), [(24.9, True), (25.1, False), (15.0, True), (60.0, False)]
)
def test_a_large_movement_is_discarded(millimetres: float, kept: bool) -> None:
    """tau = 20 mm is a mean over five joints, one of which, the pelvis, never moves: 25 mm."""
    parts, pose, points = shifted(millimetres)
    got = run(parts, pose, points, lr=0.5, steps=1)
    assert got.kept.tolist() == [kept]
    assert abs(float(got.moved_mm) - 0.8 * millimetres) < 1e-2
    if not kept:
        assert torch.equal(got.pose, pose)
        y0 = run(parts, pose, points, lr=0.5, steps=1, fallback="regressed")
        assert torch.equal(y0.pose, parts[0](pose))
    assert run(parts, pose, points, lr=0.5, steps=1, tau_mm=math.inf).kept.all()
    assert not run(parts, pose, points, lr=0.5, steps=1, tau_mm=0.0).kept.any()


@pytest.mark.parametrize(("millimetres", "steps"), [(12.4, 1), (12.6, 2)])
def test_a_small_movement_ends_the_steps(millimetres: float, steps: int) -> None:
    """Half the way with the first step: eps = 5 mm, so 6.25 mm at the four joints that move."""
    parts, pose, points = shifted(millimetres)
    assert run(parts, pose, points, lr=0.25, steps=2).steps.tolist() == [steps]
    assert run(parts, pose, points, lr=0.25, steps=5, eps_mm=math.inf).steps.tolist() == [1]
    assert run(parts, pose, points, lr=0.25, steps=5, eps_mm=0.0).steps.tolist() == [5]


def test_thresholds_are_in_mm_whatever_the_units_of_the_model() -> None:
    parts, pose, points = shifted(10.0)
    once = run(parts, pose, points, lr=0.5, steps=1)
    twice = correct_poses(
        *parts, pose, points, to_mm=lambda p: 2 * to_mm(p), robust=ROBUST,
        settings=Correction(lr=0.5, steps=1),
    )  # fmt: skip
    torch.testing.assert_close(twice.moved_mm, 2 * once.moved_mm)


def test_a_correction_that_diverges_is_discarded() -> None:
    parts, (_, pose, points) = fresh(), people(3, 8)
    got = run(parts, pose, points, lr=1e30, steps=3, **{**FREE, "eps_mm": 0.0})
    assert not got.kept.any()
    assert torch.equal(got.pose, pose)


def test_2d_joints_that_are_not_known_do_not_count() -> None:
    parts, (_, pose, points) = fresh(), people(5, 9)
    valid = torch.ones(5, J, dtype=torch.bool)
    valid[:, [3, 9]] = False
    spoilt = points.clone()
    spoilt[:, 3], spoilt[:, 9] = 1e4, math.nan
    for how in ("rank-one", "stacked"):
        got = run(parts, pose, spoilt, valid=valid, lr=0.01, how=how)
        want = run(parts, pose, points, valid=valid, lr=0.01, how=how)
        assert torch.equal(got.pose, want.pose)
        assert torch.equal(got.before, want.before)
    nothing = run(parts, pose, spoilt, valid=torch.zeros_like(valid))
    assert torch.equal(nothing.pose, pose)  # the fallback
    assert nothing.steps.sum() == 0
    assert not nothing.kept.any()


def test_corrupt_shoulders_raise_the_share_of_discards() -> None:
    parts, (_, pose, points) = fresh(), people(200, 10)
    wrong = points.clone()
    wrong[:, [SKELETON.index("l_shoulder"), SKELETON.index("r_shoulder")]] += 0.2
    options = {"lr": 0.03, "steps": 2}
    good, bad = (float(run(parts, pose, p, **options).kept.float().mean()) for p in (points, wrong))
    assert bad < good


# ---- losses and the authors' setting -------------------------------------------------------------


def test_losses_by_hand() -> None:
    """Two joints, one bone from (0, 0) to (3, 4); the projection has it from (1, 0) to (2, 2)."""
    points = torch.tensor([[0.0, 0.0, 3.0, 4.0]])
    projected = torch.tensor([[1.0, 0.0, 2.0, 2.0]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    bones = [(1, 0)]

    def loss(**options: Any) -> float:
        return float(frame_losses(projected, points, valid, Correction(**options), bones))

    assert loss() == 1 + 0 + 1 + 4
    assert loss(loss="mean") == 6 / 4
    assert loss(bone_weight=2.0) == 6 + 2 * ((3 - 1) ** 2 + (4 - 2) ** 2)
    assert loss(bone_weight=2.0, loss="mean") == 6 / 4 + 2 * 8 / 2
    valid[0, 0] = False
    assert loss(bone_weight=2.0) == 5  # the bone has one known end only


def test_the_release_setting_carries_moments_and_saves_the_pose_before_the_last_step() -> None:
    parts, (_, pose, points) = fresh(), people(4, 11)
    release = {"optimizer": "adam", "lr": 1.5e-4, "update": "C", **FREE}
    # By hand: one optimiser for all frames, whose weights alone are put back.
    psi_c, psi_p = copy.deepcopy(parts)
    optimizer = torch.optim.Adam(psi_c.parameters(), lr=1.5e-4)
    want = []
    for p3, p2 in zip(pose, points.flatten(1), strict=True):
        psi_c.load_state_dict(parts[0].state_dict())
        for _ in range(2):
            saved = psi_c(p3[None])
            optimizer.zero_grad()
            (psi_p(saved) - p2).square().sum().backward()
            optimizer.step()
        want.append(saved.detach()[0])
    got = run(parts, pose, points, reset_state=False, output="before_last", **release)
    torch.testing.assert_close(got.pose, torch.stack(want), atol=1e-6, rtol=0)
    fresh_state = run(parts, pose, points, output="before_last", **release)
    torch.testing.assert_close(got.pose[0], fresh_state.pose[0], atol=1e-6, rtol=0)
    assert (got.pose[1:] - fresh_state.pose[1:]).abs().max() > 1e-4
    # The same in two calls that share their state.
    state: dict[str, Any] = {}
    halves = [
        run(parts, pose[i], points[i], reset_state=False, output="before_last", state=state,
            **release).pose
        for i in (slice(0, 2), slice(2, 4))
    ]  # fmt: skip
    torch.testing.assert_close(torch.cat(halves), got.pose, atol=1e-6, rtol=0)


@given(
    st.sampled_from(sorted(PRESETS)), st.floats(0, 10), st.integers(0, 9), st.booleans(),
    st.sampled_from([(), ("spine",), ("spine", "head")]), st.sampled_from(["C", "C+P"]),
)  # fmt: skip
@settings(max_examples=40)
def test_settings_survive_their_words(
    preset: str, lr: float, steps: int, reset: bool, masked: Any, update: Any
) -> None:
    base = PRESETS[preset]
    chosen = Correction(
        **{**base.__dict__, "lr": lr, "steps": steps, "reset_state": reset, "masked": masked,
           "update": update}
    )  # fmt: skip
    assert Correction.parse(str(chosen)) == chosen


def test_words_of_settings() -> None:
    assert Correction.parse("on") == Correction()
    assert Correction.parse("off") is None
    assert Correction.parse("") is None
    assert Correction.parse("release,lr=1e-5") == Correction(
        **{**PRESETS["release"].__dict__, "lr": 1e-5}
    )
    assert Correction.parse("masked=spine+head").masked == ("spine", "head")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "words"),
    [("onn", "did you mean on"), ("lr", "lr"), ("rate=1", "no setting 'rate'"), ("lr=fast", "lr"),
     ("steps=-1", "steps"), ("lr=nan", "lr"), ("optimizer=sdg", "did you mean sgd"),
     ("update=P", "update"), ("reset_state=1", "true or false"), ("steps=1.5", "steps")],
)  # fmt: skip
def test_wrong_settings_are_named(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Correction.parse(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"optimizer": "adam", "how": "rank-one"}, "rank-one"), ({"how": "fast"}, "way"),
     ({"reset_state": False, "how": "stacked"}, "frame by frame")],
)  # fmt: skip
def test_ways_that_the_settings_exclude(options: dict[str, Any], words: str) -> None:
    _, pose, points = people(2, 12)
    with pytest.raises(UsageError, match=words):
        run(fresh(), pose, points, **options)
    with pytest.raises(UsageError, match=r"expected \(N, P\)"):
        run(fresh(), pose, points[:1])


# ---- nothing is left behind ----------------------------------------------------------------------


def fingerprint(*parts: nn.Module) -> list[Any]:
    return [
        (name, tensor.clone(), tensor.data_ptr())
        for part in parts
        for name, tensor in part.state_dict().items()
    ]


def same(one: list[Any], other: list[Any]) -> bool:
    return all(
        a[0] == b[0] and torch.equal(a[1], b[1]) and a[2] == b[2]
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("how", ["auto", "loop"])
def test_weights_modes_and_gradients_are_as_before(optimizer: str, how: Any) -> None:
    parts, (_, pose, points) = fresh(batch_norm=True), people(5, 13)
    psi_c, psi_p = parts
    psi_c.train()
    psi_p.third.train()
    gradient = torch.ones_like(psi_c.out.bias)
    psi_c.out.bias.grad = gradient
    psi_p.out.requires_grad_(False)
    before = fingerprint(*parts)
    run(parts, pose, points, optimizer=optimizer, how=how)
    assert same(before, fingerprint(*parts))
    assert psi_c.training
    assert not psi_p.training
    assert psi_p.third.training
    assert psi_c.out.bias.grad is gradient
    assert psi_c.hidden.weight.grad is None
    assert psi_c.hidden.weight.requires_grad
    assert not psi_p.out.weight.requires_grad


@pytest.mark.parametrize("how", ["rank-one", "stacked", "loop"])
def test_an_exception_leaves_weights_and_modes_alone(how: Any) -> None:
    parts, (_, pose, points) = fresh(), people(5, 14)
    parts[0].train()
    before = fingerprint(*parts)
    calls = 0

    def breaks(pose: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise KeyboardInterrupt
        return to_mm(pose)

    with pytest.raises(KeyboardInterrupt):
        correct_poses(*parts, pose, points, to_mm=breaks, robust=ROBUST, how=how)
    assert same(before, fingerprint(*parts))
    assert parts[0].training
    assert torch.is_grad_enabled()
    assert torch.nn.functional.linear(pose, parts[0].hidden.weight).requires_grad


def test_no_mode_of_the_caller_matters() -> None:
    parts, (_, pose, points) = fresh(), people(5, 15)
    want = {how: run(parts, pose, points, how=how).pose for how in ("rank-one", "stacked", "loop")}
    with torch.inference_mode():
        inside = {how: run(parts, pose.clone(), points.clone(), how=how) for how in want}
        made_inside = tuple(copy.deepcopy(part) for part in parts)
        for part in made_inside:
            for name, parameter in part.named_parameters():
                owner, _, leaf = name.rpartition(".")
                part.get_submodule(owner)._parameters[leaf] = nn.Parameter(parameter.clone())
        assert next(made_inside[0].parameters()).is_inference()
        foreign = {how: run(made_inside, pose.clone(), points.clone(), how=how) for how in want}
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        mixed = {how: run(parts, pose, points, how=how) for how in want}
    for how, value in want.items():
        for other in (inside, foreign, mixed):
            assert torch.equal(other[how].pose, value), how


def test_layers_that_the_rank_one_form_does_not_cover() -> None:
    """A layer that runs twice, and one of another kind, go the stacked way by themselves."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3 * J, 3 * J)

        def forward(self, pose: Tensor) -> Tensor:
            return self.layer(self.layer(pose).tanh())

    _, pose, points = people(4, 16)
    torch.manual_seed(0)
    for psi_c in (Twice(), nn.Sequential(nn.Linear(3 * J, 3 * J), nn.LayerNorm(3 * J))):
        parts = (psi_c, fresh()[1])
        auto, loop = (run(parts, pose, points, how=how, **FREE) for how in ("auto", "loop"))
        torch.testing.assert_close(auto.pose, loop.pose, atol=1e-5, rtol=0)
    with pytest.raises(UsageError, match="twice"):
        run((Twice(), fresh()[1]), pose, points, how="rank-one", **FREE)


def test_only_psi_c_moves_if_so_asked() -> None:
    """With Psi_P frozen the 2D pose is the trained projector's, after any number of steps."""
    parts, (_, pose, points) = fresh(), people(4, 17)
    for how in ("rank-one", "stacked", "loop"):
        got = run(parts, pose, points, update="C", lr=0.01, steps=3, how=how, **FREE)
        residual = points.flatten(1) - parts[1](got.pose)
        want = (residual.square().sum(-1) / J).sqrt()
        torch.testing.assert_close(got.after, want, atol=1e-5, rtol=1e-4)
        both = run(parts, pose, points, lr=0.01, steps=3, how=how, **FREE)
        residual = points.flatten(1) - parts[1](both.pose)
        want = (residual.square().sum(-1) / J).sqrt()
        assert (both.after - want).abs().max() > 1e-4


# ---- on a model, by the callback and by predict --------------------------------------------------


class ToyCorrecting(ToyLifter):
    """Poses and 2D that depend on the picture a little, and disagree."""

    correction = "lr=0.02,dead_zone=0.001"

    def __init__(self) -> None:
        super().__init__()
        psi_c, psi_p = fresh()
        self.psi_c, self.psi_p = psi_c, psi_p

    @property
    def input_spec(self) -> InputSpec:
        return InputSpec(kind="image", image_size=64)

    def pose_to_mm(self, pose: Tensor) -> Tensor:
        return to_mm(pose)

    def correction_terms(self, batch: PoseBatch) -> CorrectionTerms:
        shape = batch["image"].shape[:2]
        looks = batch["image"].flatten(2).mean(-1)[..., None]  # what this method sees of an image
        pose = 0.3 * (looks + 0.01 * torch.arange(3 * J)).sin()
        points = 0.5 + 0.1 * (looks[..., None] + torch.arange(2 * J).view(J, 2)).cos()
        valid = torch.ones(*shape, J, dtype=torch.bool)
        prediction = {"pred_3d": to_mm(pose), "pred_2d": 64 * points}
        return CorrectionTerms(prediction, pose, points, valid, 64.0)  # type: ignore[arg-type]

    def forward(self, batch: PoseBatch) -> Any:
        return self.correction_terms(batch).prediction

    def compute_loss(self, batch: PoseBatch) -> dict[str, Tensor]:
        return {"loss": (super().forward(batch)["pred_3d"] - batch["joints_3d"]).square().mean()}


def batch_of(poses: Poses) -> PoseBatch:
    return torch.utils.data.default_collate([poses[i] for i in range(len(poses))])


def test_a_model_is_corrected_in_mm_and_reports_in_px() -> None:
    model = ToyCorrecting().eval()
    batch = batch_of(Poses(6, 2))
    before = fingerprint(model)
    prediction, report = correct(model, batch, "lr=0.02")
    terms = model.correction_terms(batch)
    want = run(
        (model.psi_c, model.psi_p), terms.pose.flatten(0, 1), terms.points.flatten(0, 1), lr=0.02
    )
    torch.testing.assert_close(prediction["pred_3d"], to_mm(want.pose)[:, None])
    torch.testing.assert_close(report.before_px, 64 * want.before[:, None])
    assert report.steps.shape == report.kept.shape == (6, 1)
    assert torch.equal(prediction["pred_2d"], terms.prediction["pred_2d"])
    assert same(before, fingerprint(model))
    masked, _ = correct(model, batch, "lr=0.02,masked=head_top")
    assert not torch.equal(masked["pred_3d"], prediction["pred_3d"])
    with pytest.raises(UsageError, match="no joint 'hat'"):
        correct(model, batch, "masked=hat")
    with pytest.raises(UsageError, match="off"):
        correct(model, batch, "off")


def test_estimate_is_corrected_inside_the_block_only() -> None:
    model, batch = ToyCorrecting().eval(), batch_of(Poses(4, 2))
    raw = model.estimate(batch)["pred_3d"]
    reports = []
    with correcting(model, None, lambda _, report: reports.append(report)):
        inside = model.estimate(batch)["pred_3d"]
    assert torch.equal(inside, correct(model, batch, model.correction)[0]["pred_3d"])
    assert len(reports) == 1
    assert not torch.equal(inside, raw)
    with correcting(model), torch.no_grad():  # a video of four frames
        video: Any = {"image": batch["image"].transpose(0, 1), "joints_2d": torch.zeros(1, 4, J, 2)}
        streamed, _ = model.stream(video)
    assert streamed is not None
    torch.testing.assert_close(streamed["pred_3d"][0], inside[:, 0], atol=1e-2, rtol=0)
    assert torch.equal(model.estimate(batch)["pred_3d"], raw)
    with pytest.raises(ZeroDivisionError), correcting(model, "on"):
        raise ZeroDivisionError
    assert model.corrector is None
    with correcting(model, "off"):
        assert torch.equal(model.estimate(batch)["pred_3d"], raw)
    with pytest.raises(UsageError, match="projector"), correcting(ToyLifter(), "on"):
        pass


def run_test(
    folder: Path, size: int = 10, **options: Any
) -> tuple[dict[str, float], ToyCorrecting]:
    model = ToyCorrecting()
    run = trainer(folder, SelfCorrection(**options.pop("correction", {})), **options)
    run.test(model, datamodule=ToyData(size), verbose=False)
    return {k: float(v) for k, v in run.callback_metrics.items()}, model


def lines(folder: Path) -> list[dict[str, str]]:
    with (folder / "correction.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("inference_mode", [True, False])
def test_a_test_measures_corrected_poses(
    tmp_path: Path, inference_mode: bool, precision: Any
) -> None:
    before = fingerprint(*fresh())
    metrics, model = run_test(tmp_path, inference_mode=inference_mode, precision=precision)
    plain_metrics, _ = run_test(tmp_path / "off", correction={"settings": "off"})
    assert not (tmp_path / "off" / "correction.csv").exists()
    batch = batch_of(Poses(10, 2))
    prediction, report = correct(model, batch, model.correction)
    error = (prediction["pred_3d"] - batch["joints_3d"]).norm(dim=-1)[..., 1:].mean()
    assert metrics["test/mpjpe_mm"] == pytest.approx(float(error), rel=1e-3)
    assert abs(plain_metrics["test/mpjpe_mm"] - metrics["test/mpjpe_mm"]) > 0.1
    assert metrics["test/correction_before_px"] == pytest.approx(
        float(report.before_px.mean()), rel=1e-3
    )
    rows = sorted(lines(tmp_path), key=lambda row: int(row["frame"]))
    assert [int(row["frame"]) for row in rows] == list(range(10))
    assert [int(row["steps"]) for row in rows] == report.steps.flatten().tolist()
    assert [bool(int(row["kept"])) for row in rows] == report.kept.flatten().tolist()
    got = np.array([float(row["after_px"]) for row in rows])
    assert np.allclose(got, report.after_px.flatten().numpy(), rtol=1e-2)
    after = fingerprint(model.psi_c, model.psi_p)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(before, after, strict=True))
    assert model.corrector is None


def test_the_validation_of_a_training_is_not_corrected(tmp_path: Path) -> None:
    model = ToyCorrecting()
    seen: list[bool] = []

    class Watch(SelfCorrection):
        def on_validation_batch_start(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            seen.append(pl_module.corrector is not None)

    run = trainer(tmp_path, Watch())
    run.validate(model, datamodule=ToyData(), verbose=False)
    assert all(seen)
    assert "val/correction_kept" in run.callback_metrics
    seen.clear()
    from callbacks.phases import TrainingPhases

    fit = trainer(tmp_path / "fit", Watch(), TrainingPhases(), max_epochs=1)
    fit.fit(ToyCorrecting(), datamodule=ToyData())
    assert seen
    assert not any(seen)


def test_an_exception_in_a_test_switches_the_correction_off(tmp_path: Path) -> None:
    class Breaks(ToyCorrecting):
        def test_step(self, batch: Any, batch_idx: int) -> Any:
            super().test_step(batch, batch_idx)
            raise ZeroDivisionError

    model = Breaks()
    before = fingerprint(model.psi_c, model.psi_p)
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, SelfCorrection()).test(model, datamodule=ToyData(), verbose=False)
    assert model.corrector is None
    assert same(before, fingerprint(model.psi_c, model.psi_p))


def test_trainer_predict_is_corrected(tmp_path: Path) -> None:
    model = ToyCorrecting()
    run = trainer(tmp_path, SelfCorrection())
    outputs = run.predict(model, datamodule=ToyData())
    got = torch.cat([o["pred_3d"] for o in outputs])  # type: ignore[index,union-attr]
    want = correct(model, batch_of(Poses(10, 2)), model.correction)[0]["pred_3d"]
    torch.testing.assert_close(got, want, atol=1e-2, rtol=0)  # mm
    assert len(lines(tmp_path)) == 10


@pytest.mark.slow
def test_two_processes_report_what_one_does(tmp_path: Path) -> None:
    """Eleven frames on two processes: the sampler repeats one, the report does not."""
    one, _ = run_test(tmp_path / "one", size=11)
    run = trainer(tmp_path / "two", SelfCorrection(), strategy="ddp_fork", devices=2)
    run.test(ToyCorrecting(), datamodule=ToyData(11), verbose=False)
    two = {k: float(v) for k, v in run.callback_metrics.items()}
    assert two == pytest.approx(one, rel=1e-4)
    first, second = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert len(first) == len(second) == 11
    for a, b in zip(first, second, strict=True):
        assert {k: float(v) for k, v in a.items()} == pytest.approx(
            {k: float(v) for k, v in b.items()}, abs=2e-3
        )


def test_predict_takes_settings_and_reports_each_pose() -> None:
    from zoo.correction import FrameCorrection
    from zoo.predict import predict

    model = ToyCorrecting().eval()
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    boxes = [[10, 10, 60, 80], [50, 5, 110, 85]]
    own, off, on = (
        np.stack([p.joints_3d for p in model.predict(picture, boxes=boxes, correct=setting)])
        for setting in (None, "off", model.correction)
    )
    assert np.array_equal(own, on)
    assert not np.array_equal(own, off)
    flipped = model.predict(picture, boxes=boxes, correct="on", flip_test=True)
    assert np.isfinite(flipped[0].joints_3d).all()
    found: list[FrameCorrection] = []
    predict(model, picture, boxes=boxes, batch_size=1, flip_test=True, corrections=found)
    assert [f.person for f in found] == [0, 1]
    assert all(f.steps in (1, 2) for f in found)
    assert model.corrector is None
    with pytest.raises(UsageError, match="no correction setting"):
        model.predict(picture, correct="maybe")
    with pytest.raises(UsageError, match="projector"):
        _NoProjector().predict(picture, correct="on")


class _NoProjector(ToyLifter):
    @property
    def input_spec(self) -> InputSpec:
        return InputSpec(kind="image", image_size=64)
