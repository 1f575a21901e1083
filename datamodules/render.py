"""A batched ray-caster for people made of round cones, in plain torch, on any device.

Every ray starts at the camera's centre, so for the pixel ``p = (u, v, 1)`` it is ``X = t K^-1 p``
and t is the depth in mm. All that decides where a ray first meets a round cone are polynomials of
degree one and two in (u, v); their coefficients are computed once per figure and cone in float64,
moved to the centre of an image tile (where nothing cancels), and evaluated there in float32.

Two ways through the same formulas: on a CPU, 8 x 8 px tiles, and each cone only in the tiles that
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

_TILE = 8
_MISS = 0x7F800000  # the bits of float32 infinity
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


def _first_hit(
    dd: Tensor, side: Tensor, ball_a: Tensor, ball_b: Tensor, da: Tensor, dg: Tensor,
    size: Tensor, shift: Tensor,
) -> Tensor:  # fmt: skip
    """Depth t at which a ray first meets a round cone; infinite where it does not.

    Every candidate lies on the solid, so the nearest one is the first hit.
    """
    inverse = 1 / dd
    missed = torch.tensor(math.inf, dtype=dd.dtype, device=dd.device)
    first = torch.where(ball_a > 0, (da - ball_a.clamp_min(0).sqrt()) * inverse, missed)
    db = da + dg
    second = torch.where(ball_b > 0, (db - ball_b.clamp_min(0).sqrt()) * inverse, missed)
    ends = torch.minimum(first, second)
    # -> the side of the cone, where the tangent ball is one of those between the ends
    ratio = dg / size
    t = (da + shift * ratio - side.clamp_min(0).sqrt()) / (dd - dg * ratio)
    place = t * dg + shift
    on_side = (side > 0) & (place > 0) & (place < size)
    return torch.where(on_side, torch.minimum(t, ends), ends)


def trace(cones: Cones, directions: Tensor) -> Tensor:
    """Depth of every cone along given rays.

    Args:
        cones: N figures of P cones.
        directions: (N, R, 3) rays from the camera's centre, camera frame, z = 1.

    Returns:
        (N, R, P) mm along the optical axis, infinite where the ray misses.
    """
    forms = _forms(cones)
    d = directions.to(cones.start)
    quad = torch.einsum("nri,npqij,nrj->qnrp", d, forms.quads, d)
    line = torch.einsum("nri,npqi->qnrp", d, forms.lines)
    return _first_hit(
        quad[0], quad[1], quad[2], quad[3], line[0], line[1],
        forms.size[:, None], forms.shift[:, None],
    )  # fmt: skip


def _pixel_polynomials(forms: _Forms, inverse: Tensor) -> Tensor:
    """(N, P, 6, 6): for the six forms the factors of u^2, uv, v^2, u, v, 1, crop px."""
    left = inverse.mT[:, None, None]
    quads = left @ forms.quads @ inverse[:, None, None]
    lines = forms.lines @ inverse[:, None]
    zero = torch.zeros_like(lines[..., 0])
    quadratic = torch.stack(
        [
            quads[..., 0, 0], 2 * quads[..., 0, 1], quads[..., 1, 1],
            2 * quads[..., 0, 2], 2 * quads[..., 1, 2], quads[..., 2, 2],
        ],
        -1,
    )  # fmt: skip
    linear = torch.stack([zero, zero, zero, lines[..., 0], lines[..., 1], lines[..., 2]], -1)
    return torch.cat([quadratic, linear], dim=2)


def _recentre(poly: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The same polynomials (..., 6) in coordinates whose origin is (u, v) px."""
    uu, uv, vv, pu, pv, p = poly.unbind(-1)
    return torch.stack(
        [
            uu, uv, vv,
            pu + 2 * uu * u + uv * v,
            pv + uv * u + 2 * vv * v,
            p + (uu * u + uv * v + pu) * u + (vv * v + pv) * v,
        ],
        -1,
    )  # fmt: skip


def _pack(depth: Tensor, part: Tensor | int) -> Tensor:
    """Positive float32 depths, ordered as integers, with the part in the five low bits."""
    return (depth.view(torch.int32) & ~_PART_BITS) | part


def _depth_buffer_dense(poly: Tensor, forms: _Forms, size: int) -> Tensor:
    """(N, H*W) packed depth and part: all pixels of all cones."""
    count, parts = poly.shape[:2]
    middle = (size - 1) / 2
    centre = torch.full((1,), middle, dtype=poly.dtype, device=poly.device)
    local = _recentre(poly, centre, centre).float()[..., None, None]  # (N, P, 6, 6, 1, 1)
    axis = torch.arange(size, dtype=torch.float32, device=poly.device) - middle
    column, row = axis[None, :], axis[:, None]
    number = torch.arange(parts, dtype=torch.int32, device=poly.device)[:, None, None]
    step = max(1, _MAX_ELEMENTS // (6 * parts * size * size))
    chunks = []
    for start in range(0, count, step):
        uu, uv, vv, pu, pv, p = local[start : start + step].unbind(3)
        by_row = (vv * row + pv) * row + p  # (n, P, 6, H, 1)
        value = torch.addcmul(by_row, torch.addcmul(uv * row + pu, uu, column), column)
        dd, side, ball_a, ball_b, da, dg = value.unbind(2)
        scalar = (slice(start, start + step), slice(None), None, None)
        depth = _first_hit(
            dd, side, ball_a, ball_b, da, dg,
            forms.size[scalar].float(), forms.shift[scalar].float(),
        )  # fmt: skip
        chunks.append(_pack(depth, number).amin(1).flatten(1))
    return torch.cat(chunks)


def _depth_buffer_tiled(
    poly: Tensor, forms: _Forms, cones: Cones, intrinsics: Tensor, size: int
) -> Tensor:
    """(N, H*W) packed depth and part: each cone only where its outline may be."""
    count, parts = poly.shape[:2]
    tiles = -(-size // _TILE)
    half = (_TILE - 1) / 2
    centre = torch.arange(tiles, dtype=torch.float32) * _TILE + half
    centre_u = centre.repeat(tiles)
    centre_v = centre.repeat_interleave(tiles)
    ends, radius = _outline(cones, intrinsics)
    # Distance from the tiles' centres to the segment between the two projected centres.
    a = ends[:, :, 0].float()
    ab = ends[:, :, 1].float() - a
    reach = (radius.float() + 1.5 + half * math.sqrt(2))[..., None]
    du, dv = centre_u - a[..., :1], centre_v - a[..., 1:]
    along = (du * ab[..., :1] + dv * ab[..., 1:]) / (ab * ab).sum(-1, keepdim=True).clamp_min(1e-6)
    along = along.clamp(0, 1)
    du, dv = du - along * ab[..., :1], dv - along * ab[..., 1:]
    near = du * du + dv * dv <= reach * reach  # (N, P, tiles^2)

    offset = torch.arange(_TILE, dtype=torch.float64) - half
    u, v = offset.repeat(_TILE), offset.repeat_interleave(_TILE)
    basis = torch.stack([u * u, u * v, v * v, u, v, torch.ones_like(u)])  # (6, tile^2)
    buffer = torch.full((count * tiles * tiles, _TILE * _TILE), _MISS, dtype=torch.int32)
    for part in range(parts):
        image, tile = near[:, part].nonzero(as_tuple=True)
        local = _recentre(
            poly[image, part], centre_u[tile, None].double(), centre_v[tile, None].double()
        )
        # In float64, because float32 products may be rounded to bfloat16 at the user's wish.
        value = (local.transpose(0, 1).reshape(-1, 6) @ basis).float()
        dd, side, ball_a, ball_b, da, dg = value.view(6, -1, _TILE * _TILE).unbind(0)
        depth = _first_hit(
            dd, side, ball_a, ball_b, da, dg,
            forms.size[image, part, None].float(), forms.shift[image, part, None].float(),
        )  # fmt: skip
        where = image * (tiles * tiles) + tile
        buffer[where] = torch.minimum(buffer[where], _pack(depth, part))
    full = buffer.view(count, tiles, tiles, _TILE, _TILE).transpose(2, 3)
    full = full.reshape(count, tiles * _TILE, tiles * _TILE)
    return full[:, :size, :size].reshape(count, size * size)


def _outline(cones: Cones, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """Projected ball centres (N, P, 2, 2) px, and a radius (N, P) px that covers both balls."""
    centres = torch.stack([cones.start, cones.end], 2)  # (N, P, 2, 3)
    # The squashed space shrinks nothing below the smallest eigenvalue of M.
    stretch = torch.linalg.eigvalsh(cones.metric)[..., :1].rsqrt()
    radius = torch.stack([cones.radius_start, cones.radius_end], 2) * stretch
    z = centres[..., 2]
    near = (z - radius).clamp_min(1.0)
    ray = (centres[..., :2] / z[..., None]).square().sum(-1).add(1).sqrt()
    focal = intrinsics[:, :2, :2].flatten(1).square().sum(-1).sqrt()[:, None, None]
    pixels = (centres @ intrinsics[:, None].mT.to(centres))[..., :2] / z[..., None]
    return pixels, (focal * radius / near * ray).amax(-1)


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
    extent = torch.linalg.inv(cones.metric).diagonal(dim1=-2, dim2=-1)[..., None, :2].sqrt()
    extent = extent * radius[..., None]
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
        poly = _pixel_polynomials(forms, inverse)
        if dense:
            packed = _depth_buffer_dense(poly, forms, fine)
        else:
            packed = _depth_buffer_tiled(poly, forms, cones, intrinsics, fine)
        image = _background(stage, fine)
        surface = paint(cones, outfit)
        _shade(image, packed, cones, surface, stage, inverse.float(), fine, dense)
        if supersample > 1:
            image = F.avg_pool2d(image, supersample)
        image = _foreground(image, stage, scene.boxes)
        hit = packed < _MISS
        depth = (packed & ~_PART_BITS).view(torch.float32)
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
    image = (rows[:, None] @ mixed) @ columns[:, None].mT
    return image.add_(stage.base[:, :, None, None]).clamp_(0, 1)


def _shade(
    image: Tensor, packed: Tensor, cones: Cones, surface: Paint, stage: Stage, inverse: Tensor,
    size: int, dense: bool,
) -> None:  # fmt: skip
    """Paints the figures into ``image`` (N, 3, H, H) in place."""
    count, parts = cones.radius_start.shape
    device = image.device
    mg = (cones.metric @ (cones.end - cones.start)[..., None])[..., 0]
    difference = cones.radius_start - cones.radius_end
    length2 = ((cones.end - cones.start) * mg).sum(-1)
    limit = 0.98 * length2.sqrt()
    difference = torch.minimum(torch.maximum(difference, -limit), limit)
    size2 = (length2 - difference**2).clamp_min(1e-3)
    shift = -(cones.start * mg).sum(-1) - cones.radius_start * difference
    # s = where . (X, 1): the place along the cone whose ball touches the surface at X.
    where = torch.cat([mg / size2[..., None], (shift / size2)[..., None]], -1)
    table = torch.cat(
        [
            cones.start, cones.end - cones.start, cones.metric.flatten(2), where,
            surface.wave.flatten(2), surface.cut,
            surface.colour.to(where), surface.second.to(where), surface.beyond.to(where),
        ],
        -1,
    ).float().flatten(0, 1)  # fmt: skip

    flat = packed.reshape(-1)
    if dense:
        chosen = torch.arange(flat.numel(), device=device)
        value = flat
    else:
        chosen = (flat < _MISS).nonzero()[:, 0]
        value = flat[chosen]
    which = torch.div(chosen, size * size, rounding_mode="floor")
    pixel = chosen - which * (size * size)
    v = torch.div(pixel, size, rounding_mode="floor")
    hit = value < _MISS
    t = torch.where(hit, (value & ~_PART_BITS).view(torch.float32), 1.0)
    part = torch.where(hit, value & _PART_BITS, 0).long()
    row = table[which * parts + part]
    a, g, metric, where, wave, cut, first, second, beyond = row.split(
        [3, 3, 9, 4, 8, 4, 3, 3, 3], dim=-1
    )
    inv = inverse[which]
    uv1 = torch.stack([(pixel - v * size).float(), v.float(), torch.ones_like(t)], -1)
    x = (inv * uv1[:, None]).sum(-1) * t[:, None]  # the 3D points, mm
    s = ((where[:, :3] * x).sum(-1) + where[:, 3]).clamp(0, 1)[:, None]
    normal = (metric.view(-1, 3, 3) * (x - a - s * g)[:, None]).sum(-1)
    normal = F.normalize(normal, dim=-1)

    wave = wave.view(-1, 2, 4)
    angle = (wave[..., :3] * x[:, None]).sum(-1) + wave[..., 3]
    mix = (angle.sin().prod(-1) * 4 + 0.5).clamp(0, 1)[:, None]
    colour = torch.lerp(first, second, 1 - mix)
    over = (((cut[:, :3] * x).sum(-1) + cut[:, 3]) * 0.3 + 0.5).clamp(0, 1)[:, None]
    colour = torch.lerp(colour, beyond, over)

    lambert = (normal * stage.light[which]).sum(-1).clamp_min(0)
    facing = -(normal * F.normalize(x, dim=-1)).sum(-1).clamp(-1, 0)
    ambient = stage.ambient[which] * (0.9 - 0.2 * normal[:, 1])  # more from above than from below
    light = (ambient + (1.1 - stage.ambient[which]) * lambert) * (0.72 + 0.28 * facing)
    colour = (colour * light[:, None] * stage.tint[which]).clamp(0, 1)
    if dense:
        image.copy_(
            torch.where(
                hit.view(count, 1, size, size), colour.view(count, size, size, 3).movedim(-1, 1),
                image,
            )
        )  # fmt: skip
    else:
        base = which * (3 * size * size) + pixel
        place = torch.stack([base, base + size * size, base + 2 * size * size], -1)
        image.view(-1)[place.view(-1)] = colour.reshape(-1)


def _foreground(image: Tensor, stage: Stage, boxes: Tensor) -> Tensor:
    """Occluding boxes and grain, over everything."""
    size = image.shape[-1]
    place = (torch.arange(size, dtype=torch.float32, device=image.device) + 0.5) / size
    for i in range(boxes.shape[1]):
        u0, u1, v0, v1 = boxes[:, i, :, None].unbind(1)
        columns = (place > u0) & (place < u1)
        rows = (place > v0) & (place < v1)
        inside = rows[:, None, :, None] & columns[:, None, None, :]
        shade = 0.8 + 0.4 * place[None, :]
        colour = stage.box_colour[:, i, :, None] * shade
        image = torch.where(inside, colour[:, :, :, None], image)
    tile = _grain_tile(image.device)
    index = torch.arange(size, device=image.device)
    v = (stage.grain_offset[:, :1] + index) % 256
    u = (stage.grain_offset[:, 1:] + index) % 256
    grain = tile[(v[:, :, None] * 256 + u[:, None, :])]
    return torch.addcmul(image, grain[:, None], stage.grain[:, None, None, None]).clamp_(0, 1)


_GRAIN: dict[torch.device, Tensor] = {}


def _grain_tile(device: torch.device) -> Tensor:
    """(65536,) fixed normal noise, 256 x 256; every image starts at its own place in it."""
    if device not in _GRAIN:
        generator = torch.Generator().manual_seed(20170721)
        _GRAIN[device] = torch.randn(256 * 256, generator=generator).to(device)
    return _GRAIN[device]
