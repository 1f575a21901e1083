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
``humaneva-rpsm``  HumanEva-I as in Lin et al. 2017 and Wang et al. 2019
``humaneva-katircioglu``  HumanEva-I as in Katircioglu et al. 2017
``kth-pcp``     KTH Multiview Football II as in Katircioglu et al. 2017
``mpi-inf-3dhp``  the test set of MPI-INF-3DHP: PCK at 150 mm, AUC
``synthetic-val``, ``synthetic-test``  the generated data of this package
==============  =================================================================================

A data module decides which frames a protocol tests (:meth:`Protocol.selects`), the metrics decide
how they are measured. ``docs/protocols.md`` is the page for users.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from zoo.actions import canonical
from zoo.errors import UsageError, suggest

__all__ = [
    "PROTOCOLS",
    "Aggregation",
    "Alignment",
    "Exclusion",
    "Origin",
    "Protocol",
    "Score",
    "get_protocol",
]

Alignment = Literal["none", "translation", "rigid", "procrustes"]
Aggregation = Literal["frames", "actions", "subjects"]
Origin = Literal["root", "hips"]
Score = Literal["mpjpe_mm", "pck_150mm", "pcp_50"]

_ORIGIN_TEXT = {"root": "roots", "hips": "middles of the hips"}
_ALIGNMENT_TEXT = {
    "none": "error without any alignment",
    "translation": "error after moving both {origin} to the origin (no rotation, no scale)",
    "rigid": "error after the best rotation and translation of each pose (no scale, no reflection)",
    "procrustes": "error after the best similarity of each pose (scale, rotation, translation; "
    "no reflection)",
}
_AGGREGATION_TEXT = {
    "frames": "mean over the valid joints of a frame, then over all frames",
    "actions": "mean over the valid joints of a frame, then over the frames of an action, then "
    "over the actions",
    "subjects": "mean over the valid joints of a frame, then over the frames of a subject's "
    "action, then over subjects and actions",
}
_SCORE_TEXT = {
    "mpjpe_mm": "mean per-joint position error, in mm",
    "pck_150mm": "% of joints within 150 mm (3DPCK), and the mean of that % over the thresholds 0, "
    "5, ..., 150 mm (AUC)",
    "pcp_50": "% of correct parts (PCP): a part is right if the mean of its two end errors is at "
    "most 0.5 of its true length",
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
        alignment: ``none``, ``translation`` (root on root), ``rigid`` (rotation and translation) or
            ``procrustes`` (similarity), the last two over the joints that count.
        aggregation: mean over ``frames``, unweighted mean over ``actions`` of the action means, or
            over ``subjects`` and actions of the means of each subject's action.
        exclusions: recordings left out.
        actions: names of the actions that are tested; empty = all.
        origin: what ``translation`` moves to the origin: the ``root``, or the middle of the
            ``hips`` (data sets without a pelvis).
        score: the number that the protocol is about: a key of ``zoo.metrics.METRIC_DEFINITIONS``.
        action_order: names in the order of the paper's columns, for tables.
        by_subject: tables have a row for each subject of an action.
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
    actions: tuple[str, ...] = ()
    origin: Origin = "root"
    score: Score = "mpjpe_mm"
    action_order: tuple[str, ...] = ()
    by_subject: bool = False

    def __post_init__(self) -> None:
        if self.alignment not in _ALIGNMENT_TEXT:
            raise UsageError(suggest(self.alignment, _ALIGNMENT_TEXT, "alignment"))
        if self.aggregation not in _AGGREGATION_TEXT:
            raise UsageError(suggest(self.aggregation, _AGGREGATION_TEXT, "aggregation"))
        if self.origin not in _ORIGIN_TEXT:
            raise UsageError(suggest(self.origin, _ORIGIN_TEXT, "origin"))
        if self.score not in _SCORE_TEXT:
            raise UsageError(suggest(self.score, _SCORE_TEXT, "score"))
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
            f"actions {', '.join(self.actions)}" if self.actions else "all actions",
            f"cameras {' '.join(self.cameras)}" if self.cameras else "all cameras",
            f"trials {' '.join(map(str, self.trials))}" if self.trials else "all trials",
            rate,
            f"{joints}, root {'counted' if self.root_counted else 'not counted'}",
            _SCORE_TEXT[self.score],
            _ALIGNMENT_TEXT[self.alignment].format(origin=_ORIGIN_TEXT[self.origin]),
            _AGGREGATION_TEXT[self.aggregation],
            "left out: " + (", ".join(map(str, self.exclusions)) or "nothing"),
        ]
        text = f"{self.name}: " + "; ".join(parts) + "."
        return f"{text} {self.note}".strip()

    def selects(
        self, subject: str, action: str, trial: int | None = None, camera: str | None = None
    ) -> bool:
        """Whether a recording is tested.

        Args:
            subject: such as ``S9``.
            action: its name, in any spelling that :func:`zoo.actions.canonical` knows.
            trial: official number of the trial; ``None`` where the data set has none, then a list
                of trials excludes nothing.
            camera: id; ``None`` where the data set has none or asks for the recording as a whole.
        """
        if subject not in self.test_subjects:
            return False
        if not self.tests_action(action):
            return False
        if self.trials and trial is not None and trial not in self.trials:
            return False
        if self.cameras and camera is not None and camera not in self.cameras:
            return False
        return not self.excludes(subject, action, trial, camera)

    def tests_action(self, action: str) -> bool:
        """Whether an action is one of ``actions``, in any spelling."""
        return not self.actions or canonical(action) in {canonical(a) for a in self.actions}

    def excludes(
        self, subject: str, action: str, trial: int | None = None, camera: str | None = None
    ) -> bool:
        """Whether ``exclusions`` leave a recording out; arguments as for :meth:`selects`."""
        return any(
            e.subject == subject
            and canonical(e.action) == canonical(action)
            and (trial is None or e.trial == trial)
            and (e.camera is None or e.camera == camera)
            for e in self.exclusions
        )

    def on_subjects(self, subjects: Collection[str], why: str) -> Protocol:
        """The same measurement on other subjects, with a name and a note that say so.

        Args:
            subjects: who is tested.
            why: one word for the name, such as ``val``.
        """
        return replace(
            self,
            name=f"{self.name} ({why})",
            test_subjects=tuple(subjects),
            note=f"{self.note} Measured on other subjects than the protocol's: "
            f"{' '.join(subjects)} ({why}).".strip(),
        )

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
# HumanEva-I in the joints of h36m_17, whose thorax stands for the data set's neck (or thorax).
_HUMANEVA_14 = (
    "l_shoulder", "l_elbow", "l_wrist", "r_shoulder", "r_elbow", "r_wrist",
    "l_hip", "l_knee", "l_ankle", "r_hip", "r_knee", "r_ankle", "head_top", "thorax",
)  # fmt: skip
_HUMANEVA_15 = ("pelvis", *_HUMANEVA_14)
# The columns of the papers' tables, in the names of the official list of actions.
_TOME_ORDER = (
    "Directions", "Discussion", "Eating", "Greeting", "Phoning", "TakingPhoto", "Posing",
    "Purchases", "Sitting", "SittingDown", "Smoking", "Waiting", "WalkingDog", "Walking",
    "WalkTogether",
)  # fmt: skip
_RPSM_ORDER = (
    "Directions", "Discussion", "Eating", "Greeting", "Phoning", "Posing", "Purchases", "Sitting",
    "SittingDown", "Smoking", "TakingPhoto", "Waiting", "Walking", "WalkingDog", "WalkTogether",
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
        action_order=_TOME_ORDER,
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
        action_order=_RPSM_ORDER,
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
        action_order=_TOME_ORDER,
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
        action_order=_TOME_ORDER,
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
        action_order=_RPSM_ORDER,
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
        action_order=_RPSM_ORDER,
        note="Protocol #3 of Wang et al. 2019; no alignment is stated there but the root's. The "
        "numbers it is compared with in that paper (Tome's #2) are after Procrustes.",
    ),
    Protocol(
        name="humaneva-rpsm",
        dataset="HumanEva-I",
        train_subjects=("S1", "S2", "S3"),
        test_subjects=("S1", "S2", "S3"),
        fps=60.0,
        joints=_HUMANEVA_14,
        root_counted=False,
        aggregation="subjects",
        actions=("Walking", "Jogging", "Boxing"),
        origin="hips",
        action_order=("Walking", "Jogging", "Boxing"),
        by_subject=True,
        note="Lin et al. 2017 and Wang et al. 2019: trained on the sequences for training, tested "
        "on the `validation` sequences of the same subjects. `thorax` stands for the neck. Which "
        "point is moved to the origin is not in the papers; the 14 joints have no pelvis, so the "
        "middle of the hips, and mpjpe_centroid_mm is the error with the mean of the joints there.",
    ),
    Protocol(
        name="humaneva-katircioglu",
        dataset="HumanEva-I",
        train_subjects=("S1", "S2", "S3"),
        test_subjects=("S1", "S2", "S3"),
        cameras=("C1",),
        fps=60.0,
        joints=_HUMANEVA_15,
        alignment="rigid",
        aggregation="subjects",
        actions=("Walking",),
        action_order=("Walking",),
        by_subject=True,
        note="Katircioglu et al. 2017: first camera only, tested on the `validation` sequences; "
        "pre-trained on Walking of Human3.6M.",
    ),
    Protocol(
        name="kth-pcp",
        dataset="KTH Multiview Football II",
        train_subjects=("player 2, first half",),
        test_subjects=("player 2, second half",),
        joints=_FOURTEEN,
        root_counted=False,
        origin="hips",
        score="pcp_50",
        note="Katircioglu et al. 2017: ten parts (pelvis, torso, four pairs of limbs); `thorax` "
        "stands for the bottom of the head. The alignment is not in the paper: translation.",
    ),
    Protocol(
        name="mpi-inf-3dhp",
        dataset="MPI-INF-3DHP",
        train_subjects=tuple(f"S{i}" for i in range(1, 9)),
        test_subjects=tuple(f"TS{i}" for i in range(1, 7)),
        joints=_FOURTEEN,
        root_counted=False,
        score="pck_150mm",
        note="The official test set: valid frames only, poses on the universal skeleton "
        "(univ_annot3). Head top, neck (`thorax`), shoulders, elbows, wrists, hips, knees and "
        "ankles count; other papers count 17 joints.",
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
