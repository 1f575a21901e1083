"""Cameras, crops, mirroring and alignment."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zoo import geometry as g
from zoo.skeleton import H36M_17, get_skeleton

SEEDS = st.integers(0, 2**31 - 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def rotation(seed: int, *shape: int) -> Tensor:
    q, _ = torch.linalg.qr(randn(*shape, 3, 3, seed=seed))
    return q * torch.linalg.det(q)[..., None, None].sign()


def camera(seed: int = 0) -> Tensor:
    k = torch.eye(3, dtype=torch.float64)
    k[0, 0], k[1, 1], k[0, 1] = 1145.0, 1144.0, 3.0
    k[0, 2], k[1, 2] = 512.5, 515.4
    return k


def in_view(*shape: int, seed: int = 0) -> Tensor:
    return randn(*shape, 3, seed=seed) * 300 + torch.tensor([0.0, 0.0, 4000.0], dtype=torch.float64)


# ---- cameras ----------------------------------------------------------------------------------


@given(seed=SEEDS)
def test_world_and_camera_are_inverse_and_the_centre_maps_to_zero(seed: int) -> None:
    r, t, x = rotation(seed, 2), randn(2, 3, seed=seed + 1) * 1000, randn(2, 5, 3, seed=seed + 2)
    cam = g.world_to_camera(x, r, t)
    torch.testing.assert_close(g.camera_to_world(cam, r, t), x)
    torch.testing.assert_close(cam[1, 3], r[1] @ (x[1, 3] - t[1]))
    zero = g.world_to_camera(t.unsqueeze(1), r, t)
    torch.testing.assert_close(zero, torch.zeros_like(zero), atol=1e-9, rtol=0)


def test_projection_by_hand_and_back() -> None:
    point = torch.tensor([[100.0, -50.0, 2000.0]], dtype=torch.float64)
    k = camera()
    u = 1145.0 * 0.05 + 3.0 * -0.025 + 512.5
    v = 1144.0 * -0.025 + 515.4
    torch.testing.assert_close(g.project(point, k), torch.tensor([[u, v]], dtype=torch.float64))
    points = in_view(4, 6, 17)
    pixels = g.project(points, k)
    torch.testing.assert_close(g.back_project(pixels, points[..., 2], k), points)


def plain_h36m(x: float, y: float, k: list[float], p: list[float]) -> tuple[float, float]:
    """The data set's formula, one number at a time."""
    r2 = x * x + y * y
    gain = 1 + k[0] * r2 + k[1] * r2**2 + k[2] * r2**3 + p[0] * y + p[1] * x
    return x * gain + p[1] * r2, y * gain + p[0] * r2


def opencv(x: float, y: float, k: list[float], p: list[float]) -> tuple[float, float]:
    r2 = x * x + y * y
    radial = 1 + k[0] * r2 + k[1] * r2**2 + k[2] * r2**3
    return (
        x * radial + 2 * p[0] * x * y + p[1] * (r2 + 2 * x * x),
        y * radial + p[0] * (r2 + 2 * y * y) + 2 * p[1] * x * y,
    )


K, P = [-0.2, 0.24, -0.002], [-0.0009, -0.0016]


def test_h36m_distortion_is_the_data_sets_own() -> None:
    points = in_view(20)
    radial, tangential = torch.tensor(K, dtype=torch.float64), torch.tensor(P, dtype=torch.float64)
    focal, centre = torch.tensor([[1145.0, 1144.0], [512.5, 515.4]], dtype=torch.float64)
    pixels = g.project_h36m(points, focal, centre, radial, tangential)
    gap = 0.0
    for point, pixel in zip(points.tolist(), pixels.tolist(), strict=True):
        x, y = point[0] / point[2], point[1] / point[2]
        u, v = plain_h36m(x, y, K, P)
        assert pixel == pytest.approx([1145 * u + 512.5, 1144 * v + 515.4], abs=1e-9)
        gap = max(gap, 1145 * abs(u - opencv(x, y, K, P)[0]))
    assert gap > 1e-3  # and it is not OpenCV's
    # Leading dimensions: one camera a sample.
    both = g.project_h36m(
        points.reshape(2, 10, 3), focal.expand(2, 2), centre.expand(2, 2),
        radial.expand(2, 3), tangential.expand(2, 2),
    )  # fmt: skip
    torch.testing.assert_close(both.reshape(20, 2), pixels)


def test_undistort_inverts() -> None:
    xy = randn(100, 2) * 0.15
    radial, tangential = torch.tensor(K, dtype=torch.float64), torch.tensor(P, dtype=torch.float64)
    distorted = g.distort(xy, radial, tangential)
    torch.testing.assert_close(g.undistort(distorted, radial, tangential), xy, atol=1e-9, rtol=0)


# ---- root and mirror --------------------------------------------------------------------------


def test_centring_on_the_root_and_on_the_hips() -> None:
    joints = randn(2, 3, 17, 3)
    centred, root = g.center_on_root(joints, H36M_17)
    assert (centred[..., 0, :] == 0).all()
    torch.testing.assert_close(centred + root.unsqueeze(-2), joints)
    lsp = get_skeleton("lsp_14")
    centred, _ = g.center_on_root(randn(4, 14, 3), lsp)
    hips = centred[:, [lsp.index("l_hip"), lsp.index("r_hip")]].mean(1)
    torch.testing.assert_close(hips, torch.zeros_like(hips))


@given(seed=SEEDS)
def test_mirrored_pose_projects_onto_the_mirrored_joints(seed: int) -> None:
    width = 256
    joints = in_view(2, 17, seed=seed)
    k = camera()
    pixels = g.project(joints, k)
    mirrored = g.project(g.flip_joints_3d(joints, H36M_17), g.flip_intrinsics(k, width))
    torch.testing.assert_close(mirrored, g.flip_joints_2d(pixels, H36M_17, width))


def test_mirroring_twice_is_the_identity_and_swaps_names() -> None:
    joints, valid = randn(2, 17, 3), torch.arange(17).expand(2, 17)
    torch.testing.assert_close(g.flip_joints_3d(g.flip_joints_3d(joints, H36M_17), H36M_17), joints)
    swapped = g.flip_labels(valid, H36M_17)
    assert swapped[0, H36M_17.index("l_wrist")] == H36M_17.index("r_wrist")
    assert swapped[0, 0] == 0


def test_the_mirrored_joint_is_on_the_mirrored_pixel() -> None:
    image = torch.zeros(1, 8, 12)
    image[0, 3, 2] = 1.0
    joints = torch.zeros(17, 2)
    joints[H36M_17.index("l_wrist")] = torch.tensor([2.0, 3.0])
    x, y = g.flip_joints_2d(joints, H36M_17, width=12)[H36M_17.index("r_wrist")].long().tolist()
    assert g.flip_image(image)[0, y, x] == 1.0


def test_mirrored_crop_still_knows_its_place_in_the_image() -> None:
    affine = g.crop_affine(torch.tensor([310.0, 220.0]), torch.tensor(200.0), 64)
    joints = torch.rand(17, 2) * 64
    mirrored = g.flip_joints_2d(joints, H36M_17, 64)
    back = g.affine_apply(g.flip_affine(affine, 64), mirrored)
    torch.testing.assert_close(
        back, g.flip_labels(g.affine_apply(affine, joints), H36M_17, -2), atol=1e-3, rtol=0
    )


# ---- crops ------------------------------------------------------------------------------------


@given(seed=SEEDS)
def test_affine_maps_invert_and_compose(seed: int) -> None:
    linear = torch.eye(2, dtype=torch.float64) * 2 + 0.3 * randn(3, 2, 2, seed=seed).clamp(-1, 1)
    a = torch.cat([linear, randn(3, 2, 1, seed=seed + 1)], -1)
    points = randn(3, 7, 2, seed=seed + 2)
    torch.testing.assert_close(
        g.affine_apply(g.affine_inverse(a), g.affine_apply(a, points)), points
    )
    b = a.flip(0)
    torch.testing.assert_close(
        g.affine_apply(g.affine_compose(b, a), points), g.affine_apply(b, g.affine_apply(a, points))
    )


def test_a_crop_covers_its_box_from_edge_to_edge() -> None:
    # Pixels 0..3 of the crop have the outer edges -1/2 and 7/2.
    affine = g.crop_affine(torch.tensor([10.0, 20.0]), torch.tensor(8.0), image_size=4)
    edges = g.affine_apply(affine, torch.tensor([[-0.5, -0.5], [3.5, 3.5]]))
    torch.testing.assert_close(edges, torch.tensor([[6.0, 16.0], [14.0, 24.0]]))
    # A box as large as the crop, on the pixel grid, is a shift by whole pixels.
    same = g.crop_affine(torch.tensor([5.5, 7.5]), torch.tensor(4.0), image_size=4)
    torch.testing.assert_close(same, torch.tensor([[1.0, 0.0, 4.0], [0.0, 1.0, 6.0]]))


def test_box_holds_the_valid_joints_only() -> None:
    joints = torch.tensor([[0.0, 0.0], [10.0, 40.0], [9999.0, torch.nan]])
    valid = torch.tensor([True, True, False])
    centre, side = g.square_box(joints, valid, scale=1.5)
    assert centre.tolist() == [5.0, 20.0]
    assert side.item() == 60.0
    centre, side = g.square_box(joints.expand(2, 3, 2), torch.zeros(2, 3, dtype=torch.bool))
    assert centre.isfinite().all()
    assert (side == 1.0).all()


@given(seed=SEEDS)
def test_intrinsics_of_the_crop_project_into_the_crop(seed: int) -> None:
    joints = in_view(2, 3, 17, seed=seed)
    k = camera().expand(2, 3, 3, 3)
    pixels = g.project(joints, k)
    affine = g.crop_affine(*g.square_box(pixels), image_size=128)
    in_crop = g.project(joints, g.intrinsics_for_crop(k, affine))
    torch.testing.assert_close(g.affine_apply(affine, in_crop), pixels)
    # The box is 1.25 times the joints' extent, so all joints are inside with a margin.
    assert in_crop.min() >= -0.5 + 128 * 0.1 - 1e-6
    assert in_crop.max() <= 127.5 - 128 * 0.1 + 1e-6


def test_heatmap_cells() -> None:
    assert g.cell_to_px(torch.tensor(0.0), 8).item() == 3.5
    px = torch.rand(10) * 100
    torch.testing.assert_close(g.cell_to_px(g.px_to_cell(px, 8), 8), px)
    # Average-pooling coordinates by the stride gives the cells' centres.
    pixels = torch.arange(32.0).reshape(1, 1, 32)
    pooled = torch.nn.functional.avg_pool1d(pixels, 8)[0, 0]
    torch.testing.assert_close(g.cell_to_px(torch.arange(4.0), 8), pooled)


# ---- alignment --------------------------------------------------------------------------------


@given(seed=SEEDS, scale=st.floats(0.1, 10), count=st.integers(4, 17))
def test_procrustes_finds_the_planted_similarity(seed: int, scale: float, count: int) -> None:
    source = randn(3, count, 3, seed=seed)
    r, t = rotation(seed + 1, 3), randn(3, 3, seed=seed + 2)
    target = scale * source @ r.transpose(-1, -2) + t.unsqueeze(-2)
    found = g.procrustes(source, target)
    torch.testing.assert_close(found.rotation, r)
    torch.testing.assert_close(found.scale, torch.full((3,), scale, dtype=torch.float64))
    torch.testing.assert_close(found.translation, t)
    torch.testing.assert_close(found.apply(source), target)


@given(seed=SEEDS, scale=st.booleans())
def test_procrustes_is_a_least_squares_optimum(seed: int, scale: bool) -> None:
    source, target = randn(8, 3, seed=seed), randn(8, 3, seed=seed + 1)
    weights = torch.rand(8, generator=generator(seed), dtype=torch.float64)
    best = g.procrustes(source, target, weights, scale)

    def cost(similarity: g.Similarity) -> float:
        residual = (similarity.apply(source) - target).square().sum(-1)
        return float((weights * residual).sum())

    assert torch.linalg.det(best.rotation).item() == pytest.approx(1)
    for k in range(10):
        # Small rotations about random axes, small shifts, small scales.
        axis = randn(3, 3, seed=seed + 3 + k) * 1e-2
        turn = torch.linalg.matrix_exp(axis - axis.T)
        other = g.Similarity(
            best.scale * (math.exp(1e-2 * (k - 5)) if scale else 1.0),
            turn @ best.rotation,
            best.translation + randn(3, seed=seed + k) * 1e-2,
        )
        assert cost(other) >= cost(best) - 1e-12


@given(seed=SEEDS)
def test_a_mirrored_pose_is_turned_not_reflected(seed: int) -> None:
    target = randn(17, 3, seed=seed)
    mirrored = target * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    found = g.procrustes(mirrored, target)
    assert torch.linalg.det(found.rotation).item() == pytest.approx(1)
    assert (found.apply(mirrored) - target).norm() > 1e-3 * target.norm()


@given(seed=SEEDS)
def test_masked_joints_count_for_nothing(seed: int) -> None:
    source, target = randn(4, 10, 3, seed=seed), randn(4, 10, 3, seed=seed + 1)
    valid = torch.ones(4, 10, dtype=torch.bool)
    valid[:, 3:6] = False
    dropped = g.procrustes(source[:, valid[0]], target[:, valid[0]])
    source[:, 4] = torch.nan
    target[:, 5] = torch.inf
    masked = g.procrustes(source, target, valid)
    for a, b in zip(masked, dropped, strict=True):
        torch.testing.assert_close(a, b)


def test_degenerate_poses_give_finite_results_and_gradients() -> None:
    target = randn(5, 17, 3)
    source = randn(5, 17, 3, seed=1)
    source[0] = 0.0  # a point
    source[1] = torch.linspace(-1, 1, 17, dtype=torch.float64)[:, None]  # a line
    source[2, :, 2] = 0.0  # a plane
    source[4] = target[4]  # perfect
    valid = torch.ones(5, 17, dtype=torch.bool)
    valid[3] = False
    source.requires_grad_()
    aligned = g.procrustes_align(source, target, valid)
    assert aligned.isfinite().all()
    (aligned - target)[valid].square().sum().backward()
    assert source.grad is not None
    assert source.grad.isfinite().all()
    assert (source.grad[3] == 0).all()


@pytest.mark.parametrize("scale", [True, False])
def test_alignment_has_the_right_gradient(scale: bool) -> None:
    source, target = randn(2, 6, 3), randn(2, 6, 3, seed=1)
    source[1] *= torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    weights = torch.rand(2, 6, generator=generator(2), dtype=torch.float64)
    source.requires_grad_()
    target.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, t: g.procrustes_align(s, t, weights, scale), (source, target)
    )


def test_rotation_gradient_survives_equal_singular_values() -> None:
    # The derivative of the SVD itself divides by zero here; that of the rotation does not.
    matrix = (2.0 * rotation(0)).requires_grad_()
    assert torch.autograd.gradcheck(g.nearest_rotation, matrix)
    mirrored = torch.diag(torch.tensor([3.0, 2.0, -1.0], dtype=torch.float64)).requires_grad_()
    assert torch.linalg.det(g.nearest_rotation(mirrored)).item() == pytest.approx(1)
    assert torch.autograd.gradcheck(g.nearest_rotation, mirrored)


def test_half_precision_under_autocast() -> None:
    target = randn(3, 17, 3).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        aligned = g.procrustes_align(target.bfloat16(), target.bfloat16())
    assert aligned.isfinite().all()


@given(seed=SEEDS, factor=st.floats(0.2, 5))
def test_optimal_scale(seed: int, factor: float) -> None:
    source = randn(2, 9, 3, seed=seed)
    found = g.optimal_scale(source, factor * source)
    torch.testing.assert_close(found, torch.full((2,), factor, dtype=torch.float64))
    # Opposite poses are not mirrored through the root.
    assert (g.optimal_scale(source, -source) == 0).all()
    assert (g.optimal_scale(torch.zeros_like(source), source) == 1).all()


def test_cameras_pass_gradients() -> None:
    points = (in_view(2, 4) / 1000).requires_grad_()
    k = camera() / 1000
    radial, tangential = torch.tensor(K, dtype=torch.float64), torch.tensor(P, dtype=torch.float64)
    ones = torch.ones(2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: g.project(x, k), points)
    assert torch.autograd.gradcheck(
        lambda x: g.project_h36m(x, ones, ones, radial, tangential), points
    )
