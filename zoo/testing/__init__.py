"""A conformance kit: does a method keep the contract of :class:`zoo.base.PoseModule`?

Plugin authors run it on their own method, and the zoo runs it on every registered name::

    import pytest, zoo.testing
    from my_package import MyLifter

    @pytest.mark.parametrize("check", zoo.testing.CHECKS, ids=lambda check: check.__name__)
    def test_contract(check):
        check(MyLifter)

Every check takes a factory (the class, whose ``tiny()`` is used, or a callable that returns a small
instance) and raises ``AssertionError`` with one line that names the broken rule.
:func:`check_method` runs them all. No data set is needed: the people are those of
:func:`random_batch`.
"""

from __future__ import annotations

from zoo.testing.checks import CHECKS, check_method
from zoo.testing.helpers import Factory
from zoo.testing.people import random_batch, random_poses

__all__ = ["CHECKS", "Factory", "check_method", "random_batch", "random_poses"]
