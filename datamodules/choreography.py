"""The stage of the motion generator: keys in time, and the moves that actions are made of.

A :class:`Scene` fills a :class:`~datamodules.kinematics.Track`: it stands and steps, walks, sits,
and moves hands between named places. Everything random comes from the generator it is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodules.kinematics import ANKLE_HEIGHT, STANDING, Track
from datamodules.motion import FPS

__all__ = ["HANDS", "Keys", "Scene", "make_keys"]

Array = NDArray[np.float64]
Range = tuple[float, float]

DOWN = (-0.5, 0.45, -0.75)
HANDS: dict[str, tuple[Sequence[float], Sequence[float], Sequence[float]]] = {
    "hang": ((35, 215, -543), (30, 20, 7), DOWN),
    "pocket": ((60, 205, -415), (20, 15, 20), (-0.6, 0.8, -0.2)),
    "hip": ((30, 205, -400), (20, 15, 15), (-0.35, 1.0, 0.0)),
    "waist": ((250, 50, -300), (50, 70, 50), DOWN),
    "chest": ((290, 100, -140), (60, 80, 70), DOWN),
    "crossed": ((200, -105, -215), (15, 20, 20), (-0.2, 0.8, -0.6)),
    "chin": ((165, 20, 25), (12, 15, 12), (0.0, 0.4, -0.9)),
    "mouth": ((160, 45, 70), (12, 12, 12), (-0.1, 0.7, -0.7)),
    "ear": ((80, 125, 100), (12, 10, 15), (0.1, 0.7, -0.7)),
    "eyes": ((235, 75, 140), (15, 12, 20), (-0.1, 0.8, -0.6)),
    "scalp": ((20, 115, 265), (25, 25, 20), (0.1, 1.0, -0.1)),
    "up": ((130, 230, 440), (80, 90, 50), (-0.2, 0.8, -0.3)),
    "behind": ((-170, 60, -370), (15, 40, 30), (-0.7, 0.7, -0.1)),
    "lap": ((235, 110, -385), (45, 40, 20), (-0.4, 0.7, -0.5)),
    "table": ((330, 130, -280), (40, 50, 25), (-0.4, 0.7, -0.5)),
    "armrest": ((190, 260, -270), (40, 25, 20), (-0.6, 0.5, -0.6)),
    "shake": ((430, 0, -180), (30, 30, 30), (-0.3, 0.4, -0.9)),
    "wave": ((190, 300, 200), (40, 50, 60), (-0.1, 0.6, -0.8)),
    "carry": ((290, 120, -240), (30, 30, 50), (-0.5, 0.6, -0.6)),
    "watch": ((240, 0, -90), (20, 20, 30), (-0.2, 0.8, -0.6)),
    "low": ((330, 120, -430), (60, 60, 40), (-0.6, 0.7, -0.1)),
    "high": ((380, 150, 220), (60, 80, 100), (-0.2, 0.7, -0.7)),
    "leash": ((260, 170, -330), (60, 50, 40), DOWN),
}
"""Places of the wrist in the chest frame (mm: forward, outward, up), their spread, and the side to
which the elbow bends; the elbow's tip points back, out and down unless a place says otherwise."""


# ---- time ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Keys:
    """When a figure rests at key k (from ``arrive[k]`` to ``leave[k]``, seconds)."""

    arrive: Array
    leave: Array

    def part(self, first: float, last: float) -> Keys:
        """The same keys, each move squeezed into the part [first, last] of its time."""
        moves = self.arrive[1:] - self.leave[:-1]
        leave, arrive = self.leave.copy(), self.arrive.copy()
        arrive[1:] = self.leave[:-1] + last * moves
        leave[:-1] = self.leave[:-1] + first * moves
        return Keys(arrive, leave)

    def phase(self, time: Array) -> tuple[NDArray[np.int64], Array]:
        """Key before each time, and the share in [0, 1] of the move to the next."""
        knots = np.stack([self.arrive, self.leave], -1).ravel()
        count = len(self.arrive)
        u = np.interp(time, knots, np.repeat(np.arange(count), 2))
        k = np.minimum(u.astype(np.int64), count - 2)
        return k, u - k

    def follow(self, time: Array, values: Array) -> Array:
        """Values (K, ...) at the keys, joined by minimum-jerk moves: (F, ...)."""
        k, u = self.phase(time)
        ease = (u**3 * (10 - 15 * u + 6 * u**2)).reshape(-1, *[1] * (values.ndim - 1))
        return np.asarray(values[k] + ease * (values[k + 1] - values[k]))

    def bump(self, time: Array) -> Array:
        """0 at the keys, 1 in the middle of a move: (F,)."""
        _, u = self.phase(time)
        return np.asarray(16 * (u * (1 - u)) ** 2)


def make_keys(rng: np.random.Generator, seconds: float, hold: Range, move: Range) -> Keys:
    """Keys whose rests and moves last a random time within the given ranges."""
    count = int(seconds / (hold[0] + move[0])) + 3
    holds, moves = rng.uniform(*hold, count), rng.uniform(*move, count)
    arrive = np.cumsum(holds + moves) - (holds + moves) - rng.uniform(0, holds[0])
    return Keys(arrive, arrive + holds)


# ---- the stage ----------------------------------------------------------------------------------


class Scene:
    """A track being made, and the moves that actions are made of."""

    def __init__(self, rng: np.random.Generator, frames: int) -> None:
        self.rng = rng
        self.time = np.arange(frames) / FPS
        self.seconds = frames / FPS
        side = rng.integers(2)
        self.main, self.other = int(side), int(1 - side)  # the hand that does things
        self.pelvis = np.zeros((frames, 3))
        self.turn = self.sway((3,), 0.012)
        self.trunk = self.sway((3,), 0.02) + np.array([0.0, rng.normal(0.06, 0.06), 0.0])
        self.head = self.sway((3,), 0.03) + np.array([0.0, rng.normal(0.02, 0.08), 0.0])
        self.feet = np.zeros((frames, 2, 3))
        self.knees = np.zeros((frames, 2, 3)) + np.array([1.0, rng.uniform(0.0, 0.25), 0.6])
        self.hands = np.zeros((frames, 2, 3))
        self.elbows = np.zeros((frames, 2, 3))
        self.on_feet = True
        for hand in (0, 1):
            self.hand(hand, {"hang": 1.0}, (3.0, 8.0), (0.8, 1.5))
        self.turn[:, 1] += rng.normal(0.03, 0.04)

    def track(self) -> Track:
        """The finished track, turned and moved to a random place of the room."""
        angle = self.rng.uniform(-np.pi, np.pi)
        spot = np.append(self.rng.uniform(-600, 600, 2), 0.0)
        cos, sin = np.cos(angle), np.sin(angle)
        turned = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
        self.turn[:, 0] += angle
        return Track(
            self.pelvis @ turned + spot, self.turn, self.trunk, self.head,
            self.feet @ turned + spot, self.knees, self.hands, self.elbows,
            np.array(self.on_feet),
        )  # fmt: skip

    def sway(self, shape: tuple[int, ...], scale: float, band: Range = (0.1, 0.6)) -> Array:
        """Smooth noise (F, *shape) of standard deviation about ``scale``."""
        waves = 4
        frequency = self.rng.uniform(*band, (*shape, waves))
        phase = self.rng.uniform(0, 2 * np.pi, (*shape, waves))
        angle = 2 * np.pi * self.time.reshape(-1, *[1] * (len(shape) + 1)) * frequency + phase
        return np.asarray(np.sin(angle).sum(-1) * scale * np.sqrt(2 / waves))

    def keys(self, hold: Range, move: Range) -> Keys:
        """Random keys over the whole recording."""
        return make_keys(self.rng, self.seconds, hold, move)

    def vary(self, spread: Sequence[float], hold: Range, move: Range) -> Array:
        """(F, D): moves between random normal values."""
        keys = self.keys(hold, move)
        values = self.rng.normal(0, 1, (len(keys.arrive), len(spread))) * np.asarray(spread)
        return keys.follow(self.time, values)

    # ---- hands ----------------------------------------------------------------------------------

    def place(self, name: str) -> Array:
        """(6,) a wrist's place near the named one, and the elbow's side."""
        rng = self.rng
        if name in ("gesture", "point"):
            free = name == "gesture"
            outward = np.radians(rng.uniform(-25, 75) if free else rng.uniform(-15, 85))
            upward = np.radians(rng.uniform(-60, 25) if free else rng.uniform(-15, 40))
            reach = rng.uniform(280, 480) if free else rng.uniform(470, 530)
            direction = np.array([
                np.cos(outward) * np.cos(upward), np.sin(outward) * np.cos(upward), np.sin(upward),
            ])  # fmt: skip
            where = direction * reach + [20.0, 165.0, -10.0]
            return np.concatenate([where, DOWN])
        mean, spread, elbow = HANDS[name]
        where = np.asarray(mean) + rng.normal(0, 1, 3) * np.asarray(spread)
        return np.concatenate([where, np.asarray(elbow) + rng.normal(0, 0.08, 3)])

    def hand(
        self,
        side: int,
        places: Mapping[str, float],
        hold: Range,
        move: Range,
        keys: Keys | None = None,
    ) -> None:
        """One hand moves between places that are drawn with the given weights."""  # fmt: skip
        keys = keys or self.keys(hold, move)
        names = list(places)
        weights = np.array(list(places.values())) / sum(places.values())
        chosen = self.rng.choice(len(names), len(keys.arrive), p=weights)
        values = np.stack([self.place(names[i]) for i in chosen])
        self.move_hand(side, keys, values)

    def alternate(
        self, side: int, first: str, second: str, hold: Range, move: Range, phase: int = 0
    ) -> Keys:
        """One hand goes to and fro between two places."""
        keys = self.keys(hold, move)
        places = (first, second)
        values = np.stack([self.place(places[(k + phase) % 2]) for k in range(len(keys.arrive))])
        self.move_hand(side, keys, values)
        return keys

    def both(self, places: Mapping[str, float], hold: Range, move: Range) -> Keys:
        """Both hands move at the same times; each time to one place, mirrored."""
        keys = self.keys(hold, move)
        names = list(places)
        weights = np.array(list(places.values())) / sum(places.values())
        chosen = self.rng.choice(len(names), len(keys.arrive), p=weights)
        for side in (0, 1):
            values = np.stack([self.place(names[i]) for i in chosen])
            self.move_hand(side, keys, values)
        return keys

    def move_hand(self, side: int, keys: Keys, places: Array) -> None:
        """One hand moves between places (K, 6); the path of a raised hand bows out to the front."""
        path = keys.follow(self.time, places)
        before, _ = keys.phase(self.time)
        rise = np.abs(places[before + 1, 2] - places[before, 2]) * keys.bump(self.time)
        self.hands[:, side] = path[:, :3] + self.sway((3,), 6.0, (0.2, 1.2))
        self.hands[:, side] += rise[:, None] * np.array([0.28, 0.12, 0.0])
        self.elbows[:, side] = path[:, 3:]

    # ---- standing -------------------------------------------------------------------------------

    def stand(
        self,
        hold: Range = (1.5, 5.0),
        wander: float = 120.0,
        turning: float = 0.5,
        width: Range = (80, 160),
        stagger: float = 50.0,
        restless: float = 0.6,
    ) -> Keys:
        """Stands, shifts the weight, and now and then steps to a new spot or turns.

        Args:
            hold: seconds between steps.
            wander: spread of the spots, mm.
            turning: spread of a turn, rad.
            width: from the middle to each foot, mm.
            stagger: how far one foot is before the other, mm.
            restless: probability that a key brings a step.
        """  # fmt: skip
        rng = self.rng
        keys = self.keys(hold, (0.9, 1.6))
        count = len(keys.arrive)
        step = rng.random(count) < restless
        spots, feet = np.zeros((count, 3)), np.zeros((count, 2, 2))
        half, base = rng.uniform(*width), rng.normal(0, stagger)
        for k in range(count):
            if k and not step[k]:
                spots[k], feet[k] = spots[k - 1], feet[k - 1]
                continue
            last = spots[k - 1] if k else np.zeros(3)
            spots[k, :2] = 0.7 * last[:2] + rng.normal(0, wander, 2)
            spots[k, 2] = last[2] + float(np.clip(rng.normal(0, turning), -1.2, 1.2))
            cos, sin = np.cos(spots[k, 2]), np.sin(spots[k, 2])
            for i, sign in enumerate((-1, 1)):
                ahead = sign * (base + rng.normal(0, 0.4 * stagger))
                aside = sign * max(half + rng.normal(0, 15), 60.0)
                offset = (cos * ahead - sin * aside, sin * ahead + cos * aside)
                feet[k, i] = spots[k, :2] + offset
        order = (0, 1) if rng.random() < 0.5 else (1, 0)
        for i in (0, 1):
            swing = keys.part(0.0, 0.55) if order[i] == 0 else keys.part(0.45, 1.0)
            before, _ = swing.phase(self.time)
            length = np.linalg.norm(feet[before + 1, i] - feet[before, i], axis=-1)
            self.feet[:, i, :2] = swing.follow(self.time, feet[:, i])
            lift = np.minimum(length, 200) / 200 * rng.uniform(60, 110)
            self.feet[:, i, 2] = ANKLE_HEIGHT + swing.bump(self.time) * lift
        path = keys.follow(self.time, spots)
        self.turn[:, 0] += path[:, 2]
        self.pelvis[:, :2] = path[:, :2]
        self.pelvis[:, 2] = STANDING
        # Rest on one leg or the other: the pelvis moves over it and drops on the free side.
        weight = np.clip(self.vary((0.5,), (1.0, 4.0), (0.7, 1.4))[:, 0], -1, 1)
        weight = weight * (1 - keys.bump(self.time) * step[np.minimum(keys.phase(self.time)[0] + 1,
                                                                      count - 1)])  # fmt: skip
        self.slide(np.stack([self.sway((), 12.0), weight * 0.6 * half], -1))
        self.turn[:, 2] += -0.06 * weight
        self.trunk[:, 2] += 0.06 * weight
        return keys

    def slide(self, offset: Array) -> None:
        """Moves the pelvis by (F, 2) mm in its heading frame, the feet staying."""
        cos, sin = np.cos(self.turn[:, 0]), np.sin(self.turn[:, 0])
        self.pelvis[:, 0] += cos * offset[:, 0] - sin * offset[:, 1]
        self.pelvis[:, 1] += sin * offset[:, 0] + cos * offset[:, 1]

    def look(self, spread: float = 0.5, hold: Range = (0.6, 3.0)) -> None:
        """The head turns here and there, the chest a little with it."""
        look = self.vary((spread, 0.15, 0.06), hold, (0.3, 0.8))
        self.head += look
        self.trunk[:, 0] += 0.3 * look[:, 0]

    def bend(self, amount: Array, squat: Array) -> None:
        """Leans forward by ``amount`` rad, lowers the pelvis by ``squat`` mm; hips go back."""
        self.turn[:, 1] += 0.55 * amount
        self.trunk[:, 1] += 0.45 * amount
        self.head[:, 1] -= 0.3 * amount  # the eyes stay on the way
        self.pelvis[:, 2] -= squat
        self.turn[:, 1] += squat / 1400
        self.slide(np.stack([-130 * np.sin(amount) - 0.12 * squat, np.zeros_like(squat)], -1))

    # ---- walking --------------------------------------------------------------------------------

    def walk(self, speed: Range, cadence: Range, swing_deg: Range = (12, 28)) -> None:
        """Walks along a closed curve through the room.

        Each foot rests where the pelvis passes it in the middle of its stance, and swings for the
        rest of the cycle; arms swing against the legs, the chest turns against the pelvis.

        Args:
            speed: mm/s.
            cadence: strides (two steps) per second.
            swing_deg: amplitude of the arms, degrees.
        """
        rng, time = self.rng, self.time
        rate = rng.uniform(*cadence)
        pace = min(rng.uniform(*speed), 1350 * rate)  # no longer strides than legs allow
        radii = rng.uniform(900, 1900), rng.uniform(700, 1500)
        direction, start = rng.choice([-1.0, 1.0]), rng.uniform(0, 2 * np.pi)
        theta = np.linspace(0, 2 * np.pi, 721)
        curve = np.stack([radii[0] * np.cos(theta), radii[1] * np.sin(theta)], -1)
        arc = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1)))

        def path(at: Array) -> tuple[Array, Array]:
            """Place (N, 2) and heading (N,) at the given seconds."""
            way = pace * at * direction + start / (2 * np.pi) * arc[-1]
            angle = np.interp(way % arc[-1], arc, theta)
            place = np.stack([radii[0] * np.cos(angle), radii[1] * np.sin(angle)], -1)
            tangent = direction * np.stack(
                [-radii[0] * np.sin(angle), radii[1] * np.cos(angle)], -1
            )
            return place, np.arctan2(tangent[:, 1], tangent[:, 0])

        place, heading = path(time)
        heading = np.unwrap(heading)
        cycle = time * rate + rng.uniform(0, 1)  # left foot in mid-stance at whole numbers
        first = float(cycle[0])
        stance, width = rng.uniform(0.37, 0.43), rng.uniform(45, 90)
        clearance = rng.uniform(90, 140)
        for i, (shift, sign) in enumerate(((0.5, -1.0), (0.0, 1.0))):
            number = np.arange(np.floor(first) - 2, np.ceil(cycle[-1]) + 3) + shift
            middle = (number - first) / rate
            at, facing = path(middle)
            normal = np.stack([-np.sin(facing), np.cos(facing)], -1)
            spots = at + normal * sign * width + rng.normal(0, 12, at.shape)
            half = 0.5 * stance / rate
            keys = Keys(middle - half, middle + half)
            self.feet[:, i, :2] = keys.follow(time, spots)
            _, u = keys.phase(time)
            # The heel comes up early in the swing and the foot lands flat: highest at 0.4.
            self.feet[:, i, 2] = ANKLE_HEIGHT + clearance * 28.9 * u**2 * (1 - u) ** 3
        left = 2 * np.pi * cycle
        self.pelvis[:, :2] = place
        self.pelvis[:, 2] = STANDING - 12 + 10 * np.cos(2 * left)
        self.turn[:, 0] += heading
        self.slide(np.stack([np.zeros_like(left), 18 * np.cos(left)], -1))
        twist = np.radians(rng.uniform(3, 8))
        self.turn[:, 0] += twist * np.sin(left)
        self.turn[:, 2] += -0.035 * np.cos(left)
        self.trunk[:, 0] += -1.9 * twist * np.sin(left)
        self.trunk[:, 2] += 0.035 * np.cos(left)
        amplitude, bent = np.radians(rng.uniform(*swing_deg)), rng.uniform(0.945, 0.985)
        for side, angle in ((0, left + np.pi), (1, left)):
            forward = amplitude * (np.sin(angle) + 0.25)
            reach = 535 * bent * (1 - 0.05 * np.sin(angle))
            self.hands[:, side, 0] = reach * np.sin(forward) + 10
            self.hands[:, side, 1] = rng.uniform(205, 245) - 20 * np.sin(angle)
            self.hands[:, side, 2] = -reach * np.cos(forward) - 15
            self.elbows[:, side] = DOWN

    # ---- sitting --------------------------------------------------------------------------------

    def legs(self, name: str) -> Array:
        """(2, 6) ankles in the seat's frame (mm; y outwards, z over the floor) and knee sides."""
        rng = self.rng
        aside = rng.uniform(90, 190)
        knee = [1.0, rng.uniform(0.0, 0.4), 1.0]
        ahead = {"apart": (340, 470), "tucked": (130, 240), "stretched": (560, 690),
                 "ankles": (420, 600), "knees up": (330, 480), "long": (760, 830)}  # fmt: skip
        out = np.zeros((2, 6))
        for i in (0, 1):
            x = rng.uniform(*ahead.get(name, (380, 450)))
            z = rng.uniform(80, 110) if name == "tucked" else 80.0
            out[i] = [x, aside + rng.normal(0, 25), z, *knee]
        i = int(rng.integers(2))
        if name == "ankles":
            out[:, 1] = [-35, -20]
            out[i, 0] += 70
        elif name == "over":  # thigh over thigh
            out[i] = [
                rng.uniform(520, 600),
                rng.uniform(-90, -30),
                rng.uniform(230, 330),
                0.6,
                0,
                1,
            ]
        elif name == "figure four":  # an ankle on the other knee
            out[i] = [rng.uniform(380, 430), -110, 560, 0.5, 1.0, 0.25]
            out[1 - i, 1] = 120
        elif name == "cross-legged":
            for k in (0, 1):
                x = 330 - 90 * float(k == i)
                out[k] = [x, rng.uniform(-90, -40), 75, 0.7, 1.0, 0.25]
        elif name == "one up":
            out[i, 0], out[1 - i, 0] = rng.uniform(330, 430), rng.uniform(740, 820)
        return out

    def sit(self, height: Range = (490, 550), hold: Range = (2.5, 7.0)) -> None:
        """Sits on a chair; the legs change their arrangement now and then."""
        rng = self.rng
        self.on_feet = False
        names = ["apart", "tucked", "stretched", "ankles", "over", "figure four"]
        weights = np.array([0.34, 0.16, 0.14, 0.12, 0.14, 0.10])
        keys = self.keys(hold, (0.8, 1.5))
        chosen = rng.choice(len(names), len(keys.arrive), p=weights)
        legs = np.stack([self.legs(names[k]) for k in chosen])
        self.place_legs(keys, legs)
        self.pelvis[:, 2] = rng.uniform(*height)
        self.slide(self.vary((15, 12), (2.0, 6.0), (0.8, 1.5)))
        self.turn[:, 1] += rng.normal(-0.12, 0.08)
        lean = self.vary((0.10, 0.14, 0.07), (1.5, 5.0), (0.8, 1.8))
        self.trunk += lean * [1.0, 1.0, 1.0] + [0.0, rng.normal(0.1, 0.1), 0.0]
        self.head[:, 1] -= 0.4 * lean[:, 1]

    def place_legs(self, keys: Keys, legs: Array) -> None:
        """Ankles (K, 2, 6) in the scene's frame at the keys; a foot that moves is lifted."""
        for i, sign in enumerate((-1, 1)):
            path = keys.follow(self.time, legs[:, i])
            k, _ = keys.phase(self.time)
            length = np.linalg.norm(legs[k + 1, i, :3] - legs[k, i, :3], axis=-1)
            self.feet[:, i] = path[:, :3] * [1, sign, 1]
            self.feet[:, i, 2] += keys.bump(self.time) * np.minimum(length, 250) * 0.25
            self.knees[:, i] = path[:, 3:]
