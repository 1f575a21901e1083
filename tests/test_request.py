"""The flags of evaluation, before anything heavy loads."""

from __future__ import annotations

import pytest

from zoo.cli import main
from zoo.errors import UsageError
from zoo.request import _HELP, _OWN, parse_request


def test_protocol_and_compare() -> None:
    words = ["--method", "park", "--protocol", "p2-tome", "--compare", "--data.root", "x"]
    request = parse_request("test", words)
    assert (request.protocol, request.compare) == ("p2-tome", "")
    assert request.rest == ["--data.root", "x"]
    named = parse_request("test", ["--compare", "tome2017-table1", "--method=park"])
    assert named.compare == "tome2017-table1"
    assert parse_request("test", ["--method", "park"]).compare is None
    last = parse_request("test", ["--method", "park", "--compare"])
    assert last.compare == ""


@pytest.mark.parametrize(
    ("stage", "words", "says"),
    [
        ("test", ["--protocol", "p2_tome"], "did you mean p2-tome"),
        ("test", ["--protocol"], "--protocol needs a value"),
        ("test", ["--compare", "tome-table1"], "did you mean tome2017-table1"),
        ("validate", ["--compare"], "belongs to zoo test"),
        ("fit", ["--protocol", "p2-tome"], "belongs to zoo validate and zoo test"),
    ],
)
def test_wrong_flags_are_one_line(stage: str, words: list[str], says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        parse_request(stage, ["--method", "park", *words])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_help_without_a_method_lists_the_flags(
    stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([stage, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split()[0] for line in lines if line.startswith("  --")}
    assert {"--method", "--recipe", "--gpus", "--weights"} <= shown
    assert ("--resume" in shown) == (stage == "fit")
    assert ("--compare" in shown) == (stage == "test")


def test_every_flag_has_a_help() -> None:
    assert {flag.split()[0] for flag in _HELP} == set(_OWN) - {"--dataset"}  # an alias of --data
