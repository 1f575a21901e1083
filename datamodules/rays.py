"""Where rays meet people made of round cones: depth buffers, boxes, hidden joints.

Every ray starts at the camera's centre, so for the pixel ``p = (u, v, 1)`` it is ``X = t K^-1 p``
and t is the depth in mm. All that decides where a ray first meets a round cone are polynomials of
degree one and two in (u, v); their coefficients are computed once per figure and cone in float64,
moved to the centre of an image tile (where nothing cancels), and evaluated there in float32.

Two ways through the same formulas: on a CPU, small square tiles, and each cone only in those that
its outline can touch; on other devices all pixels of all cones at once, a fixed number of kernels,
no shape that depends on the data and no wait for the device.

The depth test is an integer minimum over (depth, part) packed into 32 bits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from datamodules.figure import OWN_BALL, OWN_PARTS, PARTS, Cones, constant
from zoo.skeleton import H36M_17

__all__ = [
    "DepthBuffer",
    "Forms",
    "depth_buffer",
    "figure_boxes",
    "images_at_once",
    "joints_occluded",
    "quadratic_forms",
    "trace",
]

_TILE = 4
_COARSE = 4  # tiles in a row of a coarse tile
_FAR = 1e30  # mm; the depth of what is not there
_MISS = 0x70000000  # float32 bits of 1.6e29: what is at least that far is not there
_NEAR = 1.0  # mm
_PART_BITS = 31  # the five low bits of the packed depth hold the part
_MAX_ELEMENTS = 1 << 27  # of one intermediate tensor of the dense path
_CACHED_PIXELS = 1 << 20  # to cast together on a CPU


class Forms(NamedTuple):
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


def quadratic_forms(cones: Cones) -> Forms:
    """What decides where rays meet the cones; exact in float64."""
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
    return Forms(quads, torch.stack([ma, mg], dim=-2), size, shift)


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
    # (roots of exact zeros take a slow path)
    root, root_a, root_b = quads[1:].clamp_min(1e-12).sqrt().unbind(0)
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


def trace(cones: Cones, directions: Tensor, forms: Forms | None = None) -> Tensor:
    """Depth of every cone along given rays.

    Args:
        cones: N figures of P cones.
        directions: (N, R, 3) rays from the camera's centre, camera frame, z = 1.
        forms: ``quadratic_forms(cones)``, if they are there already.

    Returns:
        (N, R, P) float32 mm along the optical axis, infinite where the ray misses.
    """
    forms = quadratic_forms(cones) if forms is None else forms
    x, y, z = directions.to(cones.start).unbind(-1)
    monomials = torch.stack([x * x, x * y, y * y, x * z, y * z, z * z], -1)  # (N, R, 6)
    quads, lines = _polynomials(forms)
    quad = (monomials[:, None] @ quads.mT).transpose(0, 1).float()  # (4, N, R, P)
    line = (directions.to(cones.start)[:, None] @ lines.mT).transpose(0, 1).float()
    depth = _first_hit(quad, line, forms.size[:, None].float(), forms.shift[:, None].float())
    return depth.masked_fill(depth >= _FAR / 2, math.inf)


def _polynomials(forms: Forms, inverse: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The forms as polynomials of (x, y): of the ray (x, y, 1), or with K^-1 of the pixel.

    Returns:
        (N, 4, P, 6) factors of x^2, xy, y^2, x, y, 1, and (N, 2, P, 3) of x, y, 1.
    """
    quads, lines = forms.quads.transpose(1, 2), forms.lines.transpose(1, 2)
    if inverse is not None:
        inverse = inverse[:, None, None]
        quads = inverse.mT @ quads @ inverse
        lines = (lines[..., None, :] @ inverse)[..., 0, :]
    entries = constant((0, 1, 4, 2, 5, 8), torch.long, quads.device)
    twice = constant((1.0, 2.0, 1.0, 2.0, 2.0, 1.0), quads.dtype, quads.device)
    return quads.flatten(-2).index_select(-1, entries) * twice, lines


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


class DepthBuffer(NamedTuple):
    """What each pixel shows, one integer a pixel.

    Attributes:
        packed: (N, H*W) int32: bits of the depth with the part in the five low bits.
    """

    packed: Tensor

    @property
    def hit(self) -> Tensor:
        """(N, H*W) bool: somebody is there."""
        return self.packed < _MISS

    @property
    def depth(self) -> Tensor:
        """(N, H*W) float32 mm along the optical axis (to 4e-6 of it); 1 where there is nobody."""
        return (self.packed & ~_PART_BITS).view(torch.float32).masked_fill(~self.hit, 1.0)

    @property
    def part(self) -> Tensor:
        """(N, H*W) int64 index of the cone; 0 where there is nobody."""
        return (self.packed & _PART_BITS).masked_fill(~self.hit, 0).long()


def depth_buffer(
    cones: Cones, forms: Forms, intrinsics: Tensor, size: int, dense: bool
) -> DepthBuffer:
    """Casts a ray through the centre of each pixel.

    Args:
        cones: N figures.
        forms: ``quadratic_forms(cones)``.
        intrinsics: (N, 3, 3) px, in the dtype of the cones.
        size: H = W.
        dense: compute all pixels of all cones.
    """
    inverse = torch.linalg.inv_ex(intrinsics).inverse
    if dense:
        return DepthBuffer(_cast_dense(forms, inverse, size))
    return DepthBuffer(_cast_tiled(forms, inverse, cones, intrinsics, size))


def images_at_once(size: int, dense: bool) -> int:
    """How many images of ``size`` px to cast together: few for a CPU's cache, many for a GPU."""
    if dense:
        return max(1, _MAX_ELEMENTS // (6 * len(PARTS) * size * size))
    return max(8, _CACHED_PIXELS // (size * size))


def _cast_dense(forms: Forms, inverse: Tensor, size: int) -> Tensor:
    """(N, H*W) packed depth and part: all pixels of all cones."""
    quads, lines = _polynomials(forms, inverse)
    parts = quads.shape[2]
    # One patch, the whole image; the cones of all figures side by side.
    quads, lines = quads.permute(1, 3, 0, 2).flatten(2), lines.permute(1, 3, 0, 2).flatten(2)
    middle = quads.new_full((1,), (size - 1) / 2)
    quad, line = _values(quads, lines, middle, middle, size)
    depth = _first_hit(quad, line, forms.size.float().flatten(), forms.shift.float().flatten())
    number = torch.arange(parts, dtype=torch.int32, device=quads.device)
    packed = _pack(depth.view(size, size, -1, parts), number).amin(-1)
    return packed.movedim(-1, 0).flatten(1)


def _cast_tiled(
    forms: Forms, inverse: Tensor, cones: Cones, intrinsics: Tensor, size: int
) -> Tensor:
    """(N, H*W) packed depth and part: each cone only where its outline may be."""
    quads, lines = _polynomials(forms, inverse)
    quads, lines = quads.permute(2, 1, 3, 0).contiguous(), lines.permute(2, 1, 3, 0).contiguous()
    scale, shift = forms.size.float().T.contiguous(), forms.shift.float().T.contiguous()
    parts, count = scale.shape
    side = -(-size // (_TILE * _COARSE)) * _COARSE  # tiles in a row
    counts, images, rows, columns = _touched_tiles(cones, intrinsics, side)
    buffer = torch.full((count * side * side, _TILE * _TILE), _MISS, dtype=torch.int32)
    places = (images * side + rows) * side + columns
    middle_u = (columns * _TILE).double() + (_TILE - 1) / 2
    middle_v = (rows * _TILE).double() + (_TILE - 1) / 2
    stop = 0
    for part in range(parts):
        start, stop = stop, stop + counts[part]
        image, place = images[start:stop], places[start:stop]
        quad, line = _values(
            quads[part].index_select(-1, image), lines[part].index_select(-1, image),
            middle_u[start:stop], middle_v[start:stop], _TILE,
        )  # fmt: skip
        depth = _first_hit(
            quad, line, scale[part].index_select(0, image), shift[part].index_select(0, image)
        )
        packed = _pack(depth.flatten(0, 1), part).T
        buffer.index_copy_(0, place, torch.minimum(buffer.index_select(0, place), packed))
    full = buffer.view(count, side, side, _TILE, _TILE).transpose(2, 3)
    full = full.reshape(count, side * _TILE, side * _TILE)
    return full[:, :size, :size].reshape(count, size * size)


def _touched_tiles(
    cones: Cones, intrinsics: Tensor, side: int
) -> tuple[list[int], Tensor, Tensor, Tensor]:
    """Which tiles the cones may show in: first coarse tiles, then the tiles inside them.

    Returns:
        Number of tiles for each part, and image, row and column of each tile, parts in order.
    """
    outline = _outlines(cones, intrinsics)  # (6, P N)
    number = torch.arange(side // _COARSE, dtype=torch.float32)
    wide = _TILE * _COARSE
    centre = number * wide + (wide - 1) / 2
    near = _near(outline[:, :, None, None], centre, centre[:, None], wide)
    which, row, column = near.nonzero(as_tuple=True)
    inner = torch.arange(_COARSE)
    rows = (row * _COARSE)[:, None, None] + inner[:, None]
    columns = (column * _COARSE)[:, None, None] + inner
    half = (_TILE - 1) / 2
    near = _near(
        outline.index_select(1, which)[:, :, None, None],
        (columns * _TILE).float() + half, (rows * _TILE).float() + half, _TILE,
    )  # fmt: skip
    chosen, inner_row, inner_column = near.nonzero(as_tuple=True)
    which = which[chosen]
    parts, count = cones.radius_start.shape[1], cones.radius_start.shape[0]
    part = torch.div(which, count, rounding_mode="floor")
    counts: list[int] = torch.bincount(part, minlength=parts).tolist()
    return (
        counts, which - part * count,
        row[chosen] * _COARSE + inner_row, column[chosen] * _COARSE + inner_column,
    )  # fmt: skip


def _outlines(cones: Cones, intrinsics: Tensor) -> Tensor:
    """(6, P N): u, v and radius in px of two discs whose hull holds the cone's outline."""
    ends = torch.stack([cones.start, cones.end])  # (2, N, P, 3)
    radius = torch.stack([cones.radius_start, cones.radius_end]) * cones.reach
    z = ends[..., 2]
    tilt = (ends[..., :2] / z[..., None]).square().sum(-1) + 1
    focal = intrinsics[:, :2, :2].flatten(1).square().sum(-1).div(2).sqrt()[:, None]
    discs = focal * radius / (z - radius).clamp_min(1.0) * tilt + 0.5
    pixels = (ends @ intrinsics.mT)[..., :2] / z[..., None]
    # Seen at right angles to the segment, a taper of angle a is 1 / cos a thicker; short, steep
    # ones get the larger radius at both ends.
    length = (pixels[1] - pixels[0]).norm(dim=-1).clamp_min(1e-3)
    taper = (discs[1] - discs[0]).abs() / length
    discs = torch.where(taper > 0.5, discs.amax(0), discs / (1 - taper.clamp_max(0.5) ** 2).sqrt())
    both = torch.cat([pixels, discs[..., None]], -1)  # (2, N, P, 3)
    return both.permute(0, 3, 2, 1).reshape(6, -1).float()


def _near(outline: Tensor, u: Tensor, v: Tensor, tile: int) -> Tensor:
    """Whether tiles around (u, v) may touch outlines: the distance to the segment between discs."""
    u0, v0, r0, u1, v1, r1 = outline
    margin = tile / math.sqrt(2)
    du, dv = u1 - u0, v1 - v0
    square = du * du + dv * dv + 1e-6
    x, y = u - u0, v - v0
    along = (x * (du / square) + y * (dv / square)).clamp_(0, 1)
    distance = (x - along * du).square_() + (y - along * dv).square_()
    return distance <= (r0 + margin + along * (r1 - r0)).square_()


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


_OWN_BALL_INDEX = tuple(
    2 * PARTS.index(OWN_BALL[name][0]) + OWN_BALL[name][1] if name in OWN_BALL else 0
    for name in H36M_17.joints
)
_IS_OWN_PART = tuple(
    tuple(part in OWN_PARTS.get(name, ()) for part in PARTS) for name in H36M_17.joints
)


def joints_occluded(
    cones: Cones,
    joints: Tensor,
    intrinsics: Tensor,
    boxes: Tensor,
    size: int,
    margin: float = 40.0,
    forms: Forms | None = None,
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
        forms: ``quadratic_forms(cones)``, if they are there already.

    Returns:
        (N, 17) bool.
    """
    joints = joints.to(cones.start)
    z = joints[..., 2:]
    depth = trace(cones, joints / z, forms)  # (N, 17, P)
    # The own surface of a limb's joint: that of the ball around it.
    device, ray = joints.device, joints.norm(dim=-1) / z[..., 0]
    radii = torch.stack([cones.radius_start, cones.radius_end], -1).flatten(1)
    own = z[..., 0] - radii.index_select(1, constant(_OWN_BALL_INDEX, torch.long, device)) / ray
    # That of a joint of trunk or head: the nearest of the parts it lies in.
    inside = constant(_IS_OWN_PART, torch.bool, device)
    own_part = depth.masked_fill(~inside, math.inf).amin(-1)
    trunk = inside.any(-1)
    own = torch.where(trunk, torch.minimum(own_part, z[..., 0].float()), own.float())
    hidden = depth.amin(-1) < own - margin
    pixel = (joints @ intrinsics.to(joints).mT)[..., :2] / z
    outside = ((pixel < -0.5) | (pixel > size - 0.5)).any(-1)
    place = ((pixel + 0.5) / size)[:, :, None]  # (N, 17, 1, 2)
    low, high = boxes[:, None, :, 0::2], boxes[:, None, :, 1::2]
    covered = ((place > low) & (place < high)).all(-1).any(-1)
    return hidden | outside | covered
