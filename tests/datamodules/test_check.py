"""`zoo data check`: identifies, counts, proves the geometry, and says what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.check import check, samples
from datamodules.synth import human36m_cdf
from datamodules.synth.people import make_people
from tests.conftest import CliResult
from zoo.cli import main
from zoo.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("check") / "h36m"
    people = make_people(("S1", "S9"), ("Directions", "Greeting"), (1, 2), 6)
    human36m_cdf.write_poses(root, people)
    (root / "metadata.xml").write_text(human36m_cdf.metadata_xml(people.cameras, people))
    return root


def shift(path: Path, by: tuple[float, float]) -> None:
    import cdflib

    pose = np.asarray(cdflib.CDF(path).varget("Pose")).reshape(-1, 32, 2)
    human36m_cdf.write_cdf(path, pose + np.array(by))


def test_a_good_folder(folder: Path) -> None:
    report, recordings = check(folder)
    facts = report.as_dict()
    assert facts["format"] == "human36m-cdf"
    assert facts["subjects"] == {"S1": 16, "S9": 16}
    assert facts["actions"] == ["Directions", "Greeting"]
    assert list(facts["cameras"]) == ["54138969", "55011271", "58860488", "60457274"]
    assert facts["cameras"]["54138969"] == [1000, 1002]
    assert facts["frames"] == facts["poses_3d"] == facts["poses_2d"] == 32 * 6
    assert facts["faults"] == []
    assert facts["reprojection_px"]["max"] < 1e-3
    assert [n for name, n in facts["noted"].items() if name.startswith("S9 Greeting")] == [4]
    assert facts["pictures"] == "none"
    assert json.loads(json.dumps(facts)) == facts
    assert len(samples(recordings, 5)) == 5


def test_the_shifted_sequence_is_the_worst(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "h36m"
    shutil.copytree(folder, root)
    shift(next(root.rglob("D2_Positions/Greeting.58860488.cdf")), (30.0, 40.0))
    report, _ = check(root)
    assert report.worst[0].label == "S1 Greeting trial 2 camera 58860488"
    assert report.worst[0].mean_px == pytest.approx(50, abs=1e-2)
    assert report.worst[1].mean_px < 1e-3


def test_all_faults_are_listed_and_the_rest_is_read(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "h36m"
    shutil.copytree(folder, root)
    flat = sorted(root.rglob("D2_Positions/*.cdf"))
    flat[0].write_bytes(b"")
    flat[9].unlink()
    (root / "S9" / "Videos").mkdir()
    (root / "S9" / "Videos" / "Directions.54138969.mp4").write_bytes(b"\0" * 1000)
    report, recordings = check(root)
    assert len(recordings) == 30
    assert len(report.faults) == 3
    assert all("\n" not in fault for fault in report.faults)
    text = "\n".join(report.lines())
    assert text.count("FAULT") == 3
    assert "missing       S1: 14 of 14 recordings without pictures" in text


def test_a_wrong_unit_is_noticed(folder: Path, tmp_path: Path) -> None:
    import cdflib

    root = tmp_path / "h36m"
    shutil.copytree(folder, root)
    for path in root.rglob("D3_Positions_mono/Directions.*.cdf"):
        pose = np.asarray(cdflib.CDF(path).varget("Pose")).reshape(-1, 32, 3)
        human36m_cdf.write_cdf(path, pose / 1000)
    report, _ = check(root)
    assert len(report.faults) == 8
    assert "mm apart; is the unit another one?" in report.faults[0]


def test_no_folder_and_no_format(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        check(tmp_path / "gone")
    with pytest.raises(DataError, match="of no known format"):
        check(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        check(tmp_path / "gone", "human36m-cdf")


def test_the_command_and_its_sheet(
    folder: Path,
    tmp_path: Path,
    zoo_cli: Callable[..., CliResult],
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = zoo_cli("data", "check", folder, "--json", "--sheet", "sheet.png")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["recordings"] == 32
    assert any(line.startswith("S5: no poses") for line in facts["missing"])
    with Image.open(tmp_path / facts["sheet"]) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    assert pixels.shape[0] > 500
    # Left limbs orange, right ones blue, the projections red.
    for colour in ((255, 127, 14), (31, 119, 180), (214, 39, 40)):
        assert (np.abs(pixels - colour).sum(-1) < 60).sum() > 100
    assert main(["data", "check", str(tmp_path / "gone")]) == 2
    assert capsys.readouterr().err == f"zoo: error: {tmp_path / 'gone'}: no such folder\n"
