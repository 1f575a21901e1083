"""Pictures of people made of round cones: light, clothes, backgrounds; torch on any device.

:mod:`datamodules.rays` finds which surface each pixel shows. Colour, pattern and light are computed
here, for the surface that won; then come boxes in front of the person, and grain. Everything random
is drawn from numbers in [0, 1) that belong to the sample.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.figure import (
    NUM_OUTFIT_UNIFORMS,
    Cones,
    Paint,
    build_figure,
    constant,
    hsv_to_rgb,
    outfit_from_uniforms,
    paint,
)
from datamodules.rays import (
    DepthBuffer,
    Forms,
    depth_buffer,
    images_at_once,
    joints_occluded,
    quadratic_forms,
)

__all__ = [
    "NUM_BOX_UNIFORMS",
    "NUM_OUTFIT_UNIFORMS",
    "NUM_SCENE_UNIFORMS",
    "Rendered",
    "Scene",
    "Stage",
    "occluding_boxes",
    "render",
    "stage_from_uniforms",
]

_BACKGROUND_GRID = 12
_NUM_BANDS = 5
_FIRST_BAND, _FIRST_NODE = 20, 20 + 8 * _NUM_BANDS
NUM_SCENE_UNIFORMS = _FIRST_NODE + 3 * (9 + _BACKGROUND_GRID**2)
"""Uniforms per image for light, background and grain."""
NUM_BOXES = 2
NUM_BOX_UNIFORMS = 5 * NUM_BOXES
"""Uniforms per image for the boxes in front."""
_CACHED_SURFACE = 1 << 14  # pixels to shade together on a CPU


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
        clutter: (N, 3, G, G) colours of the background on a coarse grid.
        bands: (N, R, 4) soft rectangles (u0, u1, v0, v1) as fractions of the image.
        band_colour: (N, R, 3) colour offsets of the rectangles.
        box_colour: (N, NUM_BOXES, 3).
        grain_offset: (N, 2) int64, where the grain of the image starts in the fixed noise tile.
        grain: (N,) standard deviation of the grain.
    """

    light: Tensor
    ambient: Tensor
    tint: Tensor
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
    # Rooms and streets are mostly grey and brown: little colour, differences of brightness.
    base = hsv_to_rgb(u[:, 4], 0.35 * u[:, 5] ** 2, 0.15 + 0.7 * u[:, 6])
    coarse = 2 * u[:, _FIRST_NODE : _FIRST_NODE + 27].reshape(count, 3, 3, 3) - 1
    fine = 2 * u[:, _FIRST_NODE + 27 :].reshape(count, 3, grid, grid) - 1
    up = _interpolation(3, grid, u)
    clutter = up @ coarse @ up.mT * (0.06 + 0.24 * u[:, 7, None, None, None])
    clutter = clutter + fine * (0.3 * u[:, 8, None, None, None] ** 2)
    grey = clutter.mean(1, keepdim=True)
    chroma = 0.05 + 0.35 * u[:, 9, None, None, None] ** 2
    clutter = base[:, :, None, None] + 1.5 * grey + chroma * (clutter - grey)

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
    colour = (2 * rect[..., 4:5] - 1) * 0.3 + (2 * rect[..., 5:8] - 1) * 0.06
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
    """(size_out, size_in) matrix of quadratic B-splines on nodes spread over the image."""
    device = like.device
    position = torch.linspace(-0.5, size_in - 0.5, size_out, dtype=torch.float32, device=device)
    nodes = torch.arange(size_in, dtype=torch.float32, device=device)
    away = (position[:, None] - nodes).abs()
    weight = torch.where(away < 0.5, 0.75 - away**2, 0.5 * (1.5 - away).clamp_min(0) ** 2)
    return weight / weight.sum(-1, keepdim=True)


# ---- images -------------------------------------------------------------------------------------


def render(
    scene: Scene,
    size: int,
    *,
    noise: float = 0.03,
    supersample: int = 1,
    dense: bool | None = None,
    cones: Cones | None = None,
    buffers: bool = True,
) -> Rendered:
    """Pictures of people.

    Args:
        scene: N people and cameras.
        size: H, side of the square crop in px.
        noise: largest standard deviation of the grain.
        supersample: rays per pixel side; 2 smooths edges at four times the price. ``depth`` and
            ``part`` are then those of the upper left ray of each pixel.
        dense: compute all pixels of all cones (default: on every device but the CPU).
        cones: the figures, if the caller has built them from ``scene`` already.
        buffers: false leaves ``depth`` and ``part`` empty, which is quicker.

    Returns:
        Images, depth and part buffers, hidden joints. No gradients.
    """
    device = scene.joints.device
    dense = device.type != "cpu" if dense is None else dense
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        # Coefficients need float64; a device without it (mps) gets float32 and rougher edges.
        real = torch.float32 if device.type == "mps" else torch.float64
        outfit = outfit_from_uniforms(scene.outfit.float())
        stage = stage_from_uniforms(scene.scene.float(), noise)
        if cones is None:
            cones = build_figure(scene.joints.to(real), scene.girth, outfit.hair_length.to(real))
        forms = quadratic_forms(cones)
        occluded = joints_occluded(
            cones, scene.joints, scene.intrinsics, scene.boxes, size, forms=forms
        )
        fine = size * supersample
        intrinsics = scene.intrinsics.to(real)
        if supersample > 1:
            # Fine pixel k of pixel i: i = (k + 1/2) / s - 1/2.
            zoom = (
                supersample,
                0.0,
                (supersample - 1) / 2,
                0.0,
                supersample,
                (supersample - 1) / 2,
            )
            intrinsics = constant((*zoom, 0.0, 0.0, 1.0), real, device).view(3, 3) @ intrinsics
        surface = paint(cones, outfit)
        count = len(intrinsics)
        image = torch.empty(count, 3, fine, fine, device=device)
        depths, parts = [], []
        rounds = -(-count // images_at_once(fine, dense))
        step = -(-count // rounds)
        for first in range(0, count, step):
            some = slice(first, first + step)
            seen, forms_ = _rows(cones, some), _rows(forms, some)
            buffer = depth_buffer(seen, forms_, intrinsics[some], fine, dense)
            picture, set_ = image[some], _rows(stage, some)
            _background(picture, set_)
            table = _surface_table(forms_, seen, _rows(surface, some))
            inverse = torch.linalg.inv_ex(intrinsics[some]).inverse.float()
            _shade(picture, buffer, table, set_, inverse, dense)
            if buffers:
                view = buffer.packed.view(-1, fine, fine)[:, ::supersample, ::supersample]
                cut = DepthBuffer(view)
                depths.append(cut.depth.masked_fill(~cut.hit, math.inf))
                parts.append(cut.part.masked_fill(~cut.hit, -1))
            if supersample == 1:
                _foreground(picture, set_, scene.boxes[some], dense)
        if supersample > 1:
            image = F.avg_pool2d(image, supersample)
            _foreground(image, stage, scene.boxes, dense)
        empty = (image.new_empty(0, size, size), image.new_empty(0, size, size, dtype=torch.long))
        depth, part = (torch.cat(depths), torch.cat(parts)) if depths else empty
        return Rendered(image, depth, part, occluded)


_Tuple = TypeVar("_Tuple", Cones, Forms, Paint, Stage)


def _rows(values: _Tuple, some: slice) -> _Tuple:
    """The same for some of the images."""
    return type(values)(*(value[some] for value in values))


def _background(image: Tensor, stage: Stage) -> None:
    """Clutter and soft rectangles, all separable: two matrix products fill (N, 3, H, H)."""
    count, _, grid, _ = stage.clutter.shape
    size = image.shape[-1]
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
    torch.bmm((rows[:, None] @ mixed).flatten(1, 2), columns.mT, out=image.flatten(1, 2))


def _shade(
    image: Tensor, buffer: DepthBuffer, table: Tensor, stage: Stage, inverse: Tensor, dense: bool
) -> None:
    """Paints the figures into ``image`` (N, 3, H, H) in place."""
    count, size = len(image), image.shape[-1]
    of_image = torch.cat(
        [inverse.flatten(1), stage.light, stage.ambient[:, None], stage.tint], 1
    ).T.contiguous()  # fmt: skip
    flat = DepthBuffer(buffer.packed.flatten())
    if dense:
        every = torch.arange(len(flat.packed), device=image.device)
        colour = _colours(flat, every, table, of_image, size).view(3, count, size, size)
        hit = flat.hit.view(count, 1, size, size)
        image.copy_(torch.where(hit, colour.transpose(0, 1), image))
        return
    for chosen in torch.split(flat.hit.nonzero()[:, 0], _CACHED_SURFACE):
        seen = DepthBuffer(flat.packed[chosen])
        colour = _colours(seen, chosen, table, of_image, size)
        # Channels lie size^2 apart, images three times that.
        place = chosen + torch.div(chosen, size * size, rounding_mode="floor") * (2 * size * size)
        for channel in range(3):
            image.view(-1).index_copy_(0, place + channel * size * size, colour[channel])


def _colours(
    pixels: DepthBuffer, chosen: Tensor, table: Tensor, of_image: Tensor, size: int
) -> Tensor:
    """Colour, pattern and light of n pixels.

    Each pixel looks up the numbers of the cone it shows; all arithmetic is on long rows.

    Args:
        pixels: what they show, (n,).
        chosen: (n,) where they are: index into N x H x H.
        table: of :func:`_surface_table`.
        of_image: (16, N): inverse intrinsics, light, ambient light, tint.
        size: H.

    Returns:
        (3, n) RGB.
    """
    parts = table.shape[1] // of_image.shape[1]
    t = pixels.depth
    which = torch.div(chosen, size * size, rounding_mode="floor")
    pixel = chosen - which * (size * size)
    row = torch.div(pixel, size, rounding_mode="floor")
    of_cone = table.index_select(1, which * parts + pixels.part)
    m, ma, mg, place, wave, cut, first, second, beyond = torch.split(
        of_cone, [6, 3, 3, 4, 8, 4, 3, 3, 3]
    )
    inv, light, ambient, tint = torch.split(of_image.index_select(1, which), [9, 3, 1, 3])

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
    return (colour * tint).mul_(bright).clamp_(0, 1)


def _surface_table(forms: Forms, cones: Cones, surface: Paint) -> Tensor:
    """(37, N P) float32: what the shading of a pixel needs to know of the cone it shows."""
    mg = forms.lines[..., 1, :]
    # s = place . (X, 1): where along the cone the ball lies that touches the surface at X.
    place = torch.cat([mg, forms.shift[..., None]], -1) / forms.size[..., None]
    upper = constant((0, 1, 2, 4, 5, 8), torch.long, mg.device)
    metric = cones.metric.flatten(2).index_select(-1, upper)
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
