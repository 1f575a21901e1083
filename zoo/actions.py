"""One spelling for the names that papers and data sets give to an action."""

from __future__ import annotations

__all__ = ["canonical"]

# One action under the names that papers and data sets give it.
_ACTIONS: dict[str, tuple[str, ...]] = {
    "directions": ("direction",),
    "discussion": ("discuss",),
    "eating": ("eat",),
    "greeting": ("greet",),
    "phoning": ("phone", "phone talk"),
    "photo": ("taking photo", "takingphoto"),
    "posing": ("pose",),
    "purchases": ("purchase", "buying"),
    "sitting": ("sit",),
    "sitting down": ("sitdown", "sittingdown"),
    "smoking": ("smoke",),
    "waiting": ("wait",),
    "walking dog": ("walk dog", "walkdog", "walkingdog"),
    "walking": ("walk",),
    "walking together": (
        "walk together", "walktogether", "walkingtogether", "walk pair", "walkpair", "walking pair",
    ),
    "jogging": ("jog",),
    "boxing": ("box",),
    "average": ("avg.", "avg", "avg. (all)", "all parts", "mean over actions", "average"),
}  # fmt: skip
_CANONICAL = {alias: name for name, aliases in _ACTIONS.items() for alias in (name, *aliases)}


def canonical(name: str) -> str:
    """One spelling for the names of an action: ``WalkPair`` is ``walking together``.

    A subject after the action stays there: ``Walk S1`` is ``walking s1``. A name that no paper here
    uses is returned in lower case.
    """
    plain = " ".join(name.replace("_", " ").lower().split())
    if plain in _CANONICAL:
        return _CANONICAL[plain]
    action, _, last = plain.rpartition(" ")
    if action in _CANONICAL and last:
        return f"{_CANONICAL[action]} {_CANONICAL.get(last, last)}"
    return plain
