"""Many devices take as long as the slowest of them."""

from statistics import NormalDist

import pytest

from launcher.config.schema import Hardware
from launcher.plan.stragglers import SPREAD, slowest
from tests.factory import h100


def test_a_node_is_the_measure():
    assert slowest(Hardware.model_validate(h100(num_nodes=1))) == 1


@pytest.mark.parametrize("nodes", [2, 64, 2048])
def test_more_devices_have_a_slower_slowest(nodes):
    deviates = [NormalDist().inv_cdf((n - 0.375) / (n + 0.25)) for n in (8 * nodes, 8)]
    longer = slowest(Hardware.model_validate(h100(num_nodes=nodes)))
    assert longer == pytest.approx(1 + SPREAD * (deviates[0] - deviates[1]), rel=1e-9)
