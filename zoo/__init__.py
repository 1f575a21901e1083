"""zoo: papers on monocular 3D human pose as interchangeable Lightning modules.

``zoo.load("park").predict("photo.jpg")`` gives 3D poses; ``zoo fit --method park`` trains.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Names resolved on first use, so that `import zoo` loads neither torch nor any method.
_LAZY = {
    "Pose": "zoo.pose",
    "PoseModule": "zoo.base",
    "ZooError": "zoo.errors",
    "create": "zoo.registry",
    "lift": "zoo.lift2d",
    "list_models": "zoo.registry",
    "load": "zoo.checkpoint",
}

__all__ = ["Pose", "PoseModule", "ZooError", "__version__", "create", "lift", "list_models", "load"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
