"""Human motion without a file: the 15 actions of Human3.6M, made from keyed postures and steps.

Each recording is a small choreography. Feet are planned first, as steps with stance and swing, and the
legs follow them by inverse kinematics, so a standing foot does not slide; the pelvis rides on the legs
or on a seat; hands move between keyed places (mouth, ear, hip, a thing that is pointed at) with
minimum-jerk profiles; trunk and head sway. :mod:`datamodules.kinematics` holds the joint limits.
Everything random is drawn from a generator keyed by the seed and the recording's name.

The motion is plausible, not recorded: it lets everything run and be tested without a download. Train
on real motion (``--data.mocap``) for poses that people really take.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodules.kinematics import ANKLE_HEIGHT, STANDING, Track, solve, stack
from datamodules.motion import FPS, MotionBank
from datamodules.splits import GENERATED, SPLITS, Split
from zoo.errors import UsageError, suggest

__all__ = ["ACTIONS", "RECORDINGS", "generate"]

Array = NDArray[np.float64]
Range = tuple[float, float]

RECORDINGS: dict[Split, int] = {"train": 8, "val": 2, "test": 4}
"""Recordings an action for each split, by default."""

DOWN = (-0.5, 0.45, -0.75)
HANDS: dict[str, tuple[Sequence[float], Sequence[float], Sequence[float]]] = {
    "hang": ((30, 225, -490), (35, 25, 10), DOWN),
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
        self._move_hand(side, keys.follow(self.time, values))

    def alternate(
        self, side: int, first: str, second: str, hold: Range, move: Range, phase: int = 0
    ) -> Keys:
        """One hand goes to and fro between two places."""
        keys = self.keys(hold, move)
        places = (first, second)
        values = np.stack([self.place(places[(k + phase) % 2]) for k in range(len(keys.arrive))])
        self._move_hand(side, keys.follow(self.time, values))
        return keys

    def both(self, places: Mapping[str, float], hold: Range, move: Range) -> Keys:
        """Both hands move at the same times; each time to one place, mirrored."""
        keys = self.keys(hold, move)
        names = list(places)
        weights = np.array(list(places.values())) / sum(places.values())
        chosen = self.rng.choice(len(names), len(keys.arrive), p=weights)
        for side in (0, 1):
            values = np.stack([self.place(names[i]) for i in chosen])
            self._move_hand(side, keys.follow(self.time, values))
        return keys

    def _move_hand(self, side: int, path: Array) -> None:
        self.hands[:, side] = path[:, :3] + self.sway((3,), 6.0, (0.2, 1.2))
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
        pace = rng.uniform(*speed)
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
        stance, width = rng.uniform(0.50, 0.56), rng.uniform(45, 90)
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
            # The heel comes up early in the swing and the foot lands flat: highest at a third.
            self.feet[:, i, 2] = ANKLE_HEIGHT + clearance * 6.75 * u * (1 - u) ** 2 * np.minimum(
                1, 8 * u
            )
        left = 2 * np.pi * cycle
        self.pelvis[:, :2] = place
        self.pelvis[:, 2] = STANDING - 10 + 12 * np.cos(2 * left)
        self.turn[:, 0] += heading
        self.slide(np.stack([np.zeros_like(left), 18 * np.cos(left)], -1))
        twist = np.radians(rng.uniform(3, 8))
        self.turn[:, 0] += twist * np.sin(left)
        self.turn[:, 2] += -0.035 * np.cos(left)
        self.trunk[:, 0] += -1.9 * twist * np.sin(left)
        self.trunk[:, 2] += 0.035 * np.cos(left)
        amplitude, bent = np.radians(rng.uniform(*swing_deg)), rng.uniform(0.90, 0.97)
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


# ---- the actions --------------------------------------------------------------------------------


def _directions(s: Scene) -> None:
    s.stand(turning=0.6)
    s.hand(s.main, {"point": 0.6, "gesture": 0.2, "hang": 0.2}, (0.6, 2.0), (0.5, 1.0))
    s.hand(
        s.other, {"hang": 0.45, "point": 0.2, "hip": 0.2, "pocket": 0.15}, (1.0, 4.0), (0.5, 1.0)
    )
    s.look(0.55, (0.6, 2.0))
    s.trunk += s.vary((0.2, 0.08, 0.05), (0.8, 2.5), (0.6, 1.2))


def _discussion(s: Scene) -> None:
    s.stand(turning=0.3, restless=0.5)
    gestures = {"gesture": 0.55, "chest": 0.2, "waist": 0.25}
    if s.rng.random() < 0.5:
        s.both({**gestures, "hang": 0.15, "crossed": 0.1}, (0.2, 1.0), (0.3, 0.7))
    else:
        s.hand(s.main, gestures, (0.1, 0.8), (0.3, 0.7))
        rest = {"hang": 0.3, "pocket": 0.2, "hip": 0.25, "gesture": 0.25}
        s.hand(s.other, rest, (1.0, 4.0), (0.5, 1.0))
    s.look(0.35, (0.4, 1.5))
    s.trunk += s.vary((0.12, 0.08, 0.05), (0.6, 2.0), (0.5, 1.0))


def _eating(s: Scene) -> None:
    if s.rng.random() < 0.75:
        s.sit()
        rest = "table"
    else:
        s.stand(restless=0.3)
        rest = "waist"
    keys = s.alternate(s.main, rest, "mouth", (0.4, 1.3), (0.6, 1.1))
    s.hand(s.other, {rest: 0.7, "lap" if rest == "table" else "hang": 0.3}, (1.5, 4.0), (0.6, 1.2))
    bite = keys.follow(s.time, (np.arange(len(keys.arrive)) % 2).astype(float))
    s.head[:, 1] += 0.25 - 0.2 * bite
    s.look(0.2)


def _greeting(s: Scene) -> None:
    rng = s.rng
    s.stand(wander=220, turning=0.5, restless=0.75, hold=(1.0, 3.0))
    keys = s.keys((1.0, 2.5), (0.5, 0.9))
    kinds = rng.choice(["wave", "shake", "bow", "hang"], len(keys.arrive), p=[0.4, 0.25, 0.2, 0.15])
    names = [k if k in ("wave", "shake") else "hang" for k in kinds]
    s._move_hand(s.main, keys.follow(s.time, np.stack([s.place(n) for n in names])))
    on = {k: keys.follow(s.time, (kinds == k).astype(float)) for k in ("wave", "shake", "bow")}
    beat = np.sin(2 * np.pi * rng.uniform(1.3, 2.4) * s.time + rng.uniform(0, 6))
    s.hands[:, s.main, 1] += on["wave"] * beat * rng.uniform(70, 140)
    s.hands[:, s.main, 2] += on["shake"] * beat * rng.uniform(25, 60)
    both = rng.random() < 0.25
    if both:
        s.hands[:, s.other], s.elbows[:, s.other] = s.hands[:, s.main], s.elbows[:, s.main]
    s.bend(on["bow"] * rng.uniform(0.4, 1.1) + 0.08 * on["shake"], np.zeros_like(s.time))
    s.look(0.3)


def _phoning(s: Scene) -> None:
    kind = s.rng.random()
    if kind < 0.45:
        s.sit()
        rest = {"lap": 0.4, "armrest": 0.3, "gesture": 0.15, "table": 0.15}
    elif kind < 0.75:
        s.stand(restless=0.5)
        rest = {"hang": 0.3, "hip": 0.25, "pocket": 0.2, "gesture": 0.25}
    else:
        s.walk((500, 900), (0.7, 0.85))
        rest = {}
    if rest:
        s.hand(s.other, rest, (1.0, 4.0), (0.5, 1.0))
    s.hand(s.main, {"ear": 0.88, "chest": 0.12}, (2.0, 5.0), (0.6, 1.0))
    tilt = s.rng.uniform(0.05, 0.25) * (1 if s.main == 0 else -1)
    s.look(0.4)
    s.head[:, 2] += tilt


def _photo(s: Scene) -> None:
    s.stand(wander=180, turning=0.5, restless=0.6)
    keys = s.both({"eyes": 0.75, "waist": 0.15, "high": 0.1}, (1.0, 3.0), (0.5, 1.0))
    low = np.where(s.rng.random(len(keys.arrive)) < 0.35, s.rng.uniform(120, 430), 0.0)
    crouch = s.keys((1.5, 3.5), (0.8, 1.4))
    low = np.where(s.rng.random(len(crouch.arrive)) < 0.4, s.rng.uniform(120, 430), 0.0)
    lean = np.where(s.rng.random(len(crouch.arrive)) < 0.4, s.rng.uniform(0.1, 0.5), 0.0)
    s.bend(crouch.follow(s.time, lean), crouch.follow(s.time, low))
    s.trunk += s.vary((0.1, 0.05, 0.1), (1.0, 3.0), (0.6, 1.2))
    s.look(0.15)


def _posing(s: Scene) -> None:
    rng = s.rng
    s.stand((1.0, 2.8), 150, 0.7, width=(80, 260), stagger=140, restless=0.8)
    places = {"hip": 0.25, "scalp": 0.12, "up": 0.14, "crossed": 0.08, "chin": 0.1, "behind": 0.06,
              "point": 0.12, "hang": 0.13}  # fmt: skip
    for side in (0, 1):
        s.hand(side, places, (1.0, 2.8), (0.5, 1.0))
    s.turn[:, 1:] += s.vary((0.06, 0.06), (1.0, 3.0), (0.6, 1.2))
    s.trunk += s.vary((0.25, 0.14, 0.14), (1.0, 3.0), (0.6, 1.2))
    s.pelvis[:, 2] -= np.abs(s.vary((rng.uniform(0, 110),), (1.0, 3.0), (0.8, 1.4))[:, 0])
    s.look(0.5)


def _purchases(s: Scene) -> None:
    rng = s.rng
    s.stand((1.0, 3.0), 240, 0.6, restless=0.7)
    keys = s.keys((0.6, 2.0), (0.8, 1.4))
    count = len(keys.arrive)
    low = rng.random(count) < 0.45
    names = np.where(low, "low", rng.choice(["carry", "high", "waist"], count, p=[0.5, 0.25, 0.25]))
    lean = np.where(low, rng.uniform(0.5, 1.35, count), rng.uniform(0.0, 0.15, count))
    squat = np.where(low, rng.uniform(0, 420, count), 0.0)
    alone = rng.random() < 0.4
    for side in (0, 1):
        own = ["hang" if alone and side == s.other else str(n) for n in names]
        s._move_hand(side, keys.follow(s.time, np.stack([s.place(n) for n in own])))
    s.bend(keys.follow(s.time, lean), keys.follow(s.time, squat))
    s.look(0.25)
    s.trunk[:, 0] += s.vary((0.2,), (0.8, 2.0), (0.6, 1.2))[:, 0]


def _sitting(s: Scene) -> None:
    s.sit()
    places = {"lap": 0.35, "armrest": 0.2, "chin": 0.1, "crossed": 0.1, "table": 0.1,
              "scalp": 0.05, "gesture": 0.1}  # fmt: skip
    if s.rng.random() < 0.35:
        s.both(places, (1.2, 4.0), (0.6, 1.2))
    else:
        for side in (0, 1):
            s.hand(side, places, (1.2, 4.0), (0.6, 1.2))
    s.look(0.45)


def _sitting_down(s: Scene) -> None:
    """Stands, sits down on a chair or on the floor, stays, and gets up again."""
    rng = s.rng
    keys = s.keys((0.8, 3.0), (1.3, 2.1))
    count = len(keys.arrive)
    floor = rng.random() < 0.45
    height = rng.uniform(115, 145) if floor else rng.uniform(480, 540)
    names = ["knees up", "cross-legged", "one up", "long"] if floor else ["apart", "tucked"]
    seat = np.array([0.0, 0.0, height, 1.0])
    ahead = 460.0 if floor else rng.uniform(300, 380)  # of the seat, where the feet stand
    keyed, legs = np.zeros((count, 4)), np.zeros((count, 2, 6))
    phase = int(rng.integers(2))
    width = rng.uniform(90, 150)
    knee = [1.0, 0.3, 0.7]
    for k in range(count):
        if (k + phase) % 2:
            keyed[k] = [ahead - 20, 0.0, STANDING - 15, 0.0]
            legs[k] = [[ahead, width, ANKLE_HEIGHT, *knee]] * 2
        else:
            keyed[k] = seat
            legs[k] = s.legs(str(rng.choice(names)))
            if not floor:
                legs[k, :, 0] = np.clip(legs[k, :, 0], ahead - 60, ahead + 60)
    if not floor:  # the feet stay where they stand
        legs[:, :, :3] = legs[0, :, :3]
        legs[:, :, 0], legs[:, :, 2] = ahead, ANKLE_HEIGHT
        legs[:, :, 3:] = knee
    s.place_legs(keys, legs)
    path = keys.follow(s.time, keyed)
    seated, moving = path[:, 3], keys.bump(s.time)
    s.pelvis = path[:, :3]
    s.on_feet = False
    s.turn[:, 1] += moving * rng.uniform(0.35, 0.55) - 0.12 * seated
    s.trunk[:, 1] += moving * rng.uniform(0.2, 0.5) + (0.45 if floor else 0.1) * seated
    s.trunk += seated[:, None] * s.vary((0.12, 0.1, 0.08), (1.0, 3.0), (0.6, 1.2))
    low = "waist" if floor else "lap"
    for side in (0, 1):
        hang, sit = s.place("hang"), np.stack([s.place(low) for _ in range(count)])
        values = np.where((keyed[:, 3] > 0.5)[:, None], sit, hang)
        s._move_hand(side, keys.follow(s.time, values))
        s.hands[:, side, 0] += moving * 180
    s.look(0.25)


def _smoking(s: Scene) -> None:
    rng = s.rng
    if rng.random() < 0.5:
        s.sit()
        rest, other = "lap", {"lap": 0.5, "armrest": 0.3, "crossed": 0.2}
    else:
        s.stand(restless=0.4)
        rest = str(rng.choice(["hang", "waist", "chest"]))
        other = {"hang": 0.35, "pocket": 0.3, "crossed": 0.2, "hip": 0.15}
    keys = s.alternate(s.main, rest, "mouth", (0.9, 3.0), (0.6, 1.1), int(rng.integers(2)))
    s.hand(s.other, other, (2.0, 6.0), (0.6, 1.2))
    puff = keys.follow(s.time, (np.arange(len(keys.arrive)) % 2).astype(float))
    s.head[:, 1] -= 0.1 * puff
    s.look(0.45, (1.0, 3.0))


def _waiting(s: Scene) -> None:
    s.stand((1.5, 4.0), 200, 0.8, restless=0.6)
    places = {"hang": 0.25, "pocket": 0.2, "hip": 0.2, "crossed": 0.15, "watch": 0.1, "behind": 0.1}
    if s.rng.random() < 0.5:
        s.both(places, (2.0, 5.0), (0.7, 1.3))
    else:
        for side in (0, 1):
            s.hand(side, places, (1.5, 5.0), (0.7, 1.3))
    s.look(0.6)


def _walk_dog(s: Scene) -> None:
    if s.rng.random() < 0.75:
        s.walk((600, 1200), (0.75, 0.95))
        s.trunk[:, 1] += s.rng.uniform(0.0, 0.15)
    else:
        s.stand((0.8, 2.5), 260, 0.6, restless=0.8)
        keys = s.keys((1.0, 2.5), (0.9, 1.5))
        deep = (s.rng.random(len(keys.arrive)) < 0.5).astype(float)
        down = keys.follow(s.time, deep)
        s.bend(down * s.rng.uniform(0.4, 1.0), down * s.rng.uniform(100, 420))
        s.hand(s.other, {"low": 0.6, "hang": 0.4}, (0.6, 2.0), (0.5, 1.0))
    s.hand(s.main, {"leash": 0.75, "shake": 0.25}, (0.8, 3.0), (0.4, 0.9))
    s.hands[:, s.main] += s.sway((3,), 30.0, (0.5, 1.5))
    s.head[:, 1] += 0.15
    s.look(0.35)


def _walking(s: Scene) -> None:
    s.walk((850, 1350), (0.82, 1.05))
    s.look(0.15)


def _walk_together(s: Scene) -> None:
    s.walk((700, 1150), (0.78, 0.95))
    if s.rng.random() < 0.4:  # hand in hand
        s.hand(s.other, {"hang": 1.0}, (3.0, 6.0), (0.8, 1.4))
        s.hands[:, s.other] += [30.0, 90.0, 15.0]
    if s.rng.random() < 0.6:
        s.hand(s.main, {"gesture": 0.5, "chest": 0.2, "hang": 0.3}, (0.4, 1.5), (0.4, 0.8))
    s.look(0.2)
    s.head[:, 0] += (1 if s.other == 1 else -1) * np.abs(
        s.vary((0.6,), (0.8, 2.5), (0.4, 0.8))[:, 0]
    )


_SCENES: dict[str, Callable[[Scene], None]] = {
    "Directions": _directions,
    "Discussion": _discussion,
    "Eating": _eating,
    "Greeting": _greeting,
    "Phoning": _phoning,
    "Photo": _photo,
    "Posing": _posing,
    "Purchases": _purchases,
    "Sitting": _sitting,
    "SittingDown": _sitting_down,
    "Smoking": _smoking,
    "Waiting": _waiting,
    "WalkDog": _walk_dog,
    "Walking": _walking,
    "WalkTogether": _walk_together,
}

ACTIONS: tuple[str, ...] = tuple(_SCENES)
"""The 15 actions, as Human3.6M names them."""


def generate(
    seed: int = 0,
    *,
    splits: Sequence[Split] = SPLITS,
    actions: Sequence[str] | None = None,
    recordings: Mapping[Split, int] | None = None,
    seconds: float = 10.0,
) -> MotionBank:
    """A bank of generated recordings called ``generated/SPLIT/ACTION_NUMBER``.

    A recording depends on the seed, its name and its length alone, not on what else is asked for.

    Args:
        seed: non-negative.
        splits: for which splits to make recordings.
        actions: names out of ``ACTIONS``; ``None`` takes all.
        recordings: recordings an action for each split; ``None`` takes ``RECORDINGS``.
        seconds: length of a recording.

    Raises:
        zoo.errors.UsageError: an unknown action or split, or nothing to make.
    """
    counts = {**RECORDINGS, **(recordings or {})}
    chosen = ACTIONS if actions is None else tuple(actions)
    for action in chosen:
        if action not in _SCENES:
            raise UsageError(suggest(action, ACTIONS, "action"))
    for split in (*splits, *counts):
        if split not in SPLITS:
            raise UsageError(suggest(split, SPLITS, "split"))
    frames = round(seconds * FPS)
    names = [
        (f"{GENERATED}{split}/{action}_{i:02d}", action)
        for split in splits for action in chosen for i in range(counts[split])
    ]  # fmt: skip
    if frames < 1 or not names or seed < 0:
        raise UsageError(
            f"nothing to generate: seed {seed}, {len(names)} recordings of {frames} frames"
        )
    tracks = []
    for name, action in names:
        scene = Scene(np.random.default_rng((seed, zlib.crc32(name.encode()))), frames)
        _SCENES[action](scene)
        tracks.append(scene.track())
    # In pieces that stay in the processor's cache.
    solved = [solve(stack(tracks[i : i + 8])) for i in range(0, len(tracks), 8)]
    joints = np.concatenate(solved)
    return MotionBank.from_recordings(
        (name, action, joints[i]) for i, (name, action) in enumerate(names)
    )
