"""Writes docs/zoo.md: what is pruned of every network of the zoo, what is not and why, and how exact the rest is.

PYTHONPATH=.:tests:tests/support python tests/zoo/table.py        about 10 minutes on two CPU cores
    ... tests/zoo/table.py lenet5 vgg16        these rows alone
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

Every network below is pruned with no hints: its groups are found by tracing it, a fraction of the channels of each
group is kept at random, and the slim network is compared with an oracle that is not slim: the full-size network with
pruned channels zeroed, its norms over what is kept, a softmax without pruned experts, attention scaled by the kept size
of a head. The networks are the small ones of `tests/zoo`, with random weights; they have every structural feature of
the published ones.

- *groups*: sets of channels that are kept or removed together.
- *channels*: how many of those that kernels and embeddings make are in groups, of all.
- *frozen*: why axes stay, and how many of them. Image axes of convolutions are left out.
- *10 % to 75 %*: of the channels kept; the largest difference of any output from the oracle's, relative to the output's
  scale, in float32. Where float32 rounding alone is more than 1e-5, both are run in float64 (*double*): norms over two
  nearly equal channels, one after another, magnify rounding. At 10 %, a norm over one channel or dead channels can
  leave an output that does not depend on the input (*constant*).

Made by `PYTHONPATH=.:tests:tests/support python tests/zoo/table.py`.

| network | parameters | groups | channels | frozen | 10 % | 25 % | 50 % | 75 % |
|---|---|---|---|---|---|---|---|---|
"""


def channels_of(structure: Structure) -> tuple[int, int]:
    """Indices of the last axes of kernels and embeddings: how many are in groups, and all."""
    free = total = 0
    for path in structure.trained:
        shape = structure.shapes[path]
        if len(shape) > 1:
            total += shape[-1]
            fields = structure.layouts[path][-1]
            free += sum(any(own.channels[index] >= 0 for own in fields) for index in range(shape[-1]))
    return free, total


def reasons_of(structure: Structure) -> str:
    """Reasons without source lines, and how many axes each of them keeps."""
    counts: Counter[str] = Counter()
    for reason in structure.frozen.values():
        short = re.sub(r" at \S+:\d+ \(.*?\)", "", reason.split("; ")[0].split(": when some")[0])
        short = re.sub(r" \(\d+ of \d+ indices\)$", "", short)
        if short != "an image axis of a convolution":
            counts[short] += 1
    return "; ".join(f"{reason} ({count})" for reason, count in counts.most_common())


def row_of(name: str) -> str:
    """One line of the table."""
    from zoo_cases import FRACTIONS, QUICK, case_of, compare

    structure = case_of(name).structure
    free, total = channels_of(structure)
    cells = [name, f"{structure.count_parameters():,}", str(len(structure.groups)), f"{free} / {total}"]
    cells.append(reasons_of(structure))
    for fraction in FRACTIONS:
        found = compare(name, QUICK, kept_fraction=fraction)
        exact = f"{found.error:.0e}" if found.double_error is None else f"{found.double_error:.0e} *double*"
        if not found.is_exact:
            exact = f"**{exact}**"
        cells.append(exact if found.is_sensitive else f"{exact} *constant*")
    return f"| {' | '.join(cells)} |\n"


def networks_in(text: str) -> list[str]:
    """Names in the first column of the table.

    Example:
      >>> networks_in("| network | a |\\n|---|---|\\n| lenet5 | 3 |\\n")
      ['lenet5']
    """
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    return [name for name in names if name != "network"]


def main(names: Sequence[str]) -> None:
    """Makes the rows of these networks anew, or of all."""
    known = {
        networks_in(line)[0]: f"{line}\n" for line in TARGET.read_text().splitlines() if networks_in(line)
    }
    for name in names or ZOO:
        known[name] = row_of(name)
        TARGET.write_text(HEAD + "".join(known[own] for own in ZOO if own in known))


if __name__ == "__main__":
    main(sys.argv[1:])
