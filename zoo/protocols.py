"""Evaluation protocols with names and full definitions.

"Protocol 1" and "Protocol 2" mean different things in different papers, and the same prediction
gets another number with 16 instead of 17 joints, at another frame rate, or averaged over actions
instead of frames. So a number is never printed without :attr:`Protocol.definition`.

==============  =================================================================================
``p1-10fps``    Tome et al. 2017, protocol #1 (also the usual one of Human3.6M, at 10 fps)
``p1-2fps``     Lin et al. 2017 (RPSM) and Wang et al. 2019, protocol #1
``p2-tome``     Tome et al. 2017, protocol #2
``p3-tome``     Tome et al. 2017, protocol #3
``p2-wang``     Wang et al. 2019, protocol #2 (the frames of Tome's #3, another error)
``p3-wang``     Wang et al. 2019, protocol #3 (the frames of Tome's #2, another error)
``synthetic-val``, ``synthetic-test``  the generated data of this package
==============  =================================================================================
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from zoo.errors import UsageError, suggest

__all__ = ["PROTOCOLS", "Aggregation", "Alignment", "Exclusion", "Protocol", "get_protocol"]

Alignment = Literal["none", "translation", "procrustes"]
Aggregation = Literal["frames", "actions"]

_ALIGNMENT_TEXT = {
    "none": "error without any alignment",
    "translation": "error after moving both roots to the origin (no rotation, no scale)",
    "procrustes": "error after the best similarity of each pose (scale, rotation, translation; "
    "no reflection)",
}
_AGGREGATION_TEXT = {
    "frames": "mean over the valid joints of a frame, then over all frames",
    "actions": "mean over the valid joints of a frame, then over the frames of an action, then "
    "over the actions",
}


@dataclass(frozen=True)
class Exclusion:
    """One recording that is left out.

    Attributes:
        subject: such as ``S11``.
        action: the action's name in the official list, such as ``Directions``.
        trial: 1 or 2, the official subaction (not the suffix of the file's name).
        camera: the camera's id; ``None`` leaves out all cameras.
        reason: why, in a few words.
    """

    subject: str
    action: str
    trial: int
    camera: str | None
    reason: str

    def __str__(self) -> str:
        camera = "all cameras" if self.camera is None else f"camera {self.camera}"
        return f"{self.subject} {self.action} trial {self.trial} {camera} ({self.reason})"


@dataclass(frozen=True)
class Protocol:
    """Everything that turns predictions into one number.

    Attributes:
        name: the name to print with every number.
        dataset: such as ``Human3.6M``.
        train_subjects: who the paper trained on.
        test_subjects: who is tested.
        cameras: camera ids; empty = all.
        trials: trial numbers (official subactions); empty = all.
        frame_step: every n-th frame of the source recording, counted from its first frame.
        fps: rate of the tested frames in Hz, ``None`` where the data module decides.
        joints: names of the joints that count; ``None`` = all joints of the model's skeleton.
        root_counted: false takes the root out of the joints that count. Root-relative predictions
            have error 0 there, so counting it makes the mean smaller (by 16/17 for 17 joints).
        alignment: ``none``, ``translation`` (root on root) or ``procrustes`` (similarity, over the
            joints that count).
        aggregation: mean over ``frames``, or unweighted mean over ``actions`` of the action means.
        exclusions: recordings left out.
        note: what a reader must know to compare the number with a paper's.
    """

    name: str
    dataset: str
    train_subjects: tuple[str, ...]
    test_subjects: tuple[str, ...]
    cameras: tuple[str, ...] = ()
    trials: tuple[int, ...] = ()
    frame_step: int = 1
    fps: float | None = None
    joints: tuple[str, ...] | None = None
    root_counted: bool = True
    alignment: Alignment = "translation"
    aggregation: Aggregation = "frames"
    exclusions: tuple[Exclusion, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if self.alignment not in _ALIGNMENT_TEXT:
            raise UsageError(suggest(self.alignment, _ALIGNMENT_TEXT, "alignment"))
        if self.aggregation not in _AGGREGATION_TEXT:
            raise UsageError(suggest(self.aggregation, _AGGREGATION_TEXT, "aggregation"))
        if self.frame_step < 1:
            raise UsageError(
                f"protocol {self.name!r} has frame_step {self.frame_step}; it must be 1 or more"
            )

    @property
    def definition(self) -> str:
        """One line that defines the number; printed and saved with it."""
        if self.joints is None:
            joints = "all joints of the model's skeleton"
        else:
            joints = f"{len(self.joints)} joints ({' '.join(self.joints)})"
        return self.describe(joints)

    def describe(self, joints: str) -> str:
        """:attr:`definition` with ``joints`` as the text that says which joints count."""
        rate = f"every {_ordinal(self.frame_step)} frame" if self.frame_step > 1 else "every frame"
        if self.fps is not None:
            rate += f" ({self.fps:g} fps)"
        parts = [
            f"{self.dataset}, trained on {' '.join(self.train_subjects)}, "
            f"tested on {' '.join(self.test_subjects)}",
            f"cameras {' '.join(self.cameras)}" if self.cameras else "all cameras",
            f"trials {' '.join(map(str, self.trials))}" if self.trials else "all trials",
            rate,
            f"{joints}, root {'counted' if self.root_counted else 'not counted'}",
            f"{_ALIGNMENT_TEXT[self.alignment]}, in mm",
            _AGGREGATION_TEXT[self.aggregation],
            "left out: " + (", ".join(map(str, self.exclusions)) or "nothing"),
        ]
        text = f"{self.name}: " + "; ".join(parts) + "."
        return f"{text} {self.note}".strip()

    def as_dict(self) -> dict[str, Any]:
        """The fields and the definition as plain values, for JSON files."""
        fields = asdict(self)
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
        return {**plain, "definition": self.definition}


def _ordinal(n: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, ..."""
    suffix = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{suffix}"


_FIVE = ("S1", "S5", "S6", "S7", "S8")
# The third camera counted from zero. Both papers write "frontal camera (cam 3)" and give no id; the
# public evaluation scripts of this protocol take this one.
_FRONTAL = ("60457274",)
_FOURTEEN = (
    "r_hip", "r_knee", "r_ankle", "l_hip", "l_knee", "l_ankle", "thorax", "head_top",
    "l_shoulder", "l_elbow", "l_wrist", "r_shoulder", "r_elbow", "r_wrist",
)  # fmt: skip
_SIXTEEN = (
    "pelvis", "r_hip", "r_knee", "r_ankle", "l_hip", "l_knee", "l_ankle", "spine", "thorax",
    "head_top", "l_shoulder", "l_elbow", "l_wrist", "r_shoulder", "r_elbow", "r_wrist",
)  # fmt: skip
_MISSING_VIDEO = (Exclusion("S11", "Directions", 2, "54138969", "its video is missing"),)

_ALL = (
    Protocol(
        name="p1-10fps",
        dataset="Human3.6M",
        train_subjects=_FIVE,
        test_subjects=("S9", "S11"),
        frame_step=5,
        fps=10.0,
        aggregation="actions",
        exclusions=_MISSING_VIDEO,
        note="Protocol #1 of Tome et al. 2017 (17 joints).",
    ),
    Protocol(
        name="p1-2fps",
        dataset="Human3.6M",
        train_subjects=_FIVE,
        test_subjects=("S9", "S11"),
        frame_step=25,
        fps=2.0,
        aggregation="actions",
        exclusions=_MISSING_VIDEO,
        note="Lin et al. 2017 (17 joints) and protocol #1 of Wang et al. 2019 (16 joints).",
    ),
    Protocol(
        name="p2-tome",
        dataset="Human3.6M",
        train_subjects=_FIVE,
        test_subjects=("S11",),
        frame_step=64,
        fps=50 / 64,
        joints=_FOURTEEN,
        root_counted=False,
        alignment="procrustes",
        aggregation="actions",
        exclusions=_MISSING_VIDEO,
        note="Protocol #2 of Tome et al. 2017; it allows S9 for training, the authors did not use "
        "it. Which 14 joints is not in the paper: without pelvis, spine and nose.",
    ),
    Protocol(
        name="p3-tome",
        dataset="Human3.6M",
        train_subjects=_FIVE,
        test_subjects=("S9", "S11"),
        cameras=_FRONTAL,
        trials=(1,),
        frame_step=1,
        fps=50.0,
        joints=_FOURTEEN,
        root_counted=False,
        alignment="procrustes",
        aggregation="actions",
        note="Protocol #3 of Tome et al. 2017 (frontal camera, no subsampling). Which 14 joints is "
        "not in the paper: without pelvis, spine and nose.",
    ),
    Protocol(
        name="p2-wang",
        dataset="Human3.6M",
        train_subjects=_FIVE,
        test_subjects=("S9", "S11"),
        cameras=_FRONTAL,
        trials=(1,),
        frame_step=5,
        fps=10.0,
        joints=_SIXTEEN,
        aggregation="actions",
        note="Protocol #2 of Wang et al. 2019; no alignment is stated there but the root's. The "
        "numbers it is compared with in that paper (Tome's #3) are after Procrustes.",
    ),
    Protocol(
        name="p3-wang",
        dataset="Human3.6M",
        train_subjects=(*_FIVE, "S9"),
        test_subjects=("S11",),
        frame_step=64,
        fps=50 / 64,
        joints=_SIXTEEN,
        aggregation="actions",
        exclusions=_MISSING_VIDEO,
        note="Protocol #3 of Wang et al. 2019; no alignment is stated there but the root's. The "
        "numbers it is compared with in that paper (Tome's #2) are after Procrustes.",
    ),
    Protocol(
        name="synthetic-val",
        dataset="synthetic",
        train_subjects=_FIVE,
        test_subjects=("S2",),
        note="Generated people: validation bodies (S2) and recordings that neither training "
        "nor test uses, the four fixed cameras.",
    ),
    Protocol(
        name="synthetic-test",
        dataset="synthetic",
        train_subjects=_FIVE,
        test_subjects=("S9", "S11"),
        note="Generated people: bodies S9 and S11 and recordings that neither training nor "
        "validation uses, the four fixed cameras. Not comparable with Human3.6M.",
    ),
)
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}


def get_protocol(name: str) -> Protocol:
    """The predefined protocol called ``name``.

    Raises:
        zoo.errors.UsageError: no protocol has that name.
    """
    if name not in PROTOCOLS:
        raise UsageError(suggest(name, PROTOCOLS, "protocol"))
    return PROTOCOLS[name]
