"""The shared heads against slow plain versions and hand-made truths; timm trunks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.errors import UsageError
from zoo.layers import (
    GridClassification,
    MultiRootRegression,
    grid_centers,
    grid_soft_labels,
    masked_sample_mean,
    soft_cross_entropy,
    timm_trunk,
)

SIZE, GRID = 225, 16
CELL = SIZE / GRID
ROOTS = (0, 2, 5, 8, 12, 15)
JOINTS = 17


def interior_points(count: int, seed: int = 0) -> Tensor:
    """Uniform points at least a cell away from the border, px."""
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(count, 2, generator=rng) * (SIZE - 2 * CELL) + CELL - 0.5


def slow_labels(x: float, y: float, grid: int, size: float, mode: str) -> list[float]:
    """Eq. 1-2 cell by cell."""
    width = size / grid
    distances = []
    for row in range(grid):
        for column in range(grid):
            cx, cy = (column + 0.5) * width - 0.5, (row + 0.5) * width - 0.5
            distances.append(math.hypot(x - cx, y - cy))
    if mode == "radius":
        chosen = [i for i, d in enumerate(distances) if d < width]
    else:
        chosen = sorted(range(len(distances)), key=lambda i: distances[i])[:4]
    inverse = {i: 1 / max(distances[i], 1e-3 * width) for i in chosen}
    return [inverse.get(i, 0.0) / sum(inverse.values()) for i in range(len(distances))]


# ---- labels -------------------------------------------------------------------------------------


@given(
    x=st.floats(-0.5, 47.25, width=32),
    y=st.floats(-0.5, 47.25, width=32),
    grid=st.sampled_from([2, 3, 4, 8]),
    mode=st.sampled_from(["radius", "nearest4"]),
)
@settings(max_examples=80, deadline=None)
def test_labels_are_equation_1(x, y, grid, mode):
    away = (grid_centers(grid, 48) - torch.tensor([x, y])).norm(dim=1) - 48 / grid
    assume(away.abs().min() > 1e-4 or mode == "nearest4")  # in or out by rounding alone
    labels = grid_soft_labels(torch.tensor([x, y]), grid, 48, mode)
    assert labels.sum().item() == pytest.approx(1, abs=1e-6)
    assert (labels >= 0).all()
    plain = torch.tensor(slow_labels(x, y, grid, 48, mode))
    # Where a fourth and a fifth cell are equally far, either may be chosen: compare the weights.
    torch.testing.assert_close(labels.sort().values, plain.sort().values, atol=2e-4, rtol=0)


def test_label_statistics():
    points = interior_points(100_000)
    radius = grid_soft_labels(points, GRID, SIZE, "radius")
    counts = (radius > 0).sum(dim=1)
    shares = [(counts == n).float().mean().item() for n in range(6)]
    # The area of a cell that 2, 3 or 4 discs of one cell's width cover.
    assert shares[2] == pytest.approx(0.17, abs=0.01)
    assert shares[3] == pytest.approx(0.51, abs=0.01)
    assert shares[4] == pytest.approx(0.32, abs=0.01)
    assert shares[5] == 0
    assert counts.float().mean().item() == pytest.approx(math.pi, abs=0.01)
    nearest = grid_soft_labels(points, GRID, SIZE, "nearest4")
    assert ((nearest > 0).sum(dim=1) == 4).all()

    column, row = ((points + 0.5) / CELL).floor().long().T
    centers = grid_centers(GRID, SIZE)
    for labels, bound in ((radius, 0.21), (nearest, 0.31)):
        assert (labels.argmax(dim=1) == row * GRID + column).all()
        expectation = labels @ centers
        assert ((expectation - points).norm(dim=1) < bound * CELL).all()


@pytest.mark.parametrize("mode", ["radius", "nearest4"])
def test_shared_corner_gives_four_quarters(mode):
    labels = grid_soft_labels(torch.tensor([5 * 12.0 - 0.5, 3 * 12.0 - 0.5]), 8, 96, mode)
    cells = [(row, column) for row in (2, 3) for column in (4, 5)]
    expected = torch.zeros(8, 8)
    for cell in cells:
        expected[cell] = 0.25
    torch.testing.assert_close(labels.view(8, 8), expected)


def test_point_on_a_centre_is_nearly_one_hot():
    centre = torch.tensor([5.5 * 12 - 0.5, 3.5 * 12 - 0.5])
    assert grid_soft_labels(centre, 8, 96, "radius").max() == 1
    assert grid_soft_labels(centre, 8, 96, "nearest4").max() > 0.99
    assert grid_soft_labels(centre, 8, 96, "one_hot")[3 * 8 + 5] == 1


def test_fewer_neighbours_at_the_border():
    corner = grid_soft_labels(torch.tensor([0.0, 0.0]), 8, 96, "radius")
    assert corner.argmax() == 0
    assert (corner > 0).sum() == 1
    assert corner.sum() == 1


# ---- cross-entropy ------------------------------------------------------------------------------


def test_cross_entropy_bottoms_at_the_entropy_of_the_target():
    target = grid_soft_labels(interior_points(20), GRID, SIZE, "radius")
    entropy = -(target * target.clamp(min=1e-30).log()).sum(dim=1)
    at_target = soft_cross_entropy(target.clamp(min=1e-20).log(), target)
    torch.testing.assert_close(at_target, entropy)
    assert (soft_cross_entropy(torch.randn(20, 256), target) > entropy).all()


def test_cross_entropy_gradient_is_p_minus_target():
    target = grid_soft_labels(interior_points(7), GRID, SIZE, "radius")
    logits = torch.randn(7, 256, requires_grad=True)
    soft_cross_entropy(logits, target).sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().softmax(-1) - target)


def test_one_hot_labels_give_the_ordinary_cross_entropy():
    head = GridClassification(4, 3, grid=8, size=96, soft_labels="one_hot")
    points = torch.rand(5, 3, 2) * 96 - 0.5
    logits = torch.randn(5, 3, 64)
    cells = ((points + 0.5) / 12).floor().long()
    index = cells[..., 1] * 8 + cells[..., 0]
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), index.flatten(), reduction="sum"
    )
    loss = head.loss(logits, points, torch.ones(5, 3, dtype=torch.bool))
    torch.testing.assert_close(loss, expected / 5)


# ---- the 2D head --------------------------------------------------------------------------------


def test_joints_outside_the_image_or_not_valid_have_no_loss():
    head = GridClassification(4, 3, grid=8, size=96)
    points = torch.full((2, 3, 2), 40.0)
    points[0, 1] = torch.tensor([96.0, 40.0])  # outside: pixel 95 ends at 95.5
    points[1, 2] = math.nan
    valid = torch.ones(2, 3, dtype=torch.bool)
    valid[0, 2] = False
    logits = torch.randn(2, 3, 64, requires_grad=True)
    head.loss(logits, points, valid).backward()
    touched = logits.grad.abs().sum(dim=-1) > 0
    assert touched.tolist() == [[True, False, False], [True, True, False]]
    assert torch.isfinite(logits.grad).all()


def test_decode_argmax_is_the_cell_centre():
    head = GridClassification(4, 1, grid=8, size=96)
    logits = torch.zeros(64)
    logits[3 * 8 + 5] = 5.0
    assert head.decode(logits, "argmax").tolist() == [5.5 * 12 - 0.5, 3.5 * 12 - 0.5]


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_decode_expectation_against_a_loop_over_blocks(seed):
    head = GridClassification(4, 1, grid=5, size=60)
    logits = 2 * torch.randn(3, 25, generator=torch.Generator().manual_seed(seed))
    centers = grid_centers(5, 60).view(5, 5, 2)
    for one, point in zip(logits, head.decode(logits), strict=True):
        probs = one.softmax(0).view(5, 5)
        best = divmod(int(probs.argmax()), 5)
        blocks = [
            (row, column)
            for row in range(4)
            for column in range(4)
            if row <= best[0] <= row + 1 and column <= best[1] <= column + 1
        ]
        row, column = max(blocks, key=lambda b: probs[b[0] : b[0] + 2, b[1] : b[1] + 2].sum())
        weights = probs[row : row + 2, column : column + 2].reshape(-1, 1)
        cells = centers[row : row + 2, column : column + 2].reshape(-1, 2)
        torch.testing.assert_close(point, (weights * cells).sum(0) / weights.sum())


@pytest.mark.parametrize("mode", ["radius", "nearest4"])
def test_decoding_perfect_labels_returns_the_point(mode):
    head = GridClassification(4, 1, GRID, SIZE, mode)
    points = interior_points(2000)
    read = head.decode(head.targets(points).clamp(min=1e-12).log())
    assert ((read - points).norm(dim=-1) < 0.35 * CELL).all()
    assert ((head.decode(head.targets(points).log(), "argmax") - points).abs() <= CELL / 2).all()


# ---- several roots ------------------------------------------------------------------------------


def head(roots=ROOTS) -> MultiRootRegression:
    return MultiRootRegression(12, JOINTS, roots, hidden=10, dropout=0.0)


def unit_poses(count: int, seed: int = 0) -> Tensor:
    pose = torch.randn(count, JOINTS, 3, generator=torch.Generator().manual_seed(seed))
    pose = pose - pose.mean(dim=1, keepdim=True)
    return pose / pose.norm(dim=(1, 2), keepdim=True)


@pytest.mark.parametrize("root", range(JOINTS))
def test_scatter_and_gather_round_trip(root):
    one, pose = head([root]), unit_poses(3)
    relative = one.targets(pose)
    assert relative.shape == (3, 1, 16, 3)
    others = [j for j in range(JOINTS) if j != root]
    torch.testing.assert_close(relative[:, 0], pose[:, others] - pose[:, [root]])
    whole = one.poses(relative)[:, 0]
    assert (whole[:, root] == 0).all()
    torch.testing.assert_close(whole, pose - pose[:, [root]])


def test_perfect_branches_average_to_the_pose():
    six, pose = head(), unit_poses(5)
    torch.testing.assert_close(six.average(six.targets(pose)), pose, atol=1e-7, rtol=0)
    shifted = pose + torch.tensor([3.0, -2.0, 5.0])
    torch.testing.assert_close(six.targets(shifted), six.targets(pose), atol=2e-6, rtol=0)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_average_ignores_where_a_branch_puts_its_root(seed):
    rng = torch.Generator().manual_seed(seed)
    six = head()
    relative = torch.randn(2, 6, 16, 3, generator=rng)
    shift = torch.randn(2, 6, 1, 3, generator=rng)
    # Translating X^(r) moves its root too, which the outputs cannot say; Eq. 7 on whole poses:
    poses = six.poses(relative)
    moved = poses + shift
    plain = (moved - moved.mean(dim=2, keepdim=True)).mean(dim=1)
    torch.testing.assert_close(six.average(relative), plain, atol=1e-5, rtol=0)


def test_averaging_six_noisy_branches():
    torch.manual_seed(0)
    six, pose = head(), unit_poses(2000)
    noise = 0.01 * torch.randn(2000, 6, 16, 3)
    noisy = six.targets(pose) + noise
    average = (six.average(noisy) - pose).norm(dim=-1).mean()
    singles = six.poses(noisy)
    singles = singles - singles.mean(dim=2, keepdim=True)
    single = (singles - pose[:, None]).norm(dim=-1).mean()
    assert (single / average).item() == pytest.approx(2.4, abs=0.1)
    same = six.targets(pose + 0.01 * torch.randn_like(pose))
    gained = (six.average(same) - pose).norm(dim=-1).mean()
    whole = six.poses(same)
    alone = (whole - whole.mean(dim=2, keepdim=True) - pose[:, None]).norm(dim=-1).mean()
    assert (alone / gained).item() == pytest.approx(1.0, abs=1e-3)


def test_loss_is_equation_6():
    two, pose = head([0, 8]), unit_poses(3)
    valid = torch.ones(3, JOINTS, dtype=torch.bool)
    relative = torch.randn(3, 2, 16, 3)
    expected = 0.0
    for sample in range(3):
        for branch, root in enumerate((0, 8)):
            others = [j for j in range(JOINTS) if j != root]
            for slot, joint in enumerate(others):
                truth = pose[sample, joint] - pose[sample, root]
                expected += (relative[sample, branch, slot] - truth).square().sum().item() / 3
    assert two.loss(relative, pose, valid).item() == pytest.approx(expected, rel=1e-5)


def test_a_pair_needs_both_its_joints():
    two, pose = head([0, 8]), unit_poses(2)
    valid = torch.ones(2, JOINTS, dtype=torch.bool)
    valid[0, 8] = False  # a root: its whole branch, and one joint of the other
    valid[1] = False
    pose = pose.masked_fill(~valid[..., None], math.nan)
    relative = torch.randn(2, 2, 16, 3, requires_grad=True)
    two.loss(relative, pose, valid).backward()
    touched = (relative.grad.abs().sum(dim=-1) > 0).sum(dim=-1)
    assert touched.tolist() == [[15, 0], [0, 0]]
    assert torch.isfinite(relative.grad).all()


def test_branches_that_share_their_layer_are_translates_of_each_other():
    """Sec. 3.3, "the trained model outputs the same results": least squares on shared features."""
    rng = torch.Generator().manual_seed(1)
    six, pose = head(), unit_poses(300).double()
    target = six.targets(pose)

    def fitted(features: Tensor) -> Tensor:
        columns = torch.cat([features, torch.ones(300, 1, dtype=features.dtype)], dim=1)
        return columns @ torch.linalg.lstsq(columns, target.flatten(1)).solution

    def centred(relative: Tensor) -> Tensor:
        poses = six.poses(relative)
        return poses - poses.mean(dim=2, keepdim=True)

    shared = torch.randn(300, 10, generator=rng, dtype=torch.float64)
    poses = centred(fitted(shared).view(300, 6, 16, 3))
    assert (poses - poses[:, :1]).abs().max() < 1e-6
    separate = []
    for branch in range(6):
        own = torch.randn(300, 10, generator=rng, dtype=torch.float64)
        separate.append(fitted(own).view(300, 6, 16, 3)[:, branch])
    poses = centred(torch.stack(separate, dim=1))
    assert (poses - poses[:, :1]).abs().max() > 0.01


def test_each_branch_has_its_own_layers():
    six = head()
    first = six.branches[0][0][0].weight
    assert all(branch[0][0].weight is not first for branch in six.branches[1:])
    out = six.eval()(torch.randn(4, 12))
    assert out.shape == (4, 6, 16, 3)
    poses = six.poses(out)
    poses = poses - poses.mean(dim=2, keepdim=True)
    assert (poses[:, 1:] - poses[:, :1]).abs().max() > 1e-3


def test_spread_is_the_deviation_about_the_average():
    six = head()
    relative = torch.randn(2, 6, 16, 3)
    poses = six.poses(relative)
    poses = poses - poses.mean(dim=2, keepdim=True)
    about = (poses - six.average(relative)[:, None]).square().sum(dim=(1, 3)) / (5 * 3)
    torch.testing.assert_close(six.spread(relative), about.sqrt())


def test_masked_sample_mean_counts_labelled_samples():
    terms = torch.tensor([[1.0, 2.0], [math.nan, 4.0], [math.nan, math.inf]])
    valid = torch.tensor([[True, True], [False, True], [False, False]])
    assert masked_sample_mean(terms, valid).item() == pytest.approx((3 + 4) / 2)
    assert masked_sample_mean(terms, torch.zeros_like(valid)).item() == 0


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: MultiRootRegression(4, 17, []), "one or more"),
        (lambda: MultiRootRegression(4, 17, [0, 0]), "different"),
        (lambda: MultiRootRegression(4, 17, [17]), "0 to 16"),
        (lambda: GridClassification(4, 17, grid=1), "at least 2"),
        (lambda: GridClassification(4, 17, soft_labels="radios"), "radius"),
    ],
)
def test_wrong_arguments_are_named(build, words):
    with pytest.raises(UsageError, match=words):
        build()


# ---- timm ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [("resnet10t", 64, 512), ("vit_tiny_patch16_224", 64, 192), ("mobilenetv3_small_050", 48, 288)],
)
def test_any_timm_model_is_a_trunk(name, size, channels):
    trunk = timm_trunk(name, image_size=size, pool=2)
    assert trunk.num_features == channels * 4
    assert trunk(torch.rand(2, 3, size, size)).shape == (2, channels * 4)


def test_pooled_cells_keep_their_place():
    torch.manual_seed(0)
    trunk = timm_trunk("resnet10t", image_size=256, pool=2).eval()
    image = torch.rand(1, 3, 256, 256)
    changed = image.clone()
    changed[:, :, :96, 160:] = 0  # top right
    moved = (trunk(changed) - trunk(image)).view(512, 4).norm(dim=0)
    assert moved.argmax() == 1
    assert moved[1] > 2 * moved[2]


def test_channels_last_families_are_turned():
    trunk = timm_trunk("swin_tiny_patch4_window7_224", image_size=224, pool=1)
    assert trunk.num_features == 768


def test_unknown_timm_model_is_suggested():
    with pytest.raises(UsageError, match="did you mean resnet18"):
        timm_trunk("resnte18", image_size=64)


def test_an_image_size_the_model_cannot_take():
    with pytest.raises(UsageError, match=r"swin_tiny.* 2 px.*multiple of 32"):
        timm_trunk("swin_tiny_patch4_window7_224", image_size=2)
