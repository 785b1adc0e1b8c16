"""docs/zoo.md is of this zoo."""

from __future__ import annotations

from zoo import ZOO
from zoo.table import TARGET, networks_in


def test_the_table_lists_every_network_of_the_zoo_once_and_in_order():
    assert networks_in(TARGET.read_text()) == list(ZOO)


def test_every_network_of_the_table_is_exact_at_four_fractions():
    for line in TARGET.read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| network"):
            cells = [cell.strip().split() for cell in line.split("|")[6:-1]]
            assert len(cells) == 4 and all(float(cell[0]) <= 1e-5 for cell in cells), line
