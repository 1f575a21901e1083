"""A batched ray-caster for people made of round cones, in plain torch, on any device.

Every ray starts at the camera's centre, so for the pixel ``p = (u, v, 1)`` it is ``X = t K^-1 p``
and t is the depth in mm. All that decides where a ray first meets a round cone are polynomials of
degree one and two in (u, v); their coefficients are computed once per figure and cone in float64,
moved to the centre of an image tile (where nothing cancels), and evaluated there in float32.

Two ways through the same formulas: on a CPU, small square tiles, and each cone only in the tiles that
its outline can touch; on other devices all pixels of all cones at once, a fixed number of kernels,
no shape that depends on the data and no wait for the device.

The depth test is an integer minimum over (depth, part) packed into 32 bits. Colour, pattern and
light are computed afterwards, for the surface that won. Whether a joint is hidden does not depend
on the resolution: one exact ray goes through each joint.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.figure import (
    NUM_OUTFIT_UNIFORMS,
    OWN_BALL,
    OWN_PARTS,
    PARTS,
    Cones,
    Paint,
    build_figure,
    hsv_to_rgb,
    outfit_from_uniforms,
    paint,
)
from zoo.skeleton import H36M_17

__all__ = [
    "NUM_BOX_UNIFORMS",
    "NUM_OUTFIT_UNIFORMS",
    "NUM_SCENE_UNIFORMS",
    "Rendered",
    "Scene",
    "Stage",
    "figure_boxes",
    "joints_occluded",
    "occluding_boxes",
    "render",
    "stage_from_uniforms",
    "trace",
]

_BACKGROUND_GRID = 12
_NUM_BANDS = 5
_FIRST_BAND, _FIRST_NODE = 20, 20 + 8 * _NUM_BANDS
NUM_SCENE_UNIFORMS = _FIRST_NODE + 3 * (9 + _BACKGROUND_GRID**2)
"""Uniforms per image for light, background and grain."""
NUM_BOXES = 2
NUM_BOX_UNIFORMS = 5 * NUM_BOXES
"""Uniforms per image for the boxes in front."""

_TILE = 4
_FAR = 1e30  # mm; the depth of what is not there
_MISS = 0x70000000  # float32 bits of 1.6e29: what is at least that far is not there
_NEAR = 1.0  # mm
_PART_BITS = 31  # the five low bits of the packed depth hold the part
_MAX_ELEMENTS = 1 << 26  # of one intermediate tensor of the dense path


class Scene(NamedTuple):
    """N people in front of N cameras.

    Attributes:
        joints: (N, 17, 3) mm, absolute, camera frame, ``h36m_17``.
        intrinsics: (N, 3, 3) px of the crop, pixel centres at integers.
        girth: (N, 6) factors around 1, see ``datamodules.figure.GIRTHS``.
        outfit: (N, ``NUM_OUTFIT_UNIFORMS``) numbers in [0, 1): hair, skin, clothes.
        scene: (N, ``NUM_SCENE_UNIFORMS``) numbers in [0, 1): light and background.
        boxes: (N, ``NUM_BOXES``, 4) boxes in front of the person, see :func:`occluding_boxes`.
    """

    joints: Tensor
    intrinsics: Tensor
    girth: Tensor
    outfit: Tensor
    scene: Tensor
    boxes: Tensor


class Stage(NamedTuple):
    """Light and background of N images.

    Attributes:
        light: (N, 3) unit vector to the light, camera frame.
        ambient: (N,) share of light from everywhere.
        tint: (N, 3) colour of the light.
        base: (N, 3) mean colour of the background.
        clutter: (N, 3, G, G) low-frequency colour offsets of the background.
        bands: (N, R, 4) soft rectangles (u0, u1, v0, v1) as fractions of the image.
        band_colour: (N, R, 3) colour offsets of the rectangles.
        box_colour: (N, NUM_BOXES, 3).
        grain_offset: (N, 2) int64, where the grain of the image starts in the fixed noise tile.
        grain: (N,) standard deviation of the grain.
    """

    light: Tensor
    ambient: Tensor
    tint: Tensor
    base: Tensor
    clutter: Tensor
    bands: Tensor
    band_colour: Tensor
    box_colour: Tensor
    grain_offset: Tensor
    grain: Tensor


class Rendered(NamedTuple):
    """Images and what is known about them.

    Attributes:
        image: (N, 3, H, H) float32 in [0, 1], RGB.
        depth: (N, H, H) float32 mm along the optical axis, infinite where there is no person.
        part: (N, H, H) int64 index into ``datamodules.figure.PARTS``, -1 where there is no person.
            Boxes in front do not change ``depth`` and ``part``.
        occluded: (N, 17) bool: hidden by the person, by a box, or outside the crop.
    """

    image: Tensor
    depth: Tensor
    part: Tensor
    occluded: Tensor


def stage_from_uniforms(u: Tensor, noise: float) -> Stage:
    """Light and background from numbers.

    Args:
        u: (N, ``NUM_SCENE_UNIFORMS``) in [0, 1).
        noise: largest standard deviation of the grain, in units of the image's range.
    """
    count, grid, bands = len(u), _BACKGROUND_GRID, _NUM_BANDS
    light = torch.stack([2 * u[:, 0] - 1, -0.25 - u[:, 1], -0.3 - u[:, 2]], -1)
    light = light / light.norm(dim=-1, keepdim=True)
    warm = 0.12 * (u[:, 3] - 0.5)
    tint = torch.stack([1 + warm, torch.ones_like(warm), 1 - warm], -1)
    base = hsv_to_rgb(u[:, 4], 0.45 * u[:, 5] ** 1.5, 0.12 + 0.8 * u[:, 6])

    offset = _FIRST_NODE
    coarse = 2 * u[:, offset : offset + 27].reshape(count, 3, 3, 3) - 1
    fine = 2 * u[:, offset + 27 :].reshape(count, 3, grid, grid) - 1
    up = _interpolation(3, grid, u)
    clutter = up @ coarse @ up.mT * (0.05 + 0.3 * u[:, 7, None, None, None])
    clutter = clutter + fine * (0.16 * u[:, 8, None, None, None] ** 1.5)
    grey = clutter.mean(1, keepdim=True)  # muted: mostly brightness, some colour
    clutter = grey * 1.5 + (0.25 + 0.6 * u[:, 9, None, None, None]) * (clutter - grey)

    rect = u[:, _FIRST_BAND:_FIRST_NODE].reshape(count, bands, 8)
    centre_u, centre_v = rect[..., 0] * 1.3 - 0.15, rect[..., 1] * 1.3 - 0.15
    half_u, half_v = 0.03 + 0.3 * rect[..., 2] ** 2, 0.03 + 0.4 * rect[..., 3] ** 2
    band = torch.stack(
        [centre_u - half_u, centre_u + half_u, centre_v - half_v, centre_v + half_v], -1
    )
    # Two of them are planes of the room: a floor below a line, and a wall beside one.
    one = torch.ones_like(u[:, 10])
    floor = torch.stack([-one, 2 * one, 0.45 + 0.5 * u[:, 10], 2 * one], -1)
    wall = torch.stack([-one, u[:, 11], -one, 0.45 + 0.5 * u[:, 10]], -1)
    band[:, 0], band[:, 1] = floor, wall
    colour = (2 * rect[..., 4:5] - 1) * 0.5 + (2 * rect[..., 5:8] - 1) * 0.13
    strength = torch.where(rect[..., 4] < 0.25, 0.0, 1.0)[..., None]
    strength[:, 0] = 1.0
    colour = colour * strength

    box_colour = torch.stack(
        [
            hsv_to_rgb(u[:, 16 + 2 * i], 0.5 * u[:, 17 + 2 * i] ** 2, 0.1 + 0.8 * u[:, 17 - 2 * i])
            for i in range(NUM_BOXES)
        ],
        1,
    )
    return Stage(
        light=light,
        ambient=0.38 + 0.27 * u[:, 12],
        tint=tint,
        base=base,
        clutter=clutter,
        bands=band,
        band_colour=colour,
        box_colour=box_colour,
        grain_offset=(u[:, 14:16] * 256).long().clamp(0, 255),
        grain=noise * u[:, 13] ** 2,
    )


def occluding_boxes(u: Tensor, probability: float) -> Tensor:
    """Boxes in front of the person, in fractions of the image.

    Args:
        u: (N, ``NUM_BOX_UNIFORMS``) in [0, 1).
        probability: of each box.

    Returns:
        (N, ``NUM_BOXES``, 4): u0, u1, v0, v1; each 0.12 to 0.44 of the image wide and high. A box
        that is not used lies outside of the image and has no area.
    """
    spot = u.reshape(len(u), NUM_BOXES, 5)
    half = 0.06 + 0.16 * spot[..., 2:4]
    low, high = spot[..., :2] - half, spot[..., :2] + half
    boxes = torch.stack([low[..., 0], high[..., 0], low[..., 1], high[..., 1]], -1)
    used = (spot[..., 4] < probability)[..., None]
    return torch.where(used, boxes, torch.full_like(boxes, -1.0))


def _interpolation(size_in: int, size_out: int, like: Tensor) -> Tensor:
    """(size_out, size_in) matrix of smooth interpolation from nodes spread over the image."""
    position = torch.linspace(0, size_in - 1, size_out, dtype=torch.float32, device=like.device)
    nodes = torch.arange(size_in, dtype=torch.float32, device=like.device)
    weight = (1 - (position[:, None] - nodes).abs()).clamp_min(0)
    weight = weight * weight * (3 - 2 * weight)
    return weight / weight.sum(-1, keepdim=True)


# ---- where rays meet round cones ----------------------------------------------------------------


class _Forms(NamedTuple):
    """Of every round cone: what decides where a ray X = t d meets it.

    A round cone is the union of the balls around a + s g of radius ra - s rr, 0 <= s <= 1, in the
    metric M. With f(t, s) = |t d - a - s g|^2 - (ra - s rr)^2 the surface of the side is
    f = df/ds = 0, a quadratic in t: t = (k1 - sqrt(h)) / k2. The two end balls are quadratics too.
    All are forms in d: ``quads`` are symmetric matrices, ``lines`` vectors.

    Attributes:
        quads: (N, P, 4, 3, 3): M, h of the side, h of the first ball, h of the second ball.
        lines: (N, P, 2, 3): M a, M g.
        size: (N, P) C = |g|^2 - rr^2 (squared length of the side).
        shift: (N, P) b0 = -g M a - ra rr: the side's place is s = (t d M g + b0) / C.
    """

    quads: Tensor
    lines: Tensor
    size: Tensor
    shift: Tensor


def _forms(cones: Cones) -> _Forms:
    a, metric = cones.start, cones.metric
    g = cones.end - a
    radius = cones.radius_start
    ma = (metric @ a[..., None])[..., 0]
    mg = (metric @ g[..., None])[..., 0]
    mb = ma + mg
    length2 = (g * mg).sum(-1)
    # A ball inside the other leaves no side: shrink the difference until there is one.
    limit = 0.98 * length2.sqrt()
    difference = torch.minimum(torch.maximum(radius - cones.radius_end, -limit), limit)
    radius_end = radius - difference
    size = (length2 - difference**2).clamp_min(1e-3)
    shift = -(g * ma).sum(-1) - radius * difference

    def outer(x: Tensor, y: Tensor) -> Tensor:
        return x[..., :, None] * y[..., None, :]

    def ball(m_centre: Tensor, centre: Tensor, r: Tensor) -> Tensor:
        k0 = (centre * m_centre).sum(-1) - r**2
        return outer(m_centre, m_centre) - k0[..., None, None] * metric

    k0 = (a * ma).sum(-1) - radius**2 - shift**2 / size
    k1 = ma + (shift / size)[..., None] * mg
    side = outer(k1, k1) - k0[..., None, None] * (metric - outer(mg, mg) / size[..., None, None])
    quads = torch.stack(
        [metric, side, ball(ma, a, radius), ball(mb, cones.end, radius_end)], dim=-3
    )
    return _Forms(quads, torch.stack([ma, mg], dim=-2), size, shift)


def _penalty(value: Tensor) -> Tensor:
    """0 where ``value`` is positive, very far where it is negative; much cheaper than a choice."""
    return (value * -_FAR).clamp(0, _FAR)


def _first_hit(quads: Tensor, lines: Tensor, size: Tensor, shift: Tensor) -> Tensor:
    """Depth t at which a ray first meets a round cone; at least ``_FAR`` where it does not.

    Every candidate lies on the solid, so the nearest one is the first hit.

    Args:
        quads: (4, ...) values of the quadratic forms for each ray.
        lines: (2, ...) values of the linear ones.
        size: C and ``shift``: b0, broadcast with the rays.
        shift: see ``size``.
    """
    dd, side, ball_a, ball_b = quads.unbind(0)
    da, dg = lines.unbind(0)
    root, root_a, root_b = quads[1:].clamp_min(0).sqrt().unbind(0)
    inverse = dd.reciprocal()
    first = (da - root_a) * inverse + _penalty(ball_a)
    second = (da + dg - root_b) * inverse + _penalty(ball_b)
    # The side counts where its tangent ball is one of those between the ends.
    ratio = dg / size
    t = ((da + shift * ratio - root) / (dd - dg * ratio)).nan_to_num_(_FAR, _FAR, -_FAR)
    place = t * dg + shift
    t = t + _penalty(torch.minimum(torch.minimum(side, place), size - place))
    t = torch.minimum(t, torch.minimum(first, second))
    return t + _penalty(t - _NEAR)


def trace(cones: Cones, directions: Tensor) -> Tensor:
    """Depth of every cone along given rays.

    Args:
        cones: N figures of P cones.
        directions: (N, R, 3) rays from the camera's centre, camera frame, z = 1.

    Returns:
        (N, R, P) mm along the optical axis, infinite where the ray misses.
    """
    forms = _forms(cones)
    x, y, z = directions.to(cones.start).unbind(-1)
    monomials = torch.stack([x * x, x * y, y * y, x * z, y * z, z * z], -1)  # (N, R, 6)
    quads, lines = _polynomials(forms)
    quad = torch.einsum("nrk,nqpk->qnrp", monomials, quads)
    line = torch.einsum("nrk,nqpk->qnrp", directions.to(cones.start), lines)
    depth = _first_hit(quad, line, forms.size[:, None], forms.shift[:, None])
    return depth.masked_fill(depth >= _FAR / 2, math.inf)


def _polynomials(forms: _Forms, inverse: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The forms as polynomials of (x, y): of the ray (x, y, 1), or with K^-1 of the pixel.

    Returns:
        (N, 4, P, 6) factors of x^2, xy, y^2, x, y, 1, and (N, 2, P, 3) of x, y, 1.
    """
    quads, lines = forms.quads.transpose(1, 2), forms.lines.transpose(1, 2)
    if inverse is not None:
        inverse = inverse[:, None, None]
        quads = inverse.mT @ quads @ inverse
        lines = (lines[..., None, :] @ inverse)[..., 0, :]
    rows, columns = [0, 0, 1, 0, 1, 2], [0, 1, 1, 2, 2, 2]
    factors = quads[..., rows, columns]
    twice = torch.tensor([1.0, 2, 1, 2, 2, 1], dtype=factors.dtype, device=factors.device)
    return factors * twice, lines


def _values(quads: Tensor, lines: Tensor, u: Tensor, v: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Evaluates polynomials on K square patches of ``side`` px around (u, v).

    The polynomials move to the patches' centres in float64, where nothing cancels; they are
    evaluated there in float32, without matrix products, whose precision a user may have lowered.

    Args:
        quads: (..., 6, K) and ``lines`` (..., 3, K), float64.
        lines: see ``quads``.
        u: (K,) px and ``v``: the centres.
        v: see ``u``.
        side: px of a patch.

    Returns:
        (..., side, side, K) float32 each.
    """
    uu, uv, vv, pu, pv, p = quads.unbind(-2)
    p = (p + (uu * u + uv * v + pu) * u + (vv * v + pv) * v).float()
    pu, pv = (pu + 2 * uu * u + uv * v).float(), (pv + uv * u + 2 * vv * v).float()
    lu, lv, lp = lines.unbind(-2)
    lp = (lp + lu * u + lv * v).float()
    offset = torch.arange(side, dtype=torch.float32, device=u.device) - (side - 1) / 2
    row, column = offset[:, None], offset[:, None]

    def spread(factor: Tensor) -> Tensor:
        return factor.float()[..., None, :]

    constant = (spread(vv) * row + spread(pv)) * row + spread(p)  # (..., side, K)
    linear = spread(uv) * row + spread(pu)
    value = torch.addcmul(linear[..., None, :], spread(uu)[..., None, :], column)
    value = torch.addcmul(constant[..., None, :], value, column)
    line = spread(lv) * row + spread(lp)
    return value, torch.addcmul(line[..., None, :], spread(lu)[..., None, :], column)


def _pack(depth: Tensor, part: Tensor | int) -> Tensor:
    """Positive float32 depths, ordered as integers, with the part in the five low bits."""
    return (depth.view(torch.int32) & ~_PART_BITS) | part


def _depth_buffer_dense(forms: _Forms, inverse: Tensor, size: int) -> Tensor:
    """(N, H*W) packed depth and part: all pixels of all cones."""
    quads, lines = _polynomials(forms, inverse)
    count, _, parts, _ = quads.shape
    step = max(1, _MAX_ELEMENTS // (6 * parts * size * size))
    number = torch.arange(parts, dtype=torch.int32, device=quads.device)
    chunks = []
    for first in range(0, count, step):
        some = slice(first, first + step)
        # One patch, the whole image; the figures and cones of the chunk side by side.
        quad = quads[some].permute(1, 3, 0, 2).flatten(2)  # (4, 6, n P)
        line = lines[some].permute(1, 3, 0, 2).flatten(2)
        middle = quad.new_full((1,), (size - 1) / 2)
        quad_values, line_values = _values(quad, line, middle, middle, size)
        scale, shift = forms.size[some].float().flatten(), forms.shift[some].float().flatten()
        depth = _first_hit(quad_values, line_values, scale, shift)  # (H, W, n P)
        packed = _pack(depth.unflatten(-1, (-1, parts)), number).amin(-1)
        chunks.append(packed.movedim(-1, 0).flatten(1))
    return torch.cat(chunks)


def _depth_buffer_tiled(
    forms: _Forms, inverse: Tensor, cones: Cones, intrinsics: Tensor, size: int
) -> Tensor:
    """(N, H*W) packed depth and part: each cone only where its outline may be."""
    quads, lines = _polynomials(forms, inverse)
    quads, lines = quads.permute(2, 1, 3, 0).contiguous(), lines.permute(2, 1, 3, 0).contiguous()
    count, parts = forms.size.shape
    scale, shift = forms.size.float().T.contiguous(), forms.shift.float().T.contiguous()
    tiles = -(-size // _TILE)
    half = (_TILE - 1) / 2
    centre = torch.arange(tiles, dtype=torch.float32) * _TILE + half
    near = _touched(cones, intrinsics, centre, half * math.sqrt(2) + 0.5)
    buffer = torch.full((count * tiles * tiles, _TILE * _TILE), _MISS, dtype=torch.int32)
    for part in range(parts):
        where = near[part].flatten().nonzero()[:, 0]
        image = torch.div(where, tiles * tiles, rounding_mode="floor")
        tile = where - image * (tiles * tiles)
        row = torch.div(tile, tiles, rounding_mode="floor")
        quad, line = _values(
            quads[part].index_select(-1, image), lines[part].index_select(-1, image),
            centre[tile - row * tiles].double(), centre[row].double(), _TILE,
        )  # fmt: skip
        depth = _first_hit(
            quad, line, scale[part].index_select(0, image), shift[part].index_select(0, image)
        )
        packed = _pack(depth.flatten(0, 1), part).T
        buffer.index_copy_(0, where, torch.minimum(buffer.index_select(0, where), packed))
    full = buffer.view(count, tiles, tiles, _TILE, _TILE).transpose(2, 3)
    full = full.reshape(count, tiles * _TILE, tiles * _TILE)
    return full[:, :size, :size].reshape(count, size * size)


def _touched(cones: Cones, intrinsics: Tensor, centre: Tensor, margin: float) -> Tensor:
    """(P, N, tiles, tiles) bool: tiles that a cone's outline may touch.

    The outline lies within a radius of the segment between the projected centres of its balls;
    that radius is linear along the segment (or an upper bound, as the depth is between the ends').
    """
    ends = torch.stack([cones.start, cones.end])  # (2, N, P, 3)
    radius = torch.stack([cones.radius_start, cones.radius_end]) * cones.reach
    z = ends[..., 2]
    tilt = (ends[..., :2] / z[..., None]).square().sum(-1).add(1).sqrt()
    focal = intrinsics[:, :2, :2].flatten(1).square().sum(-1).div(2).sqrt()[:, None]
    reach = focal * radius / (z - radius).clamp_min(1.0) * tilt**2
    pixels = (ends @ intrinsics.mT)[..., :2] / z[..., None]
    u, v = pixels.float().transpose(1, 2).unbind(-1)  # (2, P, N)
    reach = (reach.float().transpose(1, 2) + margin)[..., None, None]
    du, dv = (u[1] - u[0])[..., None, None], (v[1] - v[0])[..., None, None]
    # Seen at right angles to the segment, a taper of angle a is 1 / cos a thicker; short, steep
    # ones get the larger radius everywhere.
    taper = (reach[1] - reach[0]).abs() / (du**2 + dv**2 + 1e-6).sqrt()
    reach = torch.where(taper > 0.5, reach.amax(0), reach * (1 - taper.clamp_max(0.5) ** 2).rsqrt())
    x = centre - u[0][..., None, None]  # (P, N, 1, tiles)
    y = centre[:, None] - v[0][..., None, None]  # (P, N, tiles, 1)
    along = (x * (du / (du**2 + dv**2 + 1e-6)) + y * (dv / (du**2 + dv**2 + 1e-6))).clamp_(0, 1)
    x, y = torch.addcmul(x, along, du, value=-1), torch.addcmul(y, along, dv, value=-1)
    limit = torch.addcmul(reach[0], along, reach[1] - reach[0])
    return x.square_() + y.square_() <= limit.square_()


def figure_boxes(cones: Cones, intrinsics: Tensor) -> Tensor:
    """2D boxes of the figures' surfaces.

    Args:
        cones: N figures.
        intrinsics: (N, 3, 3) px.

    Returns:
        (N, 4) x0, y0, x1, y1 in px of the same image, not clipped; each ball counts with its
        extent along the two image axes, so squashed cones are not padded.
    """
    centres = torch.stack([cones.start, cones.end], 2)
    radius = torch.stack([cones.radius_start, cones.radius_end], 2)
    # Half extent of the ellipsoid X^T M X = r^2 along x and y.
    extent = cones.spread.diagonal(dim1=-2, dim2=-1)[..., None, :2].sqrt() * radius[..., None]
    z = centres[..., 2:]
    scale = torch.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1]], -1)[:, None, None]
    middle = torch.stack([intrinsics[:, 0, 2], intrinsics[:, 1, 2]], -1)[:, None, None]
    low = ((centres[..., :2] - extent) / z * scale + middle).flatten(1, 2).amin(1)
    high = ((centres[..., :2] + extent) / z * scale + middle).flatten(1, 2).amax(1)
    return torch.cat([low, high], -1)


# ---- hidden joints ------------------------------------------------------------------------------


def joints_occluded(
    cones: Cones, joints: Tensor, intrinsics: Tensor, boxes: Tensor, size: int, margin: float = 40.0
) -> Tensor:
    """Which joints do not show in the crop.

    A joint is hidden when the ray to it meets a surface that is nearer than the surface of the
    joint's own limb by more than ``margin``, when a box lies over it, or outside the crop.

    Args:
        cones: N figures.
        joints: (N, 17, 3) mm, absolute, camera frame.
        intrinsics: (N, 3, 3) px of the crop.
        boxes: (N, R, 4) occluding boxes, fractions of the image.
        size: side of the crop in px.
        margin: mm.

    Returns:
        (N, 17) bool.
    """
    joints = joints.to(cones.start)
    z = joints[..., 2:]
    depth = trace(cones, joints / z)  # (N, 17, P)
    own = depth.new_zeros(depth.shape[:2])
    for i, name in enumerate(H36M_17.joints):
        if name in OWN_BALL:
            part, end = OWN_BALL[name]
            radii = cones.radius_end if end else cones.radius_start
            ray = joints[:, i].norm(dim=-1) / z[:, i, 0]
            own[:, i] = z[:, i, 0] - radii[:, PARTS.index(part)] / ray
        else:
            parts = [PARTS.index(p) for p in OWN_PARTS[name]]
            own[:, i] = torch.minimum(depth[:, i, parts].amin(-1), z[:, i, 0])
    hidden = depth.amin(-1) < own - margin
    pixel = (joints @ intrinsics.to(joints).mT)[..., :2] / z
    outside = ((pixel < -0.5) | (pixel > size - 0.5)).any(-1)
    place = ((pixel + 0.5) / size)[:, :, None]  # (N, 17, 1, 2)
    low, high = boxes[:, None, :, 0::2], boxes[:, None, :, 1::2]
    covered = ((place > low) & (place < high)).all(-1).any(-1)
    return hidden | outside | covered


# ---- images -------------------------------------------------------------------------------------


def render(
    scene: Scene,
    size: int,
    *,
    noise: float = 0.03,
    supersample: int = 1,
    dense: bool | None = None,
) -> Rendered:
    """Pictures of people.

    Args:
        scene: N people and cameras.
        size: H, side of the square crop in px.
        noise: largest standard deviation of the grain.
        supersample: rays per pixel side; 2 smooths edges at four times the price. ``depth`` and
            ``part`` are then those of the upper left ray of each pixel.
        dense: compute all pixels of all cones (default: on every device but the CPU).

    Returns:
        Images, depth and part buffers, hidden joints. No gradients.
    """
    device = scene.joints.device
    dense = device.type != "cpu" if dense is None else dense
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        # Coefficients need float64; a device without it (mps) gets float32 and rougher edges.
        real = torch.float32 if device.type == "mps" else torch.float64
        joints = scene.joints.to(real)
        outfit = outfit_from_uniforms(scene.outfit.float())
        stage = stage_from_uniforms(scene.scene.float(), noise)
        cones = build_figure(joints, scene.girth, outfit.hair_length.to(real))
        occluded = joints_occluded(cones, joints, scene.intrinsics, scene.boxes, size)
        intrinsics = scene.intrinsics.to(real)
        fine = size * supersample
        if supersample > 1:
            # Fine pixel k of pixel i: i = (k + 1/2) / s - 1/2.
            zoom = torch.eye(3, dtype=real, device=device)
            zoom[0, 0] = zoom[1, 1] = supersample
            zoom[0, 2] = zoom[1, 2] = (supersample - 1) / 2
            intrinsics = zoom @ intrinsics
        inverse = torch.linalg.inv_ex(intrinsics).inverse
        forms = _forms(cones)
        if dense:
            packed = _depth_buffer_dense(forms, inverse, fine)
        else:
            packed = _depth_buffer_tiled(forms, inverse, cones, intrinsics, fine)
        image = _background(stage, fine)
        surface = paint(cones, outfit)
        _shade(image, packed, cones, surface, stage, inverse.float(), fine, dense)
        if supersample > 1:
            image = F.avg_pool2d(image, supersample)
        _foreground(image, stage, scene.boxes, dense)
        hit = packed < _MISS
        depth = (packed & ~_PART_BITS).view(torch.float32).masked_fill(~hit, math.inf)
        part = torch.where(hit, packed & _PART_BITS, torch.full_like(packed, -1)).long()
        step = supersample
        return Rendered(
            image,
            depth.view(-1, fine, fine)[:, ::step, ::step],
            part.view(-1, fine, fine)[:, ::step, ::step],
            occluded,
        )


def _background(stage: Stage, size: int) -> Tensor:
    """(N, 3, H, H): clutter and soft rectangles, all separable, so two matrix products make it."""
    count, _, grid, _ = stage.clutter.shape
    bands = stage.bands.shape[1]
    spread = _interpolation(grid, size, stage.clutter).expand(count, size, grid)
    place = (torch.arange(size, dtype=torch.float32, device=spread.device) + 0.5) / size
    sharp = 0.5 * size

    def inside(low: Tensor, high: Tensor) -> Tensor:
        x = place[:, None]
        rise = ((x - low[:, None]) * sharp + 0.5).clamp(0, 1)
        fall = ((high[:, None] - x) * sharp + 0.5).clamp(0, 1)
        return torch.minimum(rise, fall)  # (N, H, R)

    columns = torch.cat([spread, inside(stage.bands[..., 0], stage.bands[..., 1])], -1)
    rows = torch.cat([spread, inside(stage.bands[..., 2], stage.bands[..., 3])], -1)
    mixed = stage.clutter.new_zeros(count, 3, grid + bands, grid + bands)
    mixed[:, :, :grid, :grid] = stage.clutter
    mixed.diagonal(dim1=-2, dim2=-1)[..., grid:] = stage.band_colour.mT
    image = torch.bmm((rows[:, None] @ mixed).flatten(1, 2), columns.mT)
    image = image.view(count, 3, size, size)
    return image.add_(stage.base[:, :, None, None]).clamp_(0, 1)


def _shade(
    image: Tensor, packed: Tensor, cones: Cones, surface: Paint, stage: Stage, inverse: Tensor,
    size: int, dense: bool,
) -> None:  # fmt: skip
    """Paints the figures into ``image`` (N, 3, H, H) in place: colour, pattern and light.

    Each pixel looks up the numbers of the cone it shows; all arithmetic is on long rows.
    """
    parts = cones.radius_start.shape[1]
    flat = packed.reshape(-1)
    if dense:
        chosen = torch.arange(flat.numel(), device=flat.device)
        value = torch.where(flat < _MISS, flat, _pack(torch.ones_like(flat).float(), 0))
    else:
        chosen = (flat < _MISS).nonzero()[:, 0]
        value = flat[chosen]
    which = torch.div(chosen, size * size, rounding_mode="floor")
    pixel = chosen - which * (size * size)
    row = torch.div(pixel, size, rounding_mode="floor")
    part = (value & _PART_BITS).long()

    of_cone = _surface_table(cones, surface).index_select(1, which * parts + part)
    m, ma, mg, place, wave, cut, first, second, beyond = of_cone.split([6, 3, 3, 4, 8, 4, 3, 3, 3])
    of_image = torch.cat(
        [inverse.flatten(1), stage.light, stage.ambient[:, None], stage.tint], 1
    ).T.contiguous().index_select(1, which)  # fmt: skip
    inv, light, ambient, tint = of_image.split([9, 3, 1, 3])

    t = (value & ~_PART_BITS).view(torch.float32)
    u, v = (pixel - row * size).float(), row.float()
    ray = inv[0::3] * u + inv[1::3] * v + inv[2::3]
    x = ray * t  # (3, n) mm
    s = (place[:3] * x).sum(0).add_(place[3]).clamp_(0, 1)
    # The normal is the gradient of the metric's distance to the tangent ball's centre.
    normal = torch.stack(
        [
            m[0] * x[0] + m[1] * x[1] + m[2] * x[2],
            m[1] * x[0] + m[3] * x[1] + m[4] * x[2],
            m[2] * x[0] + m[4] * x[1] + m[5] * x[2],
        ]
    ).sub_(ma).sub_(s * mg)  # fmt: skip
    normal *= normal.square().sum(0).clamp_min_(1e-12).rsqrt_()

    waves = (wave[:3] * x).sum(0).add_(wave[3]).sin_()
    waves *= (wave[4:7] * x).sum(0).add_(wave[7]).sin_()
    colour = torch.lerp(second, first, waves.mul_(4).add_(0.5).clamp_(0, 1))
    over = (cut[:3] * x).sum(0).add_(cut[3]).mul_(0.3).add_(0.5).clamp_(0, 1)
    colour = torch.lerp(colour, beyond, over)

    lambert = (normal * light).sum(0).clamp_min_(0)
    facing = (normal * ray).sum(0).neg_().mul_(ray.square().sum(0).rsqrt_()).clamp_(0, 1)
    around = ambient[0] * (0.9 - 0.2 * normal[1])  # more from above than from below
    bright = (around + (1.1 - ambient[0]) * lambert) * (0.72 + 0.28 * facing)
    colour = (colour * tint).mul_(bright).clamp_(0, 1)
    if dense:
        count = len(image)
        hit = (packed < _MISS).view(count, 1, size, size)
        colour = colour.view(3, count, size, size).transpose(0, 1)
        image.copy_(torch.where(hit, colour, image))
    else:
        base = which * (3 * size * size) + pixel
        for channel in range(3):
            image.view(-1).index_copy_(0, base + channel * size * size, colour[channel])


def _surface_table(cones: Cones, surface: Paint) -> Tensor:
    """(37, N P) float32: what the shading of a pixel needs to know of the cone it shows."""
    forms = _forms(cones)
    mg = forms.lines[..., 1, :]
    # s = place . (X, 1): where along the cone the ball lies that touches the surface at X.
    place = torch.cat([mg, forms.shift[..., None]], -1) / forms.size[..., None]
    metric = cones.metric.flatten(2)[..., [0, 1, 2, 4, 5, 8]]
    table = torch.cat(
        [
            metric, forms.lines[..., 0, :], mg, place, surface.wave.flatten(2), surface.cut,
            surface.colour.to(mg), surface.second.to(mg), surface.beyond.to(mg),
        ],
        -1,
    )  # fmt: skip
    return table.flatten(0, 1).T.float().contiguous()


def _foreground(image: Tensor, stage: Stage, boxes: Tensor, dense: bool) -> None:
    """Occluding boxes and grain, over everything, in place."""
    size = image.shape[-1]
    place = (torch.arange(size, dtype=torch.float32, device=image.device) + 0.5) / size
    for i in range(boxes.shape[1]):
        box, colour = boxes[:, i], stage.box_colour[:, i]
        some: Tensor | slice = slice(None)
        if not dense:  # few images have a box
            some = (box[:, 1] > 0).nonzero()[:, 0]
            box, colour = box[some], colour[some]
        u0, u1, v0, v1 = box[:, :, None].unbind(1)
        columns = (place > u0) & (place < u1)
        rows = (place > v0) & (place < v1)
        inside = rows[:, None, :, None] & columns[:, None, None, :]
        shaded = colour[:, :, None] * (0.8 + 0.4 * place)
        image[some] = torch.where(inside, shaded[:, :, :, None], image[some])
    windows = _grain_tile(size, image.device).unfold(0, size, 1).unfold(1, size, 1)
    grain = windows[stage.grain_offset[:, 0], stage.grain_offset[:, 1]]
    image.add_((grain * stage.grain[:, None, None])[:, None]).clamp_(0, 1)


_GRAIN: dict[tuple[int, torch.device], Tensor] = {}


def _grain_tile(size: int, device: torch.device) -> Tensor:
    """Fixed normal noise; every image of ``size`` px starts at its own place in it."""
    if (size, device) not in _GRAIN:
        generator = torch.Generator().manual_seed(20170721)
        noise = torch.randn(256 + size, 256 + size, generator=generator)
        _GRAIN[size, device] = noise.to(device)
    return _GRAIN[size, device]
