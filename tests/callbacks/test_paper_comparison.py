from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from callback_toy import ToyData, ToyLifter, trainer

from callbacks.paper_comparison import PaperComparison
from zoo.errors import UsageError


def test_ours_stand_beside_the_papers(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    model, data = ToyLifter(), ToyData()
    run = trainer(tmp_path, PaperComparison("toy", "rpsm2017-table4"))
    run.test(model, datamodule=data, verbose=False)
    assert model.test_metrics is not None
    walking = model.test_metrics.per_action()["walking"]["mpjpe_mm"]
    (document,) = json.loads((tmp_path / "comparison.json").read_text())
    assert document["table"] == "rpsm2017-table4"
    assert document["measured"][document["columns"].index("Walk")] == pytest.approx(walking)
    assert document["measured"][document["columns"].index("Photo")] is None
    assert len(document["rows"]) == 9
    assert "toy data" in document["measured_definition"]
    assert document["same_protocol"] is False
    shown = capsys.readouterr().out
    assert "Lin, Lin, Liang, Wang, Cheng, CVPR 2017, Table 4" in shown
    assert "RPSM-3-stage_sharing" in shown
    assert "NOT COMPARABLE" in shown
    assert f"{walking:.2f}" in shown
    assert max(len(line) for line in shown.splitlines()) <= 120


def test_misprints_are_marked(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = trainer(tmp_path, PaperComparison("toy", "ssc2019-table2-protocol1"))
    run.test(ToyLifter(), datamodule=ToyData(), verbose=False)
    shown = capsys.readouterr().out
    assert "86.26*" in shown
    assert "Walk: should be 71.36" in " ".join(shown.split())


def test_nothing_fits(tmp_path: Path) -> None:
    run = trainer(tmp_path, PaperComparison("toy"))
    with pytest.raises(UsageError, match="no stored table has protocol toy"):
        run.test(ToyLifter(), datamodule=ToyData(), verbose=False)
    assert not (tmp_path / "comparison.json").exists()
