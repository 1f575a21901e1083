"""The pose priors that ship with the zoo: the section ``priors`` of ``registry.yaml``."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from zoo.errors import CheckpointError, suggest
from zoo.prior import Prior
from zoo.registry import resource, section

__all__ = ["DEFAULT_PRIOR", "load_prior", "prior_names"]

DEFAULT_PRIOR = "cmu-mixture"


def prior_names() -> list[str]:
    """Names of the shipped priors."""
    return list(section("priors"))


def load_prior(name: str | Path = DEFAULT_PRIOR) -> Prior:
    """A shipped prior by name, or one of a file of ``zoo prior fit``.

    Raises:
        zoo.errors.CheckpointError: no such prior, the file is missing or damaged, or a shipped file
            is not the registered one.
    """
    text = str(name)
    if isinstance(name, Path) or text.endswith(".safetensors") or "/" in text:
        return Prior.load(name)
    entries = section("priors")
    if text not in entries:
        raise CheckpointError(
            f"{suggest(text, entries, 'pose prior')}, or give a .safetensors file"
        )
    return _shipped(text)


@lru_cache(maxsize=8)
def _shipped(name: str) -> Prior:
    entry: dict[str, Any] = section("priors")[name]
    path = resource(entry["file"])
    if not path.exists():
        raise CheckpointError(f"the prior {name} is not at {path}; fit one: {entry['command']}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != entry["sha256"]:
        raise CheckpointError(
            f"{path}: sha256 {digest[:12]}... is not the registered {entry['sha256'][:12]}...; "
            "the file is damaged or was replaced: restore it from the release"
        )
    return Prior.load(path)
