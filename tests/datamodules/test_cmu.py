"""The ASF/AMC reader against planted truths, a plain second implementation, and broken files."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from datamodules.asfamc import bone_ends, read_amc, read_asf
from datamodules.cmu import JOINT_ENDS, cut_glitches, joints, prepare_cmu, resample
from datamodules.motion import MotionBank
from zoo.errors import DataError, OutputError, ZooError
from zoo.skeleton import H36M_17

UNIT = 25.4 / 0.45

# name, parent, direction, length, axis, degrees of freedom
BONES = [
    ("lhipjoint", "root", (0.6, -0.8, 0.0), 2.0, (0, 0, 0), ""),
    ("lfemur", "lhipjoint", (0.0, -1.0, 0.0), 7.0, (0, 0, 20), "rx ry rz"),
    ("ltibia", "lfemur", (0.0, -1.0, 0.0), 7.0, (0, 0, 20), "rx"),
    ("rhipjoint", "root", (-0.6, -0.8, 0.0), 2.0, (0, 0, 0), ""),
    ("rfemur", "rhipjoint", (0.0, -1.0, 0.0), 7.0, (10, 30, -20), "rx ry rz"),
    ("rtibia", "rfemur", (0.0, -1.0, 0.0), 7.0, (0, 0, -20), "rx"),
    ("lowerback", "root", (0.0, 1.0, 0.0), 2.0, (0, 0, 0), "rx ry rz"),
    ("thorax", "lowerback", (0.0, 1.0, 0.0), 4.0, (0, 0, 0), "rx ry rz"),
    ("lowerneck", "thorax", (0.0, 1.0, 0.0), 1.0, (0, 0, 0), "rx ry rz"),
    ("upperneck", "lowerneck", (0.0, 1.0, 0.0), 1.0, (0, 0, 0), "rx ry rz"),
    ("head", "upperneck", (0.0, 1.0, 0.0), 1.0, (0, 0, 0), "rx ry rz"),
    ("lclavicle", "thorax", (1.0, 0.0, 0.0), 3.0, (0, 0, 0), "ry rz"),
    ("lhumerus", "lclavicle", (1.0, 0.0, 0.0), 5.0, (180, 30, 90), "rx ry rz"),
    ("lwrist", "lhumerus", (1.0, 0.0, 0.0), 5.0, (0, 0, 0), "ry"),
    ("rclavicle", "thorax", (-1.0, 0.0, 0.0), 3.0, (0, 0, 0), "ry rz"),
    ("rhumerus", "rclavicle", (-1.0, 0.0, 0.0), 5.0, (180, -30, -90), "rz rx ry"),
    ("rwrist", "rhumerus", (-1.0, 0.0, 0.0), 5.0, (0, 0, 0), "ry"),
]
DOF = {"root": "tx ty tz rx ry rz".split(), **{b[0]: b[5].split() for b in BONES if b[5]}}


def asf_text():
    lines = [
        "# a comment", ":version 1.10", ":name TEST", ":units", "  mass 1.0", "  length 0.45",
        "  angle deg", ":documentation", "  free text", ":root", "   order TX TY TZ RX RY RZ",
        "   axis XYZ", "   position 0 0 0", "   orientation 0 0 0", ":bonedata",
    ]  # fmt: skip
    for i, (name, _, direction, length, axis, dof) in enumerate(BONES, 1):
        lines += [
            "  begin",
            f"     id {i}",
            f"     name {name}",
            f"     direction {' '.join(map(str, direction))}",
            f"     length {length}",
            f"     axis {' '.join(map(str, axis))}  XYZ",
        ]
        if dof:
            lines += [f"    dof {dof}", "    limits (-160.0 20.0)"]
            lines += ["           (-70.0 70.0)"] * (len(dof.split()) - 1)
        lines.append("  end")
    lines += [":hierarchy", "  begin"]
    for parent in dict.fromkeys(b[1] for b in BONES):
        children = " ".join(b[0] for b in BONES if b[1] == parent)
        lines.append(f"    {parent} {children}")
    return "\r\n".join([*lines, "  end", ""])


def amc_text(frames):
    """Frames are dicts of values by bone; what is not given is 0."""
    lines = ["#!OML:ASF somewhere", ":FULLY-SPECIFIED", ":DEGREES"]
    for i, values in enumerate(frames, 1):
        lines.append(str(i))
        for name, dof in DOF.items():
            row = values.get(name, [0.0] * len(dof))
            lines.append(" ".join([name, *(f"{v:.8g}" for v in row)]))
    return "\n".join([*lines, ""])


def write(folder, frames, take="07_01"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "07.asf").write_text(asf_text(), newline="")
    (folder / f"{take}.amc").write_text(amc_text(frames))
    return folder / "07.asf", folder / f"{take}.amc"


def read(folder, frames):
    asf, amc = write(folder, frames)
    skeleton = read_asf(asf)
    return skeleton, read_amc(amc, skeleton)


def random_frames(count, seed=0, spread=60.0):
    rng = np.random.default_rng(seed)
    return [
        {n: rng.normal(0, spread, len(d)).tolist() for n, d in DOF.items()} for _ in range(count)
    ]


# ---- kinematics -----------------------------------------------------------------------------


def test_rest_pose_is_in_mm_with_z_up(tmp_path):
    place = [10.0, 16.0, -3.0, 0, 0, 0]
    skeleton, motion = read(tmp_path, [{"root": place}])
    got = joints(skeleton, motion)[0] / UNIT
    expected = {
        "pelvis": (10, 14.4, -3), "r_hip": (8.8, 14.4, -3), "r_knee": (8.8, 7.4, -3),
        "l_hip": (11.2, 14.4, -3), "l_ankle": (11.2, 0.4, -3), "spine": (10, 18, -3),
        "thorax": (10, 22.5, -3), "nose": (10, 24, -3), "head_top": (10, 25, -3),
        "l_shoulder": (13, 22, -3), "l_wrist": (23, 22, -3), "r_wrist": (-3, 22, -3),
    }  # fmt: skip
    for name, (x, y, z) in expected.items():
        np.testing.assert_allclose(got[H36M_17.index(name)], (x, -z, y), atol=1e-9, err_msg=name)


def test_planted_rotations(tmp_path):
    # A quarter turn about the bone's own x axis, which its axes tilt by 20 degrees about z.
    frames = [
        {"lfemur": [-90.0, 0, 0]},
        {"root": [0, 0, 0, 0, 90.0, 0]},
        {"lowerback": [90.0, 90, 0]},
    ]
    skeleton, motion = read(tmp_path, frames)
    ends = {k: v / UNIT for k, v in bone_ends(skeleton, motion).items()}
    tilt = np.radians(20)
    # The thigh's part along the x axis of its frame stays, the rest swings forward to +z.
    along = np.array([np.cos(tilt), np.sin(tilt), 0]) * -np.sin(tilt) * 7
    knee = ends["lhipjoint"][0] + along + [0, 0, 7 * np.cos(tilt)]
    np.testing.assert_allclose(ends["lfemur"][0], knee, atol=1e-9)
    # About y: x goes to -z.
    np.testing.assert_allclose(ends["lhipjoint"][1], [0, -1.6, -1.2], atol=1e-9)
    # rx first, then ry: up goes to front (+z), then to the side (+x).
    np.testing.assert_allclose(ends["lowerback"][2], [2, 0, 0], atol=1e-9)


def test_random_motion_equals_a_plain_implementation(tmp_path):
    frames = random_frames(4)
    skeleton, motion = read(tmp_path, frames)
    ends = bone_ends(skeleton, motion)
    for f, values in enumerate(frames):
        turn = {"root": Rotation.from_euler("xyz", values["root"][3:], degrees=True)}
        place = {"root": np.array(values["root"][:3])}
        for name, parent, direction, length, axis, dof in BONES:
            order = "".join(d[1] for d in dof.split()) or "x"
            own = Rotation.from_euler(order, values.get(name, [0.0]), degrees=True)
            c = Rotation.from_euler("xyz", axis, degrees=True)
            turn[name] = turn[parent] * c * own * c.inv()
            place[name] = place[parent] + turn[name].apply(np.array(direction) * length)
            np.testing.assert_allclose(ends[name][f] / UNIT, place[name], atol=1e-5, err_msg=name)


def test_order_of_bones_in_a_frame_does_not_matter(tmp_path):
    frames = random_frames(3)
    skeleton, motion = read(tmp_path, frames)
    _, amc = write(tmp_path, frames)
    lines = amc.read_text().splitlines()
    size = len(DOF) + 1
    second = lines[3 + size : 3 + 2 * size]
    amc.write_text(
        "\n".join([*lines[: 3 + size], second[0], *second[:0:-1], *lines[3 + 2 * size :]])
    )
    shuffled = read_amc(amc, skeleton)
    for name in DOF:
        np.testing.assert_array_equal(shuffled[name], motion[name])


def test_radians_and_other_length_units(tmp_path):
    frames = random_frames(2)
    skeleton, motion = read(tmp_path, frames)
    asf, amc = write(tmp_path / "rad", [])
    text = asf_text().replace("angle deg", "angle rad").replace("length 0.45", "length 1.0")
    for _, _, _, _, axis, _ in BONES:
        row = " ".join(map(str, axis))
        text = text.replace(f"axis {row}  XYZ", f"axis {' '.join(map(str, np.radians(axis)))}  XYZ")
    asf.write_text(text)
    in_radians = [
        {n: [np.radians(v) if d[0] == "r" else v for v, d in zip(f[n], DOF[n], strict=True)]
         for n in DOF}
        for f in frames
    ]  # fmt: skip
    amc.write_text(amc_text(in_radians).replace(":DEGREES", ":RADIANS"))
    other = read_asf(asf)
    np.testing.assert_allclose(
        joints(other, read_amc(amc, other)), joints(skeleton, motion) * 0.45, atol=1e-3
    )


# ---- resampling and cutting -----------------------------------------------------------------


def test_resample_is_linear_in_time():
    ramp = np.arange(25.0)[:, None, None] * np.ones((1, 17, 3))  # 24 / 120 s
    np.testing.assert_allclose(resample(ramp, 120)[:, 0, 0], np.arange(11) * 2.4)
    np.testing.assert_allclose(resample(ramp, 50), ramp)
    assert len(resample(ramp[:1], 120)) == 1
    assert len(resample(ramp[:3], 120)) == 1
    assert len(resample(np.zeros((343, 17, 3)), 120)) == 143


def test_glitches_are_cut_out():
    calm = np.zeros((200, 17, 3))
    assert cut_glitches(calm) == [slice(0, 200)]
    assert cut_glitches(calm[:24]) == []
    assert cut_glitches(calm[:1]) == []
    jump = calm.copy()
    jump[60:, 4] = 101.0  # a step: second differences at frames 59 and 60
    assert cut_glitches(jump) == [slice(0, 58), slice(62, 200)]
    jump[60:, 4] = [99.0, 0, 0]
    assert cut_glitches(jump) == [slice(0, 200)]
    spike = calm.copy()
    spike[10, 0, 2] = 300.0
    assert cut_glitches(spike) == [slice(13, 200)]  # what is before it is too short


# ---- the whole way --------------------------------------------------------------------------


def standing(count, height=16.0):
    return [{"root": [i * 0.01, height, 0, 0, 0, 0]} for i in range(count)]


def test_prepare_writes_a_motion_file(tmp_path):
    root = tmp_path / "subjects"
    write(root / "07", standing(121), "07_01")
    broken = standing(400)
    for frame in broken[200:]:
        frame["root"] = [*frame["root"][:2], 9.0, 0, 0, 0]
    write(root / "07", broken, "07_02")
    write(root / "07", standing(50), "07_03")  # 21 frames at 50 fps: too short
    out = tmp_path / "cmu.npz"
    written = prepare_cmu(root, out, progress=False)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["cmu.npz"]
    bank = MotionBank.from_npz(out)
    assert bank.names == written.names == ("cmu/07_01", "cmu/07_02#1", "cmu/07_02#2")
    assert list(bank.lengths[:1]) == [51]
    np.testing.assert_array_equal(bank.positions, written.positions)
    with np.load(out) as file:
        assert list(file["skeletons"]) == ["07"] * 3
        # Ankles are 0.4 units up (16 - 1.6 - 14) and belong at 80 mm.
        np.testing.assert_allclose(file["floor_offsets"], 0.4 * UNIT - 80, atol=1e-3)
    assert bank.positions[:, [3, 6], 2].mean() == pytest.approx(80, abs=0.01)
    assert bank.recording(0)[:, 0, 0].max() == pytest.approx(1.2 * UNIT, abs=0.1)


def _edit(old, new):
    def change(text):
        assert old in text
        return text.replace(old, new, 1)

    return change


def _line_of(text, start, nth=1):
    rows = [i for i, row in enumerate(text.splitlines(), 1) if row.strip().startswith(start)]
    return rows[nth - 1]


@pytest.mark.parametrize(
    ("change", "at", "message"),
    [
        (_edit(":hierarchy", ":hierarchie"), None, "section :hierarchy is missing"),
        (_edit(":bonedata", "#:bonedata"), None, "section :bonedata is missing"),
        (_edit(":root", ":units"), (":units", 2), "section :units comes twice"),
        (_edit("length 0.45", "length zero"), ("length", 1), "'zero' is not a number"),
        (_edit("length 0.45", "length 0"), ("length", 1), "length must be positive"),
        (_edit("angle deg", "angle turns"), ("angle", 1), "angle must be deg or rad"),
        (_edit("   axis XYZ", "   axis XYY"), ("axis XYY", 1), "axis order 'XYY'"),
        (_edit("   position 0 0 0", ""), ("order", 1), ":root has no position"),
        (_edit("order TX", "order TX TX"), ("order", 1), "'tx' is unknown or comes twice"),
        (_edit("direction 0.6", "direction"), ("direction", 1), "has 2 values; it takes 3"),
        (_edit("length 2.0", "length nan"), ("length nan", 1), "'nan' is not a finite number"),
        (_edit("dof rx ry rz", "dof rx ry rw"), ("dof", 1), "'rw' is unknown"),
        (_edit("name lfemur", "name lhipjoint"), ("begin", 2), "'lhipjoint' comes twice"),
        (_edit("     name lfemur", ""), ("begin", 2), "the bone begun here has no name"),
        (_edit("\r\n  end", ""), ("begin", 2), "the bone begun in line"),
        (_edit("name ltibia", "name ltibja"), ("lfemur ltibia", 1), "unknown bone 'ltibia'"),
        (_edit("    lfemur ltibia", "    lfemur shin"), ("lfemur shin", 1), "unknown bone 'shin'"),
        (_edit("    lfemur ltibia", ""), None, "bone 'ltibia' has no parent"),
        (_edit("    lfemur ltibia", "    ltibia lfemur"), ("ltibia lfemur", 1), "before it has"),
        (_edit("    lfemur ltibia", "    lfemur ltibia rfemur"), ("rhipjoint rfemur", 1),
         "'rfemur' has two parents"),
    ],
)  # fmt: skip
def test_broken_skeleton_files_name_the_line(tmp_path, change, at, message):
    asf, _ = write(tmp_path, standing(1))
    text = change(asf_text())
    asf.write_text(text, newline="")
    with pytest.raises(DataError, match=message) as caught:
        read_asf(asf)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{asf}:")
    if at:
        assert str(caught.value).startswith(f"{asf}:{_line_of(text, *at)}:")


@pytest.mark.parametrize(
    ("change", "at", "message"),
    [
        (_edit("lfemur 0 0 0", "lfemur 0 0"), ("lfemur", 1), "frame 1: lfemur has 2 values"),
        (_edit("ltibia 0\n", "ltibia 0 0\n"), ("ltibia", 1), "has 2 values; it takes 1"),
        (_edit("ltibia 0\n", "ltibia x\n"), ("ltibia", 1), "'x' is not a number"),
        (_edit("ltibia 0\n", "ltibia nan\n"), ("ltibia", 1), "'nan' is not a finite number"),
        (_edit("ltibia 0\n", "ltibia 1e400\n"), ("ltibia", 1), "not a finite number"),
        (_edit("ltibia 0\n", "tail 0\n"), ("tail", 1), "no moving bone 'tail'"),
        (_edit("ltibia 0\n", "lhipjoint 0\n"), ("lhipjoint", 1), "no moving bone 'lhipjoint'"),
        (_edit("ltibia 0\n", "rtibia 0\n"), ("rtibia", 2), "bone 'rtibia' comes twice"),
        (_edit("ltibia 0\n", ""), ("2", 1), "frame 1 has no ltibia"),
        (_edit("\n2\n", "\n3\n"), ("3", 1), "'3' where frame 2 should begin"),
        (_edit("\n1\n", "\n"), None, "no frame 1"),
        (_edit(":FULLY-SPECIFIED", ":PARTLY"), None, "FULLY-SPECIFIED is missing"),
        (_edit(":DEGREES", ":RADIANS"), None, "the angles' unit"),
        (lambda text: text[: text.rindex("rwrist")], None, "frame 3 has no rwrist"),
        (lambda text: text[: text.rindex(" 0\nrclavicle")], None, "frame 3: lwrist has 0 values"),
        (lambda text: "", None, "no frame 1"),
    ],
)
def test_broken_motion_files_name_the_line(tmp_path, change, at, message):
    asf, amc = write(tmp_path, standing(3))
    text = change(amc.read_text())
    amc.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_amc(amc, read_asf(asf))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{amc}:")
    if at:
        assert str(caught.value).startswith(f"{amc}:{_line_of(text, *at)}:")


def test_prepare_refuses_and_leaves_the_old_file(tmp_path):
    root, out = tmp_path / "in", tmp_path / "out" / "cmu.npz"
    out.parent.mkdir()
    out.write_bytes(b"precious")

    def refused(message, target=out):
        with pytest.raises(ZooError, match=message) as caught:
            prepare_cmu(root, target, progress=False)
        assert "\n" not in str(caught.value)
        assert out.read_bytes() == b"precious"
        assert list(out.parent.iterdir()) == [out]

    refused("no such folder")
    root.mkdir()
    refused("no .amc file")
    asf, amc = write(root, standing(100))
    refused("must end in .npz", out.with_suffix(".txt"))
    refused("its folder does not exist", tmp_path / "nowhere" / "cmu.npz")
    asf.unlink()
    refused("its skeleton 07.asf is nowhere")
    asf.write_text(asf_text().replace("lhumerus", "lupperarm"), newline="")
    amc.write_text(amc.read_text().replace("lhumerus", "lupperarm"))
    refused("07.asf: no bone 'lhumerus'")
    write(root, standing(100))
    write(root / "again", standing(100))
    refused("recording 07_01 is also")
    (root / "again" / "07_01.amc").unlink()
    write(root, standing(30))
    refused("no recording has 25 frames")
    amc.write_bytes(b"\xff\xfe\x00binary" * 50)
    refused("no frame 1")


def test_every_joint_has_its_bone():
    assert len(JOINT_ENDS) == 17
    assert {name for names in JOINT_ENDS for name in names} <= {b[0] for b in BONES}
    assert issubclass(OutputError, ZooError)


@pytest.mark.skipif("ZOO_CMU_DIR" not in os.environ, reason="ZOO_CMU_DIR is not set")
def test_official_files_agree_with_a_reference(tmp_path):
    """ZOO_CMU_DIR: a folder of ASF/AMC files; ZOO_CMU_NPZ: a motion file that has them too."""
    bank = prepare_cmu(Path(os.environ["ZOO_CMU_DIR"]), tmp_path / "cmu.npz", progress=False)
    assert len(bank) > 0
    speed = np.linalg.norm(np.diff(bank.recording(0), axis=0), axis=-1)
    assert speed.max() < 300
    if "ZOO_CMU_NPZ" not in os.environ:
        return
    reference = MotionBank.from_npz(os.environ["ZOO_CMU_NPZ"])
    shared = [name for name in bank.names if name in reference.names]
    assert shared
    for name in shared:
        ours = bank.recording(bank.names.index(name))
        theirs = reference.recording(reference.names.index(name))
        assert ours.shape == theirs.shape
        assert np.linalg.norm(ours - theirs, axis=-1).max() < 1.0, name
