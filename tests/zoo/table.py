"""Writes docs/zoo.md: what jaxprune prunes of every network of the zoo, what it leaves and why, and how exactly.

PYTHONPATH=.:tests:tests/support python tests/zoo/table.py        takes about 10 minutes on two CPU cores
    ... tests/zoo/table.py lenet5 vgg16        updates these rows alone
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jaxprune.structure.groups import Structure
from zoo import ZOO

TARGET = Path(__file__).resolve().parents[2] / "docs" / "zoo.md"

HEAD = """# What jaxprune prunes of which network

Every network below is pruned without hints. jaxprune traces the network to find its groups, a fraction of the channels
of each group is kept at random, and the outputs of the slim network are compared with those of an oracle. The oracle is
the full-size network with its pruned channels set to zero, its norms computed over the kept channels only, its softmax
without the pruned experts, and its attention scaled by the kept size of a head. The networks are the small ones of
`tests/zoo`, with random weights; they have every structural feature of the published networks.

- *groups*: sets of channels that are kept or removed together.
- *channels*: how many of the channels that kernels and embeddings make are in groups, out of all such channels.
- *frozen*: the reasons why axes stay whole, with the number of axes. Image axes of convolutions are left out.
- *10 % to 75 %*: how many of the channels are kept. The number is the largest difference of any output from the
  oracle's output in float32, relative to the scale of the output. If float32 rounding alone makes a difference above
  1e-5, both networks are run in float64 (*double*): several norms in a row over two nearly equal channels magnify
  rounding. At 10 %, a norm over one channel or dead channels can make an output that does not depend on the input
  (*constant*).

`PYTHONPATH=.:tests:tests/support python tests/zoo/table.py` writes this page.

| network | parameters | groups | channels | frozen | 10 % | 25 % | 50 % | 75 % |
|---|---|---|---|---|---|---|---|---|
"""


def channels_of(structure: Structure) -> tuple[int, int]:
    """Counts the indices of the last axes of kernels and embeddings: (those in groups, all)."""
    free = total = 0
    for path in structure.trained:
        shape = structure.shapes[path]
        if len(shape) > 1:
            total += shape[-1]
            fields = structure.layouts[path][-1]
            free += sum(any(field.channels[index] >= 0 for field in fields) for index in range(shape[-1]))
    return free, total


def reasons_of(structure: Structure) -> str:
    """Lists the reasons, without source lines, with the number of axes that each of them freezes."""
    counts: Counter[str] = Counter()
    for reason in structure.frozen.values():
        short = re.sub(r" at \S+:\d+ \(.*?\)", "", reason.split("; ")[0].split(": when some")[0])
        short = re.sub(r" \(\d+ of \d+ indices\)$", "", short)
        if short != "an image axis of a convolution":
            counts[short] += 1
    return "; ".join(f"{reason} ({count})" for reason, count in counts.most_common())


def row_of(name: str) -> str:
    """Prunes one network and returns its line of the table."""
    from zoo_cases import FRACTIONS, QUICK, case_of, compare

    structure = case_of(name).structure
    free, total = channels_of(structure)
    cells = [name, f"{structure.count_parameters():,}", str(len(structure.groups)), f"{free} / {total}"]
    cells.append(reasons_of(structure))
    for fraction in FRACTIONS:
        result = compare(name, QUICK, kept_fraction=fraction)
        is_single = result.double_error is None
        error = f"{result.error:.0e}" if is_single else f"{result.double_error:.0e} *double*"
        if not result.is_exact:
            error = f"**{error}**"
        cells.append(error if result.is_sensitive else f"{error} *constant*")
    return f"| {' | '.join(cells)} |\n"


def networks_in(text: str) -> list[str]:
    """Returns the names in the first column of a table.

    Example:
      >>> networks_in("| network | a |\\n|---|---|\\n| lenet5 | 3 |\\n")
      ['lenet5']
    """
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    return [name for name in names if name != "network"]


def main(names: Sequence[str]) -> None:
    """Computes the rows of these networks, or of all networks, and writes the page after each row."""
    lines = TARGET.read_text().splitlines()
    rows = {networks_in(line)[0]: f"{line}\n" for line in lines if networks_in(line)}
    for name in names or ZOO:
        rows[name] = row_of(name)
        TARGET.write_text(HEAD + "".join(rows[network] for network in ZOO if network in rows))


if __name__ == "__main__":
    main(sys.argv[1:])
