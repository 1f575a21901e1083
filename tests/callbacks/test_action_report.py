from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from callback_toy import ToyData, ToyLifter, trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from callbacks.action_report import ActionReport
from zoo.errors import OutputError


def read_csv(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["action"]: row for row in csv.DictReader(file)}


def test_csv_json_and_table_agree(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    log = CSVLogger(tmp_path / "run", name=None, version="")
    run = trainer(tmp_path, ActionReport(tmp_path / "out" / "copy.json"), logger=log)
    (logged,) = run.test(ToyLifter(), datamodule=ToyData(), verbose=False)
    rows = read_csv(tmp_path / "run" / "per_action.csv")
    assert list(rows) == ["walking", "sitting", "mean over actions", "all frames"]
    assert [int(r["samples"]) for r in rows.values()] == [5, 5, 10, 10]
    walking, sitting = (float(rows[a]["mpjpe_mm"]) for a in ("walking", "sitting"))
    assert walking != sitting
    assert float(rows["mean over actions"]["mpjpe_mm"]) == pytest.approx((walking + sitting) / 2)
    assert float(rows["all frames"]["mpjpe_mm"]) == pytest.approx(logged["test/mpjpe_mm"], rel=1e-4)
    assert all(r["protocol"] == "toy" for r in rows.values())
    assert "root not counted" in rows["walking"]["definition"]

    text = (tmp_path / "run" / "per_action.json").read_text()
    assert (tmp_path / "out" / "copy.json").read_text() == text
    document = json.loads(text)
    assert document["definition"] == rows["walking"]["definition"]
    assert document["protocol"]["test_subjects"] == ["B"]
    assert document["method"] == "ToyLifter"
    assert document["results"]["mpjpe_mm"] == pytest.approx(logged["test/mpjpe_mm"])
    assert document["per_action"]["walking"]["mpjpe_mm"] == pytest.approx(walking, abs=1e-3)
    assert document["metrics"]["mpjpe_mm"]

    shown = capsys.readouterr().out
    assert f"{walking:.1f}" in shown
    assert "PA-MPJPE" in shown
    assert "toy data" in shown


def test_a_second_test_overwrites_the_first(tmp_path: Path) -> None:
    run = trainer(tmp_path, ActionReport())
    run.test(ToyLifter(), datamodule=ToyData(), verbose=False)
    run.test(ToyLifter(), datamodule=ToyData(test_size=4), verbose=False)
    rows = read_csv(tmp_path / "per_action.csv")
    assert int(rows["all frames"]["samples"]) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["per_action.csv", "per_action.json"]


def test_a_trial_run_writes_only_what_was_asked_for(tmp_path: Path) -> None:
    run = trainer(tmp_path, ActionReport(tmp_path / "copy.json"), fast_dev_run=True)
    run.test(ToyLifter(), datamodule=ToyData(), verbose=False)
    assert [p.name for p in tmp_path.iterdir()] == ["copy.json"]


def test_without_a_datamodule_there_is_nothing_to_report(tmp_path: Path) -> None:
    loader = DataLoader(ToyData().test_set, batch_size=4)
    trainer(tmp_path, ActionReport()).test(ToyLifter(), dataloaders=loader, verbose=False)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = trainer(tmp_path, ActionReport(tmp_path / "file" / "out.json"))
    with pytest.raises(OutputError, match=r"cannot write .*out\.json"):
        run.test(ToyLifter(), datamodule=ToyData(), verbose=False)
