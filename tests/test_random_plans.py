"""Random plans on random meshes of eight devices: the sharded step equals one device's."""

from __future__ import annotations

import pytest

from tests.fuzz import plans
from tests.fuzz.checks import Tally


@pytest.mark.parametrize("seed", [4, 12, 22, 24])
def test_a_random_plan_computes_what_one_device_does(seed: int) -> None:
    case, failure = plans.checked(seed, tally := Tally())
    assert failure is None, f"{case}: {failure}"
    assert tally.counts["pairs (plan, mesh) compared"] == 1
