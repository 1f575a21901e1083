"""Parts of the recurrent pose machines: sizes of the papers, normalisation, limbs, pictures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from zoo.base import InputSpec
from zoo.cpm import CPMTrunk
from zoo.errors import DataError, UsageError
from zoo.heatmaps import belief_targets
from zoo.pose_machine import (
    Adaption,
    ClipMemory,
    FeatureAdaption,
    HeatmapLayer,
    PoseRange,
    SpecialisedPair,
    rescale_frames,
    scale_limbs,
    single_bias_lstm,
    turn_frames,
)
from zoo.skeleton import H36M_17, get_skeleton
from zoo.testing import random_poses


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


# ---- sizes --------------------------------------------------------------------------------------


def test_the_trunk_is_table_1() -> None:
    with torch.device("meta"):
        trunk = CPMTrunk()
        assert count(trunk) == 9_110_720
        for size in (64, 96, 128, 368):
            assert trunk(torch.rand(1, 3, size, size)).shape == (1, 128, size // 8, size // 8)
    assert sum(isinstance(m, nn.Conv2d) for m in trunk.modules()) == 15
    assert sum(isinstance(m, nn.MaxPool2d) for m in trunk.modules()) == 3
    with torch.device("meta"):
        assert (count(SpecialisedPair(128)), count(SpecialisedPair(256))) == (
            295_168,
            442_624,
        )


@pytest.mark.parametrize(
    ("reading", "inputs", "parameters"),
    [
        ("paper", 4_608, 5_539_072), ("pool_each", 1_152, 2_000_128),
        ("rpsm_code", 18_432, 19_432_704), ("ssc_code", 12_800, 13_927_680),
    ],
)  # fmt: skip
def test_adaption_in_the_four_readings(reading: Adaption, inputs: int, parameters: int) -> None:
    with torch.device("meta"):
        module = FeatureAdaption(128, 46, reading=reading)
        assert module(torch.rand(2, 128, 46, 46)).shape == (2, 1024)
    assert (module.in_features, count(module)) == (inputs, parameters)


def test_adaption_of_small_pictures_says_what_does_not_fit() -> None:
    for cells in range(1, 20):
        for reading in ("paper", "pool_each", "rpsm_code", "ssc_code"):
            try:
                module = FeatureAdaption(2, cells, 3, 4, reading)  # type: ignore[arg-type]
            except UsageError:
                with pytest.raises(RuntimeError):  # torch says the same
                    _plain(reading)(torch.rand(1, 2, cells, cells))
                continue
            assert module(torch.rand(1, 2, cells, cells)).shape == (1, 4)
            assert module.in_features == _plain(reading)(torch.rand(1, 2, cells, cells)).numel()
    with pytest.raises(UsageError, match="8 x 8 cells"):
        FeatureAdaption(2, 8, reading="pool_each")
    with pytest.raises(UsageError, match="paper"):
        FeatureAdaption(2, 8, reading="papr")  # type: ignore[arg-type]


def _plain(reading: str) -> nn.Sequential:
    pool = nn.MaxPool2d(2, 2, ceil_mode=reading == "rpsm_code")
    pad = 1 if reading == "ssc_code" else 2
    first, second = nn.Conv2d(2, 3, 5, 2, pad), nn.Conv2d(3, 3, 5, 2, pad)
    if reading == "pool_each":
        return nn.Sequential(first, pool, second, pool)
    if reading == "rpsm_code":
        return nn.Sequential(first, nn.Conv2d(3, 3, 3, 1, 1), pool)
    return (
        nn.Sequential(first, second)
        if reading == "ssc_code"
        else nn.Sequential(first, second, pool)
    )


def test_an_lstm_with_one_bias_is_the_papers_equations() -> None:
    lstm = single_bias_lstm(3, 4)
    assert count(lstm) == 4 * 4 * (3 + 4 + 1)
    with torch.no_grad():
        lstm.bias_ih_l0.copy_(torch.randn(16))
    x, h, c = torch.randn(2, 5, 3), torch.zeros(2, 4), torch.zeros(2, 4)
    outputs = []
    for t in range(5):
        gates = x[:, t] @ lstm.weight_ih_l0.T + h @ lstm.weight_hh_l0.T + lstm.bias_ih_l0
        i, f, g, o = gates.chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    torch.testing.assert_close(lstm(x)[0], torch.stack(outputs, 1))


def test_the_heatmap_layer_is_a_convolution_and_half_the_squares() -> None:
    layer = HeatmapLayer(6, 3, stride=8)
    features = torch.randn(4, 6, 5, 5)
    maps = layer(features)
    joints = 9 + 20 * torch.rand(4, 3, 2)  # not in a cell of the edge
    valid = torch.ones(4, 3, dtype=torch.bool)
    target, _ = belief_targets(joints, valid, 5, 5, 8, 7 / 8)
    plain = 0.5 * (maps - target).square().flatten(1).sum(1).mean()
    torch.testing.assert_close(layer.loss(maps, joints, valid), plain)
    valid[0, 1] = False  # neither that joint's map nor that frame's background
    less = plain - 0.5 * (maps - target).square()[0, [1, 3]].sum() / 4
    joints[0, 1] = math.nan
    torch.testing.assert_close(layer.loss(maps, joints, valid), less)
    torch.testing.assert_close(
        layer.read(belief_targets(joints[1:], valid[1:], 5, 5, 8, 7 / 8)[0]),
        joints[1:],
        atol=4,
        rtol=0,
    )


# ---- limbs and range ----------------------------------------------------------------------------


def poses(count: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    batch = random_poses(InputSpec(), H36M_17, count)
    return batch["joints_3d"].flatten(0, 1), batch["valid_3d"].flatten(0, 1)


def test_limbs_get_their_lengths_and_keep_their_directions() -> None:
    pose, valid = poses()
    pose, valid = pose[valid.all(1)], valid[valid.all(1)]
    lengths = 100 + 300 * torch.rand(17)
    scaled = scale_limbs(pose, valid, lengths, H36M_17.parents)
    for child, parent in H36M_17.bones:
        new, old = scaled[:, child] - scaled[:, parent], pose[:, child] - pose[:, parent]
        torch.testing.assert_close(new.norm(dim=1), lengths[child].expand(len(pose)))
        assert bool((nn.functional.cosine_similarity(new, old) > 1 - 1e-5).all())
    twice = scale_limbs(scaled, valid, lengths, H36M_17.parents)
    torch.testing.assert_close(twice, scaled, atol=1e-2, rtol=1e-5)


def test_limbs_without_length_and_joints_without_parent_do_no_harm() -> None:
    pose, valid = poses(4)
    pose[0, 3] = pose[0, 2]  # ankle on the knee
    valid = torch.ones_like(valid)
    valid[1, 2] = False
    pose[1, 2] = math.nan
    lengths = torch.full((17,), 200.0)
    scaled = scale_limbs(pose, valid, lengths, H36M_17.parents)
    assert bool(scaled.isfinite().all())
    assert torch.equal(scaled[0, 3], scaled[0, 2])
    # Without the knee the ankle keeps its offset from the hip, which has moved.
    torch.testing.assert_close(scaled[1, 3] - scaled[1, 1], pose[1, 3] - pose[1, 1])
    assert not bool(scaled[1, 2].any())


@pytest.mark.parametrize("limb_scale", [True, False])
def test_targets_are_max_min_normalised_and_come_back(limb_scale: bool) -> None:
    pose, valid = poses()
    space = PoseRange(H36M_17, limb_scale)
    space.fit(pose, valid)
    unit, known = space.target(pose, valid)
    assert torch.equal(known.view(-1, 17, 3).all(2), valid)
    assert float(unit.min()) >= -1e-6
    assert float(unit.max()) <= 1 + 1e-6
    assert not bool(unit[:, :3].any())
    labelled = torch.where(known, unit, 0.5)
    assert bool((labelled[:, 3:].amax(0) > 1 - 1e-5).all())
    assert bool((labelled[:, 3:].amin(0) < 1e-5).all())
    whole = valid.all(1)
    back = space.to_mm(unit[whole])
    expected = pose[whole]
    if limb_scale:
        expected = scale_limbs(expected, valid[whole], space.lengths, H36M_17.parents)
        floor = (expected - pose[whole]).norm(dim=-1).mean()
        assert float(space.floor_mm) == pytest.approx(float(floor), rel=0.2)
        assert float(floor) > 1
    else:
        assert float(space.floor_mm) == 0
    torch.testing.assert_close(back, expected, atol=1e-3, rtol=0)
    # Extrema are those of training: a larger pose is not clipped.
    assert float(space.normalise(3 * pose[whole]).max()) > 1.5
    assert not bool(space.to_mm(torch.ones(2, 51))[:, 0].any())


def test_a_joint_that_is_nowhere_is_named() -> None:
    pose, valid = poses(8)
    valid[:, 3] = False
    with pytest.raises(DataError, match="r_ankle"):
        PoseRange(H36M_17).fit(pose, valid)


def test_the_range_serves_other_skeletons() -> None:
    skeleton = get_skeleton("h36m_16")
    batch = random_poses(InputSpec(), skeleton, 64)
    space = PoseRange(skeleton)
    space.fit(batch["joints_3d"].flatten(0, 1), batch["valid_3d"].flatten(0, 1))
    assert space.to_mm(torch.rand(2, 48)).shape == (2, 16, 3)


# ---- pictures -----------------------------------------------------------------------------------


def test_scaling_frames() -> None:
    image = torch.rand(3, 3, 20, 20)
    middle = torch.full((3, 2), 0.5)
    same = rescale_frames(image, torch.ones(3), middle)
    torch.testing.assert_close(same, image, atol=1e-5, rtol=0)
    small = rescale_frames(image, torch.full((3,), 0.5), middle)
    assert bool((small[:, :, :3] == 0.5).all())
    assert bool((small[:, :, :, -3:] == 0.5).all())
    assert float((small[:, :, 6:14, 6:14] - 0.5).abs().mean()) > 0.05
    # Twice as large and at the left upper corner: cell k holds px k / 2 - 1/4.
    rows = torch.arange(20.0)[:, None].expand(3, 3, 20, 20) / 20
    near = {"atol": 3e-3, "rtol": 0.0}  # the cubic kernel is no exact interpolation of a slope
    large = rescale_frames(rows, torch.full((3,), 2.0), torch.zeros(3, 2))
    torch.testing.assert_close(large[0, 0, 4:, 10], (torch.arange(4, 20) / 2 - 0.25) / 20, **near)
    right = rescale_frames(rows.mT, torch.full((3,), 2.0), torch.ones(3, 2))
    torch.testing.assert_close(right[0, 0, 10, :16], (torch.arange(16) / 2 + 9.75) / 20, **near)


def test_turning_takes_the_joints_along() -> None:
    image = torch.zeros(2, 3, 33, 33)
    image[:, :, 10, 22] = 1.0
    joints = torch.tensor([22.0, 10.0]).expand(2, 1, 2)
    turned, moved = turn_frames(
        image, joints, torch.tensor([1.0, 0.5]), torch.tensor([math.pi / 2, 0.0])
    )
    torch.testing.assert_close(moved[:, 0], torch.tensor([[22.0, 22.0], [19.0, 13.0]]))
    assert float(turned[0, 0, 22, 22]) == pytest.approx(1.0, abs=1e-4)
    # Away from it there is the picture, or beyond it grey.
    assert float(turned[1, 0, 0, 0]) == 0.5


# ---- states over clips --------------------------------------------------------------------------


def test_clips_wait_for_the_one_before_them() -> None:
    memory = ClipMemory(step=10)
    keys = [(0, 0, 0, 0, frame) for frame in (25, 5, 15, 95)] + [(0, 0, 1, 0, 15)]
    assert memory.order(keys) == [[1, 3, 4], [2], [0]]
    memory.keep(keys[1], (torch.ones(1),))
    assert memory.recall(keys[4]) is None
    assert memory.recall(keys[2]) is not None
    assert memory.recall(keys[2]) is None
    memory.keep(keys[1], (torch.ones(1),))
    memory.clear()
    assert memory.recall(keys[2]) is None
    assert memory.keys({"joints_2d": torch.zeros(1)}) == []
    assert memory.order([]) == []
