"""Pose errors, and metrics that count each sample once on any number of processes."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo import metrics as m
from zoo.batch import PoseBatch, Prediction
from zoo.errors import UsageError
from zoo.geometry import optimal_scale, procrustes_align
from zoo.protocols import Protocol, get_protocol
from zoo.sample_metric import group_rows
from zoo.skeleton import H36M_17, Skeleton, get_skeleton

SEEDS = st.integers(0, 2**31 - 1)
TRANSLATION = get_protocol("synthetic-test")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def poses(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Root-relative (N, 17, 3) truths of human size, and predictions some cm away."""
    target = 300 * randn(count, 17, 3, seed=seed)
    pred = target + 60 * randn(count, 17, 3, seed=seed + 1)
    return pred - pred[:, :1], target - target[:, :1]


def rotation(seed: int) -> Tensor:
    q, _ = torch.linalg.qr(randn(3, 3, seed=seed))
    return q * torch.linalg.det(q).sign()


# ---- functions --------------------------------------------------------------------------------


def test_mpjpe_by_hand() -> None:
    target = torch.zeros(2, 3, 3)
    pred = torch.zeros(2, 3, 3)
    pred[0, 0] = torch.tensor([3.0, 4.0, 0.0])
    pred[1, :, 2] = 9.0
    assert m.mpjpe(pred, target, reduction="none").tolist() == pytest.approx([5 / 3, 9.0])
    assert m.mpjpe(pred, target).item() == pytest.approx((5 / 3 + 9) / 2)
    valid = torch.tensor([[True, True, False], [False, False, False]])
    # The second pose has no valid joint and is not part of the mean.
    assert m.mpjpe(pred, target, valid).item() == pytest.approx(2.5)
    assert math.isnan(m.mpjpe(pred, target, torch.zeros(2, 3, dtype=torch.bool)))


@given(seed=SEEDS, factor=st.floats(0.2, 5))
def test_pa_mpjpe_ignores_similarities_of_the_prediction(seed: int, factor: float) -> None:
    pred, target = poses(3, seed)
    moved = factor * pred @ rotation(seed).T + 1000 * randn(3, seed=seed)
    torch.testing.assert_close(m.pa_mpjpe(moved, target), m.pa_mpjpe(pred, target))
    torch.testing.assert_close(
        m.pa_mpjpe(factor * target @ rotation(seed).T + 5.0, target),
        torch.zeros((), dtype=torch.float64), atol=1e-9, rtol=0,
    )  # fmt: skip


@given(seed=SEEDS)
def test_a_reflection_is_an_error(seed: int) -> None:
    _, target = poses(3, seed)
    mirrored = target * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    assert m.pa_mpjpe(mirrored, target) > 20
    assert m.n_mpjpe(-target, target) > 100


@given(seed=SEEDS)
def test_alignment_lowers_the_squared_error(seed: int) -> None:
    pred, target = poses(5, seed)

    def squared(x: Tensor) -> Tensor:
        return (x - target).square().sum((-1, -2))

    plain = squared(pred)
    scaled = squared(optimal_scale(pred, target)[:, None, None] * pred)
    aligned = squared(procrustes_align(pred, target))
    assert (scaled <= plain + 1e-6).all()
    assert (aligned <= scaled + 1e-6).all()


def test_alignment_can_raise_the_mean_distance() -> None:
    # Procrustes minimises squares: one bad joint is spread over the good ones, and the mean of the
    # distances (MPJPE) grows. So "PA-MPJPE <= MPJPE" is no law for a single pose.
    _, target = poses(1, seed=7)
    pred = target.clone()
    pred[0, 16] += torch.tensor([600.0, 0.0, 0.0])
    assert m.pa_mpjpe(pred, target) > m.mpjpe(pred, target)


@settings(max_examples=30)
@given(seed=SEEDS)
def test_alignment_lowers_the_mean_distance_of_a_data_set(seed: int) -> None:
    pred, target = poses(50, seed)
    assert m.pa_mpjpe(pred, target) <= m.mpjpe(pred, target)
    assert m.pa_mpjpe(pred, target) <= m.n_mpjpe(pred, target)


@given(seed=SEEDS, factor=st.floats(0.2, 5))
def test_n_mpjpe_ignores_the_scale(seed: int, factor: float) -> None:
    pred, target = poses(3, seed)
    torch.testing.assert_close(m.n_mpjpe(factor * pred, target), m.n_mpjpe(pred, target))


FUNCTIONS = [m.mpjpe, m.n_mpjpe, m.pa_mpjpe, m.pck, m.auc]


@pytest.mark.parametrize("function", FUNCTIONS)
@settings(max_examples=25)
@given(seed=SEEDS, count=st.integers(1, 16))
def test_a_mask_is_the_same_as_dropping_joints(function: Any, seed: int, count: int) -> None:
    pred, target = poses(4, seed)
    keep = torch.randperm(17, generator=torch.Generator().manual_seed(seed))[:count]
    valid = torch.zeros(17, dtype=torch.bool)
    valid[keep] = True
    dropped = function(pred[:, valid], target[:, valid], reduction="none")
    pred[:, ~valid] = torch.nan
    target[:, ~valid] = torch.inf
    masked = function(pred, target, valid.expand(4, 17), reduction="none")
    torch.testing.assert_close(masked, dropped, atol=1e-6, rtol=1e-9)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_diverged_prediction_is_not_hidden(function: Any) -> None:
    pred, target = poses(2)
    pred[1, 3, 0] = torch.nan
    values = function(pred, target, reduction="none")
    assert values[0].isfinite()
    if function in (m.pck, m.auc):
        assert values[1] < function(target, target)
    else:
        assert values[1] == torch.inf


def test_pck_and_auc_against_counting() -> None:
    pred, target = poses(40, seed=3)
    errors = [math.dist(p, t) for p, t in zip(
        pred.reshape(-1, 3).tolist(), target.reshape(-1, 3).tolist(), strict=True)]  # fmt: skip
    share = [100 * sum(e < t for e in errors) / len(errors) for t in range(0, 151, 5)]
    assert len(share) == 31
    assert m.pck(pred, target).item() == pytest.approx(share[-1])
    assert m.pck(pred, target, threshold=75).item() == pytest.approx(share[15])
    assert m.auc(pred, target).item() == pytest.approx(sum(share) / 31)
    # The threshold itself is not below the threshold.
    exact = torch.zeros(1, 2, 3)
    exact[0, 0, 0] = 150.0
    assert m.pck(exact, torch.zeros(1, 2, 3)).item() == 50.0


def test_acceleration_error() -> None:
    _, target = poses(6)
    time = torch.arange(6.0, dtype=torch.float64)[:, None, None]
    drift = torch.tensor([5.0, -3.0, 1.0], dtype=torch.float64)
    # A constant velocity changes no acceleration; a parabola of 2 mm/frame^2 changes it by that.
    assert m.acceleration_error(target + 7 + time * drift, target).item() == pytest.approx(
        0, abs=1e-9
    )
    bent = target.clone()
    bent[..., 0] += time[..., 0].square()
    errors = m.acceleration_error(bent, target, reduction="none")
    assert errors.isnan().tolist() == [True, False, False, False, False, True]
    assert errors[1:-1].tolist() == pytest.approx([2.0] * 4)
    assert m.acceleration_error(bent, target, fps=50.0).item() == pytest.approx(2 * 2500)
    # One invalid frame takes out its own and both neighbours' second differences.
    valid = torch.ones(6, 17, dtype=torch.bool)
    valid[3] = False
    left = m.acceleration_error(bent, target, valid, reduction="none")
    assert left.isnan().tolist() == [True, False, True, True, True, True]
    assert m.acceleration_error(bent[:2], target[:2], reduction="none").isnan().all()


@given(seed=SEEDS, factor=st.floats(0.2, 5))
def test_limb_ratios_ignore_scale_and_rotation(seed: int, factor: float) -> None:
    pred, target = poses(2, seed)
    bones = H36M_17.bones
    same = m.limb_ratio_error(factor * target @ rotation(seed).T, target, bones)
    assert same.item() == pytest.approx(0, abs=1e-9)
    moved = m.limb_ratio_error(factor * pred @ rotation(seed).T, target, bones)
    torch.testing.assert_close(moved, m.limb_ratio_error(pred, target, bones))


def slow_limb_ratio(pred: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Both readings of the matrix, with loops."""
    bones = H36M_17.bones
    absolute = torch.zeros(len(bones), len(bones), dtype=torch.float64)
    signed = torch.zeros_like(absolute)
    for i, j in itertools.product(range(len(bones)), repeat=2):
        gaps = []
        for p, t in zip(pred, target, strict=True):
            length = [
                (pose[bones[k][0]] - pose[bones[k][1]]).norm().item()
                for k in (i, j)
                for pose in (p, t)
            ]
            gaps.append(math.log(length[0] / length[2]) - math.log(length[1] / length[3]))
        absolute[i, j] = sum(map(abs, gaps)) / len(gaps)
        signed[i, j] = abs(sum(gaps) / len(gaps))
    return {"absolute": absolute, "signed": signed}


def test_limb_ratio_matrix_against_a_plain_version() -> None:
    pred, target = poses(5, seed=11)
    expected = slow_limb_ratio(pred, target)
    metric = m.LimbRatioError(H36M_17)
    metric.update(pred[:2], target[:2])
    metric.update(pred[2:], target[2:])
    result = metric.compute()
    for reading, matrix in expected.items():
        torch.testing.assert_close(result[reading].double(), matrix, atol=1e-5, rtol=1e-5)
        assert result[f"{reading}_full"].item() == pytest.approx(matrix.sum().item(), rel=1e-5)
    legs = [i for i, (c, _) in enumerate(H36M_17.bones) if c in range(1, 7)]
    assert len(legs) == 6
    lower = expected["absolute"][legs][:, legs].sum().item()
    assert result["absolute_lower"].item() == pytest.approx(lower, rel=1e-5)
    assert len(metric.parts["upper"]) == 10
    # The sum over cells is the mean of the values a pose.
    total = m.limb_ratio_error(pred, target, H36M_17.bones)
    assert result["absolute_full"].item() == pytest.approx(total.item(), rel=1e-5)
    assert result["signed_full"] < result["absolute_full"]


def test_shapes_must_agree() -> None:
    with pytest.raises(UsageError, match="must have the same shape"):
        m.mpjpe(torch.zeros(2, 17, 3), torch.zeros(2, 16, 3))


# ---- PCP --------------------------------------------------------------------------------------


def test_pcp_of_kth() -> None:
    skeleton = get_skeleton("kth_14")
    parts = m.pcp_parts(skeleton)
    assert sum(map(len, parts.values())) == 10
    target = 300 * randn(1, 14, 3).float()
    perfect = m.PCP(parts)
    perfect.update(target, target)
    assert all(v.item() == 100 for v in perfect.compute().values())
    # A wrist off by slightly less than the arm's length: right under the mean rule (limit: exactly
    # its length), wrong under the strict one.
    elbow, wrist = skeleton.index("l_elbow"), skeleton.index("l_wrist")
    length = (target[0, elbow] - target[0, wrist]).norm()
    for share, mean_right, strict_right in ((0.49, 1, 1), (0.99, 1, 0), (1.01, 0, 0)):
        pred = target.clone()
        pred[0, wrist, 0] += share * length
        for rule, right in (("mean", mean_right), ("strict", strict_right)):
            metric = m.PCP(parts, rule=rule)  # type: ignore[arg-type]
            metric.update(pred, target)
            result = metric.compute()
            assert result["lower_arms"].item() == 50 + 50 * right
            assert result["all"].item() == pytest.approx(90 + 10 * right)
    # A part with an invalid end is not counted.
    valid = torch.ones(1, 14, dtype=torch.bool)
    valid[0, wrist] = False
    metric = m.PCP(parts)
    metric.update(target + 1e6 * torch.eye(14)[wrist][:, None], target, valid)
    assert metric.compute()["lower_arms"].item() == 100
    with pytest.raises(UsageError, match="l_hip"):
        m.pcp_parts(Skeleton("bust", ("neck", "l_shoulder", "r_shoulder"), (-1, 0, 0)))


# ---- counting once ----------------------------------------------------------------------------


def rows(count: int) -> Tensor:
    """Ids of ``count`` different samples in 3 actions."""
    index = torch.arange(count)
    zero = torch.zeros_like(index)
    return torch.stack([9 + 2 * (index % 2), index % 3, index % 4, zero, index, zero], -1)


CLASSES = [
    (m.MPJPE, m.mpjpe), (m.PAMPJPE, m.pa_mpjpe), (m.NMPJPE, m.n_mpjpe), (m.PCK, m.pck),
    (m.AUC, m.auc),
]  # fmt: skip


@pytest.mark.parametrize(("metric_class", "function"), CLASSES)
def test_classes_agree_with_functions_in_any_order_and_batching(
    metric_class: Any, function: Any
) -> None:
    pred, target = poses(23, seed=5)
    valid = randn(23, 17, seed=9) > -0.5
    valid[4] = False
    metric = metric_class()
    order = torch.randperm(23, generator=torch.Generator().manual_seed(1))
    # Batches of 7, with the first batch repeated at the end as padding.
    for part in (*order.split(7), order[:7]):
        metric.update(pred[part], target[part], valid[part], rows(23)[part])
    expected = function(pred, target, valid)
    assert metric.compute().item() == pytest.approx(expected.item(), rel=1e-5)
    metric.reset()
    metric.update(target, target, valid)
    assert metric.compute().item() == pytest.approx(
        function(target, target, valid).item(), abs=1e-3
    )


def test_without_ids_every_pose_counts() -> None:
    pred, target = poses(6)
    metric = m.MPJPE()
    metric.update(pred[:4], target[:4])
    metric.update(pred[4:], target[4:])
    metric.update(pred[4:], target[4:])
    expected = m.mpjpe(torch.cat([pred, pred[4:]]), torch.cat([target, target[4:]]))
    assert metric.compute().item() == pytest.approx(expected.item(), rel=1e-5)


def test_mean_over_actions() -> None:
    pred, target = poses(4)
    ids = rows(4)
    ids[:, 1] = torch.tensor([0, 0, 0, 5])
    metric = m.MPJPE(aggregation="actions")
    metric.update(pred, target, ids=ids)
    each = m.mpjpe(pred, target, reduction="none")
    expected = (each[:3].mean() + each[3]) / 2
    assert metric.compute().item() == pytest.approx(expected.item(), rel=1e-5)


def test_nothing_counted_is_nan_not_zero() -> None:
    metric = m.MPJPE()
    metric.update(
        torch.zeros(2, 17, 3), torch.zeros(2, 17, 3), torch.zeros(2, 17, dtype=torch.bool)
    )
    assert metric.compute().isnan()


def test_ids_that_do_not_identify_are_reported() -> None:
    pred, target = poses(4)
    metric = m.MPJPE()
    metric.update(pred, target, ids=torch.zeros(4, 6, dtype=torch.int64))
    with pytest.warns(UserWarning, match="3 samples share their id"):
        value = metric.compute()
    assert value.item() == pytest.approx(m.mpjpe(pred[:1], target[:1]).item(), rel=1e-5)
    with pytest.raises(UsageError, match=r"must be \(4, 6\)"):
        metric.update(pred, target, ids=torch.zeros(3, 6))


@given(data=st.data())
def test_grouping_against_a_dictionary(data: st.DataObject) -> None:
    # Small ids take the packed path, large ones do not fit one integer.
    big = data.draw(st.booleans())
    values = [0, 1, -1, 2**40, -(2**40), 2**62 - 1] if big else [0, 1, 2, -3]
    table = data.draw(
        st.lists(st.lists(st.sampled_from(values), min_size=6, max_size=6), min_size=1)
    )
    first, group = group_rows(torch.tensor(table))
    seen: dict[tuple[int, ...], int] = {}
    for i, row in enumerate(table):
        seen.setdefault(tuple(row), i)
    assert sorted(first.tolist()) == sorted(seen.values())
    for i, row in enumerate(table):
        assert first[group[i]] == seen[tuple(row)]


def test_half_precision_predictions() -> None:
    pred, target = poses(3)
    value = m.pa_mpjpe(pred.bfloat16(), target.bfloat16())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(m.pa_mpjpe(pred, target).item(), rel=0.05)


# ---- PoseMetrics ------------------------------------------------------------------------------


def samples(count: int, frames: int = 1, seed: int = 0) -> tuple[Prediction, PoseBatch]:
    """A data set as one batch: clips with all the ids, and predictions in 3D and 2D."""
    pred, target = poses(count * frames, seed)
    shape = (count, frames, 17)
    index = torch.arange(count)
    affine = torch.tensor([[3.0, 0.0, 50.0], [0.0, 3.0, 20.0]])
    batch: PoseBatch = {
        "joints_3d": target.float().reshape(*shape, 3),
        "valid_3d": (randn(*shape, seed=seed + 5) > -1.0),
        "joints_2d": 64 + 20 * randn(*shape, 2, seed=seed + 6).float(),
        "valid_2d": (randn(*shape, seed=seed + 7) > -1.0),
        "crop_to_image": affine.expand(count, frames, 2, 3),
        "subject": 9 + 2 * (index % 2),
        "action": index % 3,
        "camera": index % 4,
        "sequence": index // 7,
        "frame": index,
    }
    batch["valid_3d"][..., 0] = True
    prediction: Prediction = {
        "pred_3d": pred.float().reshape(*shape, 3),
        "pred_2d": batch["joints_2d"] + randn(*shape, 2, seed=seed + 8).float(),
    }
    return prediction, batch


def take(data: Any, index: Tensor) -> Any:
    return {key: value[index] for key, value in data.items()}


ACTIONS = ("Walking", "Sitting", "Eating")


def run(
    prediction: Prediction, batch: PoseBatch, protocol: Protocol = TRANSLATION
) -> dict[str, float]:
    metric = m.PoseMetrics(protocol, H36M_17, ACTIONS)
    metric.update(prediction, batch)
    return {name: value.item() for name, value in metric.compute().items()}


def test_the_keys_and_their_values() -> None:
    prediction, batch = samples(8, frames=4)
    result = run(prediction, batch)
    pred, target, valid = prediction["pred_3d"], batch["joints_3d"], batch["valid_3d"]
    assert set(result) == {
        "mpjpe_mm", "pa_mpjpe_mm", "n_mpjpe_mm", "pck_150mm", "auc_150mm", "limb_ratio_log",
        "acceleration", "error_2d_px", "error_2d_image_px",
    }  # fmt: skip
    assert set(result) <= set(m.METRIC_DEFINITIONS)
    for name, function in {
        "mpjpe_mm": m.mpjpe, "pa_mpjpe_mm": m.pa_mpjpe, "n_mpjpe_mm": m.n_mpjpe,
        "pck_150mm": m.pck, "auc_150mm": m.auc, "acceleration": m.acceleration_error,
    }.items():  # fmt: skip
        assert result[name] == pytest.approx(function(pred, target, valid).item(), rel=1e-5)
    limbs = m.limb_ratio_error(pred, target, H36M_17.bones, valid).item()
    assert result["limb_ratio_log"] == pytest.approx(limbs, rel=1e-5)
    pixels = m.mpjpe(prediction["pred_2d"], batch["joints_2d"], batch["valid_2d"]).item()
    assert result["error_2d_px"] == pytest.approx(pixels, rel=1e-5)
    assert result["error_2d_image_px"] == pytest.approx(3 * pixels, rel=1e-4)


def test_keys_that_do_not_apply_are_absent() -> None:
    prediction, batch = samples(4, frames=1)
    del prediction["pred_2d"]
    assert set(run(prediction, batch)) == {
        "mpjpe_mm", "pa_mpjpe_mm", "n_mpjpe_mm", "pck_150mm", "auc_150mm", "limb_ratio_log",
    }  # fmt: skip


def test_alignment_of_the_protocol() -> None:
    prediction, batch = samples(6)
    moved: Prediction = {"pred_3d": prediction["pred_3d"] + 500.0}
    still: Prediction = {"pred_3d": prediction["pred_3d"]}
    assert run(moved, batch)["mpjpe_mm"] == pytest.approx(run(still, batch)["mpjpe_mm"], rel=1e-4)
    none = dataclasses.replace(TRANSLATION, alignment="none")
    assert run(moved, batch, none)["mpjpe_mm"] > 500
    procrustes = dataclasses.replace(TRANSLATION, alignment="procrustes")
    result = run(moved, batch, procrustes)
    assert result["mpjpe_mm"] == result["pa_mpjpe_mm"]
    assert result["mpjpe_root_mm"] == pytest.approx(run(still, batch)["mpjpe_mm"], rel=1e-4)


def test_joints_and_root_of_the_protocol() -> None:
    prediction, batch = samples(6)
    batch["valid_3d"][:] = True
    counted = run(prediction, batch)["mpjpe_mm"]
    without = run(prediction, batch, dataclasses.replace(TRANSLATION, root_counted=False))
    # The root's error is 0, so counting it makes the mean smaller by exactly this.
    assert counted == pytest.approx(without["mpjpe_mm"] * 16 / 17, rel=1e-5)
    legs = ("r_knee", "l_knee")
    only = dataclasses.replace(TRANSLATION, joints=legs)
    index = [H36M_17.index(j) for j in legs]
    expected = m.mpjpe(prediction["pred_3d"][..., index, :], batch["joints_3d"][..., index, :])
    assert run(prediction, batch, only)["mpjpe_mm"] == pytest.approx(expected.item(), rel=1e-5)
    metric = m.PoseMetrics(only, H36M_17, ACTIONS)
    assert "2 joints of h36m_17 (r_knee l_knee)" in metric.definition
    with pytest.raises(UsageError, match="h36m_16 lacks: nose"):
        m.PoseMetrics(dataclasses.replace(only, joints=("nose",)), get_skeleton("h36m_16"), ACTIONS)


def test_sixteen_joint_methods_have_their_own_protocols() -> None:
    for name in ("p2-wang", "p3-wang", "p1-2fps", "p2-tome"):
        metric = m.PoseMetrics(name, get_skeleton("h36m_16"), ACTIONS)
        assert metric.definition.startswith(f"{name}: ")
    assert (
        "16 joints of h36m_16, root counted"
        in m.PoseMetrics("p1-2fps", get_skeleton("h36m_16"), ACTIONS).definition
    )


def test_per_action_report() -> None:
    prediction, batch = samples(10, frames=2)
    metric = m.PoseMetrics("p1-10fps", H36M_17, ACTIONS)
    metric.update(prediction, batch)
    report = metric.per_action()
    # In the order of the paper's columns.
    assert list(report) == ["Eating", "Sitting", "Walking", "mean over actions", "all frames"]
    for index, name in enumerate(ACTIONS):
        mine = batch["action"] == index
        value = m.mpjpe(
            prediction["pred_3d"][mine], batch["joints_3d"][mine], batch["valid_3d"][mine]
        )
        assert report[name]["mpjpe_mm"] == pytest.approx(value.item(), rel=1e-5)
        assert report[name]["samples"] == 2 * int(mine.sum())
    over_actions = sum(report[name]["mpjpe_mm"] for name in ACTIONS) / 3
    assert report["mean over actions"]["mpjpe_mm"] == pytest.approx(over_actions, rel=1e-6)
    assert metric.compute()["mpjpe_mm"].item() == pytest.approx(over_actions, rel=1e-6)
    frames = m.mpjpe(prediction["pred_3d"], batch["joints_3d"], batch["valid_3d"]).item()
    assert report["all frames"]["mpjpe_mm"] == pytest.approx(frames, rel=1e-5)
    metric.reset()
    metric.update(take(prediction, torch.tensor([0])), take(batch, torch.tensor([0])))
    assert list(metric.per_action()) == [ACTIONS[0], "mean over actions", "all frames"]


def test_two_dimensional_data_in_a_batch_is_not_counted_in_3d() -> None:
    prediction, batch = samples(6)
    alone = run(take(prediction, torch.arange(4)), take(batch, torch.arange(4)))
    batch["valid_3d"][4:] = False
    batch["joints_3d"][4:] = torch.nan
    mixed = run(prediction, batch)
    assert mixed["mpjpe_mm"] == pytest.approx(alone["mpjpe_mm"], rel=1e-6)
    assert mixed["error_2d_px"] != alone["error_2d_px"]
    batch["valid_3d"][:] = False
    assert math.isnan(run(prediction, batch)["mpjpe_mm"])


def test_order_and_padding_do_not_matter_at_all() -> None:
    prediction, batch = samples(11, frames=3)
    metric = m.PoseMetrics("p1-10fps", H36M_17, ACTIONS)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(2))
    for part in (*order.split(4), order[:3]):
        metric.update(take(prediction, part), take(batch, part))
    whole = m.PoseMetrics("p1-10fps", H36M_17, ACTIONS)
    whole.update(prediction, batch)
    assert metric.per_action()["all frames"]["samples"] == 33
    for name, value in whole.compute().items():
        assert metric.compute()[name].item() == pytest.approx(value.item(), rel=1e-6)


def test_a_method_of_another_layout_is_refused() -> None:
    prediction, batch = samples(2)
    with pytest.raises(UsageError, match="pred_3d is"):
        run({"pred_3d": prediction["pred_3d"][:, :, :16]}, batch)


def test_survives_pickling_and_leaves_checkpoints_alone() -> None:
    prediction, batch = samples(3)
    metric = m.PoseMetrics("p1-10fps", H36M_17, ACTIONS)
    metric.update(prediction, batch)
    copy = pickle.loads(pickle.dumps(metric))
    assert copy.compute()["mpjpe_mm"] == metric.compute()["mpjpe_mm"]
    assert dict(metric.state_dict()) == {}


# ---- two processes ----------------------------------------------------------------------------


SHARES: dict[str, list[list[int]]] = {
    # What a DistributedSampler gives to two processes: 7 and 7 of 13, the first one twice.
    "padded": [[0, 2, 4, 6, 8, 10, 12], [1, 3, 5, 7, 9, 11, 0]],
    "uneven": [[*range(12)], [12, 3, 4, 4]],
    "one idle": [[*range(13)], []],
}


def _worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    prediction, batch = samples(13, frames=3)
    results = {}
    metric = m.PoseMetrics("p1-10fps", H36M_17, ACTIONS)
    limbs = m.LimbRatioError(H36M_17)
    loose = m.MPJPE()
    for case, shares in SHARES.items():
        for each in (metric, limbs, loose):
            each.reset()
        for index in torch.tensor(shares[rank], dtype=torch.int64).split(2):
            p, b = take(prediction, index), take(batch, index)
            if len(index):
                metric.update(p, b)
                limbs.update(p["pred_3d"], b["joints_3d"], b["valid_3d"], m.sample_ids(b, 3))
                loose.update(p["pred_3d"], b["joints_3d"], b["valid_3d"])
        results[case] = {
            "metrics": metric.compute(),
            "limbs": limbs.compute()["signed_full"],
            "loose": loose.compute(),
            # Asked by one process only: must not wait for the other.
            "report": metric.per_action() if rank == 0 else None,
            "own": sum(map(len, metric.rows)),
        }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_worker, args=(2, str(tmp_path)), nprocs=2)
    prediction, batch = samples(13, frames=3)
    one = m.PoseMetrics("p1-10fps", H36M_17, ACTIONS)
    one.update(prediction, batch)
    limbs = m.LimbRatioError(H36M_17)
    limbs.update(prediction["pred_3d"], batch["joints_3d"], batch["valid_3d"])
    expected = {name: value.item() for name, value in one.compute().items()}
    expected_limbs = limbs.compute()["signed_full"].item()
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for case, shares in SHARES.items():
        # Without ids nothing can be recognised as a copy: all count.
        every = torch.tensor([*shares[0], *shares[1]])
        loose = m.mpjpe(
            prediction["pred_3d"][every], batch["joints_3d"][every], batch["valid_3d"][every]
        ).item()
        for rank in range(2):
            result = results[rank][case]
            found = {name: value.item() for name, value in result["metrics"].items()}
            assert found == pytest.approx(expected, rel=1e-5), case
            assert result["limbs"].item() == pytest.approx(expected_limbs, rel=1e-5)
            assert result["loose"].item() == pytest.approx(loose, rel=1e-5)
            # After a result each process has its own samples only, and can go on.
            assert result["own"] == 3 * len(shares[rank])
        report = results[0][case]["report"]
        assert report["all frames"]["samples"] == 39
        for action, values in one.per_action().items():
            assert report[action] == pytest.approx(values, rel=1e-5)


# ---- other data sets' protocols ------------------------------------------------------------------


def test_rigid_alignment_has_no_scale() -> None:
    pred, target = poses(20)
    turn = torch.linalg.qr(randn(3, 3, seed=9))[0]
    turn = turn * torch.linalg.det(turn).sign()
    moved = target @ turn.mT + 40.0
    assert m.rigid_mpjpe(moved, target).item() == pytest.approx(0, abs=1e-3)
    # Scaled about its centroid, what remains is the scale.
    centre = target.mean(-2, keepdim=True)
    scaled = centre + 1.2 * (target - centre)
    expected = m.mpjpe(scaled, target).item()
    assert m.rigid_mpjpe(1.2 * moved, target).item() == pytest.approx(expected, rel=1e-4)
    assert m.pa_mpjpe(1.2 * moved, target).item() == pytest.approx(0, abs=1e-3)
    both = m.rigid_mpjpe(pred, target, None, "none").pow(2).mean()
    assert m.pa_mpjpe(pred, target, None, "none").pow(2).mean() <= both * 1.05


def test_humaneva_moves_the_hips_and_averages_over_subjects() -> None:
    prediction, batch = samples(12)
    batch["valid_3d"][:] = True
    actions = ("Walking", "Jogging", "Boxing")
    metric = m.PoseMetrics("humaneva-rpsm", H36M_17, actions)
    metric.update(prediction, batch)
    result = {k: v.item() for k, v in metric.compute().items()}
    at = [H36M_17.index(j) for j in metric.counted]
    assert len(at) == 14
    hips = [H36M_17.index("r_hip"), H36M_17.index("l_hip")]

    def errors(middle: list[int]) -> Any:
        p, t = prediction["pred_3d"], batch["joints_3d"]
        gap = (p - p[..., middle, :].mean(-2, keepdim=True)) - (
            t - t[..., middle, :].mean(-2, keepdim=True)
        )
        return gap[..., at, :].norm(dim=-1).mean((-1, -2))

    group = list(zip(batch["action"].tolist(), batch["subject"].tolist(), strict=True))
    for name, middle in (("mpjpe_mm", hips), ("mpjpe_centroid_mm", at)):
        by_group = [
            errors(middle)[[i for i, g in enumerate(group) if g == key]].mean()
            for key in sorted(set(group))
        ]
        assert result[name] == pytest.approx(float(torch.stack(by_group).mean()), rel=1e-5)
    rows = list(metric.per_action())
    assert rows[:4] == ["Walking S9", "Walking S11", "Jogging S9", "Jogging S11"]
    assert rows[-3:] == ["mean over subjects and actions", "mean over actions", "all frames"]
    # Moving a prediction changes nothing; without both hips the roots are used.
    prediction["pred_3d"] = prediction["pred_3d"] + 100.0
    moved = m.PoseMetrics("humaneva-rpsm", H36M_17, actions)
    moved.update(prediction, batch)
    assert moved.compute()["mpjpe_mm"].item() == pytest.approx(result["mpjpe_mm"], rel=1e-5)


def test_katircioglu_on_humaneva_is_rigid_over_15_joints() -> None:
    prediction, batch = samples(6)
    batch["action"] = torch.zeros(6, dtype=torch.int64)
    metric = m.PoseMetrics("humaneva-katircioglu", H36M_17, ("Walking",))
    metric.update(prediction, batch)
    result = metric.compute()
    at = [H36M_17.index(j) for j in metric.counted]
    assert len(at) == 15
    mask = torch.zeros(17, dtype=torch.bool)
    mask[at] = True
    rows = m.rigid_mpjpe(
        prediction["pred_3d"], batch["joints_3d"], batch["valid_3d"] & mask, "none"
    )
    rows = rows.mean(-1)
    means = [rows[batch["subject"] == s].mean() for s in (9, 11)]
    assert result["mpjpe_mm"].item() == pytest.approx(float(sum(means) / 2), rel=1e-4)
    assert result["mpjpe_root_mm"] >= result["mpjpe_mm"]


def test_kth_reports_correct_parts() -> None:
    _, batch = samples(40)
    batch["valid_3d"][:] = True
    target = batch["joints_3d"]
    # The right shin's ends are off by half its length each (right), the left one's by 0.6 of it.
    pred = target.clone()
    for side, share in (("r", 0.49), ("l", 0.6)):
        knee, ankle = H36M_17.index(f"{side}_knee"), H36M_17.index(f"{side}_ankle")
        shift = share * (target[..., ankle, :] - target[..., knee, :])
        pred[..., knee, :] += shift.norm(dim=-1, keepdim=True) * torch.tensor([0.0, 0.0, 1.0])
        pred[..., ankle, :] += shift.norm(dim=-1, keepdim=True) * torch.tensor([0.0, 0.0, 1.0])
    metric = m.PoseMetrics("kth-pcp", H36M_17, ACTIONS)
    metric.update({"pred_3d": pred + 500.0}, batch)
    result = {k: v.item() for k, v in metric.compute().items()}
    assert result["pcp_50_lower_legs"] == 50.0
    assert result["pcp_50_torso"] == result["pcp_50_pelvis"] == result["pcp_50_upper_arms"] == 100.0
    parts = m.PCP(m.pcp_parts(H36M_17))
    parts.update(pred, target)
    assert result["pcp_50"] == pytest.approx(parts.compute()["all"].item(), rel=1e-5)
