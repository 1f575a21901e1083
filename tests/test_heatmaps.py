"""Belief maps: where Gaussians lie, what carries loss, and how points are read out again."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.geometry import cell_to_px, px_to_cell
from zoo.heatmaps import (
    append_background,
    argmax_points,
    belief_targets,
    gaussian_maps,
    inside_map,
    quarter_offset,
    read_points,
    soft_argmax,
)

HEIGHT, WIDTH = 7, 9


def test_gaussians_equal_the_plain_formula():
    points = torch.tensor([[[2.3, 4.1], [0.0, 0.0], [8.4, 6.2]]])
    maps = gaussian_maps(points, HEIGHT, WIDTH, 1.3)
    assert maps.shape == (1, 3, HEIGHT, WIDTH)
    for j, (x, y) in enumerate(points[0].tolist()):
        for row in range(HEIGHT):
            for column in range(WIDTH):
                squared = (column - x) ** 2 + (row - y) ** 2
                expected = math.exp(-squared / (2 * 1.3**2))
                assert float(maps[0, j, row, column]) == pytest.approx(expected, abs=1e-6)


def test_gaussians_are_differentiable_in_their_positions():
    points = torch.tensor([[2.3, 4.1], [5.5, 1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: gaussian_maps(p, HEIGHT, WIDTH, 0.9), (points,))


@pytest.mark.parametrize("point", [(-0.51, 2.0), (8.51, 2.0), (3.0, -0.6), (3.0, 6.6)])
def test_a_point_off_the_map_has_an_empty_map(point):
    points = torch.tensor([[point, (3.0, 3.0)]])
    maps = gaussian_maps(points, HEIGHT, WIDTH, 1.0)
    assert inside_map(points, HEIGHT, WIDTH).tolist() == [[False, True]]
    assert float(maps[0, 0].abs().sum()) == 0
    assert float(maps[0, 1].max()) == 1


def test_background_is_what_no_joint_claims():
    maps = torch.rand(2, 3, HEIGHT, WIDTH) * 1.5
    whole = append_background(maps)
    assert torch.equal(whole[:, :3], maps)
    assert torch.equal(whole[:, 3], (1 - maps.max(1).values).clamp(min=0))


# ---- targets -------------------------------------------------------------------------------------


def test_targets_peak_at_the_cells_centre_pixel():
    # Cell k of stride 8 covers px 8k .. 8k + 7, its centre is at 8k + 3.5.
    joints = torch.tensor([[[3.5, 3.5], [8 * 4 + 3.5, 8 * 2 + 3.5]]])
    maps, counted = belief_targets(joints, torch.ones(1, 2, dtype=torch.bool), 6, 6, 8, 0.875)
    assert maps[0, 0, 0, 0] == 1
    assert maps[0, 1, 2, 4] == 1
    assert counted.all()
    assert torch.equal(read_points(maps[:, :2], 8, "argmax"), joints)


def test_what_is_not_known_carries_no_loss():
    joints = torch.full((4, 2, 2), 20.0)
    joints[1, 0] = torch.tensor([400.0, 20.0])  # outside the picture
    joints[2, 0] = torch.nan
    valid = torch.ones(4, 2, dtype=torch.bool)
    valid[2, 0] = False
    valid[3] = False
    maps, counted = belief_targets(joints, valid, 6, 6, 8, 0.875)
    assert maps.isfinite().all()
    assert counted.tolist() == [
        [True, True, True], [False, True, True], [False, True, False], [False, False, False]
    ]  # fmt: skip
    # Outside is known to cover nothing, so the background is that of the other joint.
    assert torch.equal(maps[1, 2], 1 - maps[1, 1])
    assert float(maps[2, 0].abs().sum()) == 0


def test_values_of_joints_that_are_not_valid_do_not_matter():
    joints, valid = torch.rand(3, 5, 2) * 48, torch.rand(3, 5) < 0.5
    other = torch.where(valid[..., None], joints, 1e9)
    for one, two in zip(
        belief_targets(joints, valid, 6, 6, 8, 1.0), belief_targets(other, valid, 6, 6, 8, 1.0),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(one, two)


# ---- read-out ------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.tuples(st.floats(3, 11), st.floats(3, 9)))
def test_read_outs_find_a_planted_gaussian(point):
    points = torch.tensor([point])
    maps = gaussian_maps(points, 13, 15, 0.875)
    cells = argmax_points(maps)
    assert torch.equal(cells, cells.round())
    assert float((cells - points).abs().max()) <= 0.5 + 1e-5
    assert float((quarter_offset(maps, cells) - points).abs().max()) <= 0.25 + 1e-5
    assert float((soft_argmax(maps) - points).abs().max()) < 0.13


def test_quarter_offset_goes_to_the_higher_neighbour_and_stays_between_equal_ones():
    maps = torch.zeros(1, HEIGHT, WIDTH)
    maps[0, 3, 4], maps[0, 3, 5], maps[0, 2, 4] = 1.0, 0.5, 0.25
    assert quarter_offset(maps, argmax_points(maps)).tolist() == [[4.25, 2.75]]
    maps[0, 3, 3], maps[0, 4, 4] = 0.5, 0.25
    assert quarter_offset(maps, argmax_points(maps)).tolist() == [[4.0, 3.0]]


def test_quarter_offset_at_the_border_looks_inwards_only():
    maps = torch.zeros(1, HEIGHT, WIDTH)
    maps[0, 0, 0], maps[0, 0, 1] = 1.0, 0.5
    # The corner's own value stands for what is beyond it: nothing outside is higher than a maximum.
    assert quarter_offset(maps, argmax_points(maps)).tolist() == [[-0.25, -0.25]]


def test_soft_argmax_is_differentiable_and_not_pulled_to_the_middle_of_a_large_map():
    points = torch.tensor([[3.2, 5.8]], dtype=torch.float64)
    maps = gaussian_maps(points, 46, 46, 0.875).requires_grad_()
    found = soft_argmax(maps)
    assert float((found.detach() - points).abs().max()) < 0.13
    without_limit = soft_argmax(maps.detach(), radius=None)
    assert float((without_limit - points).abs().max()) > 5
    small = gaussian_maps(points, HEIGHT, WIDTH, 0.875).requires_grad_()
    assert torch.autograd.gradcheck(soft_argmax, (small,))


@pytest.mark.parametrize("mode", ["argmax", "quarter", "soft"])
@pytest.mark.parametrize("stride", [4, 8])
def test_points_are_in_pixels_of_the_picture(mode, stride):
    points = torch.tensor([[[4.0, 5.0], [9.0, 3.0]]])
    maps = gaussian_maps(points, 13, 15, 0.875)
    found = read_points(maps, stride, mode)
    torch.testing.assert_close(found, cell_to_px(points, stride), atol=1e-4, rtol=0)
    torch.testing.assert_close(px_to_cell(found, stride), points, atol=1e-4, rtol=0)
