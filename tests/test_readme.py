"""The README says what the registry and the command line really hold."""

from __future__ import annotations

import re
from pathlib import Path

from zoo.info import registry_table

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_table_is_the_registrys() -> None:
    found = re.search(r"<!-- registry:begin -->\n(.*?)\n<!-- registry:end -->", README, re.S)
    assert found is not None
    assert found[1] == registry_table()


def test_every_command_in_it_exists() -> None:
    from zoo.cli import COMMANDS

    used = set(re.findall(r"^zoo (\w+)", README, re.M))
    assert {"fit", "predict", "list"} <= used
    assert used <= set(COMMANDS)


def test_pictures_and_documents_it_links_exist() -> None:
    root = Path(__file__).resolve().parent.parent
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (root / link).exists()] == []
