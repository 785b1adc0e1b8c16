"""Which formulas say the same: rank correlations of all with all, clustered, printed and drawn."""

from __future__ import annotations

from pathlib import Path

import config
import numpy as np
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from scipy.spatial.distance import squareform

import jaxprune as jp
from jaxprune.figures.style import DARK, new_figure, save_figure
from jaxprune.scoring.rank_correlation import rank_correlations
from jaxprune.scoring.ranking import Scored


def clusters(
    formulas: list[jp.Expression], scored: list[Scored], known: dict[str, Scored], picture: Path
) -> dict[str, object]:
    """Groups formulas by how alike they rank the channels, prints and draws the groups."""
    good = [i for i, each in enumerate(scored) if each.status == "ok" and not each.constant_groups]
    names = [name for name, each in known.items() if each.status == "ok"]
    rows = [scored[i] for i in good] + [known[name] for name in names]
    table = np.mean([rank_correlations([each.scores[g] for each in rows]) for g in scored[0].scores], axis=0)
    size = len(good)
    alike = np.abs(table)  # a reversed order says as much
    upper = alike[:size, :size][np.triu_indices(size, 1)]
    twins = float(np.mean(np.max(alike[:size, :size] - 2 * np.eye(size), axis=1) > 0.999))
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(np.stack([ranks(each) for each in rows[:size]])))[::-1]
    effective = float(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())
    print(f"{size} formulas rank every group: |rank correlation| of two has median {np.median(upper):.2f}")
    print(f"{twins:.0%} have a twin (above 0.999); they span {effective:.1f} effective dimensions")
    tree = linkage(squareform(1 - alike[:size, :size], checks=False), "average")
    label = fcluster(tree, 1 - config.ALIKE, "distance")
    largest = sorted({*label}, key=lambda each: -np.sum(label == each))
    print(f"{len(largest)} clusters, the {config.NUM_SHOWN} largest by the formula in their middle:")
    found = []
    for number in largest[: config.NUM_SHOWN]:
        members = np.flatnonzero(label == number)
        middle = members[np.argmax(alike[np.ix_(members, members)].sum(1))]
        near = alike[middle, size:]
        best = int(np.argmax(near))
        found.append({
            "size": len(members), "middle": str(formulas[good[middle]]), "nearest": names[best],
            "likeness": round(float(near[best]), 3),
        })  # fmt: skip
        print(
            f"  {len(members):4} like {str(formulas[good[middle]])[:70]:70}  near {names[best]} ({near[best]:.2f})"
        )
    draw(alike[:size, :size][np.ix_(leaves_list(tree), leaves_list(tree))], picture)
    return {"ranking": size, "median_likeness": float(np.median(upper)), "twins": twins,
            "effective_dimensions": effective, "num_clusters": len(largest), "clusters": found}  # fmt: skip


def ranks(each: Scored) -> np.ndarray:
    return np.concatenate([np.argsort(np.argsort(values)) / len(values) for values in each.scores.values()])


def draw(table: np.ndarray, picture: Path) -> None:
    with new_figure(5, 4.2) as figure:
        import matplotlib as mpl

        axes = figure.add_subplot()
        image = axes.imshow(table, cmap=mpl.colormaps["Blues"].resampled(10), vmin=0, vmax=1)
        axes.set_title(f"{len(table)} random formulas, clustered", color=DARK)
        axes.set_xlabel("formula")
        axes.set_ylabel("formula")
        figure.colorbar(image, ax=axes, shrink=0.7, label="rank correlation, magnitude")
    print("wrote", save_figure(figure, picture).name)
