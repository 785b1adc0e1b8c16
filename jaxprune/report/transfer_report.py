"""Writes the report of a transfer: `report.md` and its figures, from `transfer.json` alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from jaxprune.comparison.published_results import published_results
from jaxprune.comparison.transfer_records import DENSE, Accuracy, TransferRow
from jaxprune.comparison.transfer_results import Transfer, load_transfer, mean_accuracy
from jaxprune.figures.kept_channels import kept_channels_figure
from jaxprune.figures.style import save_figure
from jaxprune.figures.transfer_figures import transfer_curves_figure
from jaxprune.files import write_atomically
from jaxprune.text import duration, markdown_table, with_error

_DECIMALS = 2


def write_transfer_report(folder: str | os.PathLike[str]) -> Path:
    """Writes `report.md` and its figures into the folder of a finished transfer.

    Args:
      folder: holds `transfer.json`.

    Returns:
      The path of the report.

    Raises:
      ImportError: if matplotlib is missing.
      RunDirectoryError: if there is no finished transfer, its file is damaged, or something cannot be written.
    """
    place = Path(folder)
    transfer = load_transfer(place)
    save_figure(transfer_curves_figure(transfer), place / "figures" / "curves.png")
    facts, title = transfer.facts, f"Channels of {transfer.settings.network}"
    save_figure(kept_channels_figure(facts.widths, facts.kept, title), place / "figures" / "kept.png")
    path = place / "report.md"
    write_atomically(path, transfer_text(transfer), again="give the command of the transfer again")
    return path


def transfer_text(transfer: Transfer) -> str:
    """Returns the report as Markdown.

    Args:
      transfer: a finished one.
    """
    sections = [
        f"# Transfer to {transfer.settings.title}",
        _introduction(transfer),
        "## Accuracies",
        accuracy_table(transfer),
        _legend(transfer),
        "## Paired differences",
        difference_table(transfer),
        *_published(transfer),
        "## Fine-tuning",
        "![Validation accuracy over the epochs of fine-tuning](figures/curves.png)",
        "## Channels",
        "Every function keeps equally many channels of each group; which ones is in `networks/*.plan.json`.",
        "![Channels of each group, and how many stay](figures/kept.png)",
        _kept_table(transfer),
    ]
    return "\n\n".join(sections) + "\n"


def accuracy_table(transfer: Transfer) -> str:
    """Returns a table of all rows: accuracy before, after pruning and after fine-tuning, and size.

    Args:
      transfer: a finished one.
    """
    facts, bases = transfer.facts, range(transfer.settings.bases)
    dense = [transfer.row(base, DENSE) for base in bases]
    sizes = [_millions(facts.slim_macs), _millions(facts.slim_parameters)]
    rows = [
        [
            DENSE, "", _accuracies([row.after for row in dense]), _test_cell(transfer, DENSE),
            _millions(facts.macs), _millions(facts.parameters), _time_cell(dense),
        ]
    ]  # fmt: skip
    for name in transfer.names:
        found = [transfer.row(base, name) for base in bases]
        before = [row.before for row in found if row.before is not None]
        cells = [_accuracies(before), _accuracies([row.after for row in found])]
        rows.append([_code(name), *cells, _test_cell(transfer, name), *sizes, _time_cell(found)])
    header = [
        "row", "right after pruning", "after fine-tuning", "test", "million MACs", "million parameters", "time",
    ]  # fmt: skip
    return markdown_table(header, rows)


def difference_table(transfer: Transfer) -> str:
    """Returns a table of the first function's paired differences to every other row.

    Args:
      transfer: a finished one.
    """
    if len(transfer.names) == 0:
        return "No function has a plan on every base network."
    first = transfer.names[0]
    rows = []
    for rival in (*transfer.names[1:], DENSE):
        difference = transfer.paired(first, rival)
        text = with_error(difference.mean, difference.se, signed=True, decimals=_DECIMALS)
        rows.append([_code(rival) if rival != DENSE else DENSE, text, str(difference.n)])
    images = "test" if transfer.is_tested else "validation"
    header = [f"{_code(first)} minus", f"points of top-1 on {images} images ± SE", "n bases"]
    return markdown_table(header, rows)


def _introduction(transfer: Transfer) -> str:
    """What was done, in a paragraph, and which functions took part."""
    settings, facts = transfer.settings, transfer.facts
    budget = (
        f"{settings.kept_fraction:.0%} of the channels of each group"
        if settings.kept_fraction is not None
        else f"at most {settings.macs_fraction:.0%} of the multiply-adds"
    )
    base = (
        f"loaded from {', '.join(settings.weights)}"
        if settings.base_recipe is None
        else f"trained by recipe {settings.base_recipe.name} ({settings.base_recipe.epochs} epochs)"
    )
    lines = [
        f"{settings.bases} base network{'s' if settings.bases > 1 else ''}, {base}, keep {budget}: "
        f"{facts.slim_macs / facts.macs:.1%} of the multiply-adds ({facts.macs / facts.slim_macs:.2f}x fewer) and "
        f"{facts.slim_parameters / facts.parameters:.1%} of the parameters. Scores are {settings.scoring}, on "
        f"{settings.calibration_images:,} training images. Each pruned network is fine-tuned by recipe "
        f"{settings.recipe.name} ({settings.recipe.epochs} epochs, batches of {settings.recipe.batch_size}), on one "
        "base network in the same order of images for all functions.",
        "",
        f"Images: {facts.num_train:,} for training, {facts.num_validation:,} for validation, cut from the training "
        f"images, of {facts.num_classes} classes. {facts.data_source}",
        "",
        *(f"- {_code(name)}: `{text}`" for name, text in settings.functions.items() if name != text),
    ]
    if len(settings.weights) and len(settings.weights) < settings.bases:
        lines += [
            "",
            f"> {len(settings.weights)} checkpoint(s) serve {settings.bases} bases: standard errors are partly or "
            "wholly those of data orders, and too small for base networks.",
        ]
    for name, reason in transfer.refused.items():
        lines += ["", f"> {_code(name)} was left out: {reason}"]
    return "\n".join(lines)


def _legend(transfer: Transfer) -> str:
    """What the columns of the table mean."""
    top5 = " / top-5" if transfer.rows and transfer.rows[0].after.top5 is not None else ""
    opened = f" Test images were opened at {', '.join(transfer.opened)}." if transfer.opened else ""
    lines = [
        f'Accuracies are top-1{top5} in percent, mean ± standard error over base networks; "right after pruning" and '
        f'"after fine-tuning" are on validation images.{opened} Time is that of one training. `random` keeps random '
        "channels; `scratch` is the slim network from a new initialisation, trained as the others are fine-tuned."
    ]
    fallbacks = {row.name: len(row.fallback_groups) for row in transfer.rows if row.fallback_groups}
    lines += [
        f"{_code(name)} scored all channels alike in {count} group(s), which l2 ordered instead."
        for name, count in fallbacks.items()
    ]
    return " ".join(lines)


def _published(transfer: Transfer) -> list[str]:
    """A table of published results, where there are any for this network and these images."""
    settings, facts = transfer.settings, transfer.facts
    found = published_results(settings.network, settings.data, facts.num_train + facts.num_validation)
    if not found:
        return []
    rows = []
    for name in transfer.names:
        ours, dense = (np.mean([each.top1 for each in transfer.final(row)]) for row in (name, DENSE))
        cost = f"{facts.slim_macs / facts.macs:.1%} left"
        rows.append(
            [f"ours: {_code(name)}", f"{ours:.2f}", f"{dense:.2f}", f"{dense - ours:+.2f}", cost, "this run"]
        )
    for each in found:
        drop = "" if each.dense is None else f"{each.dense - each.top1:+.2f}"
        dense_text = "" if each.dense is None else f"{each.dense:.2f}"
        rows.append([each.method, f"{each.top1:.2f}", dense_text, drop, each.cost, each.source])
    header = ["method", "top-1", "dense", "drop", "multiply-adds", "source"]
    return [
        "## Published results",
        "Recipes and base networks differ between sources, so this is an orientation, not a comparison.",
        markdown_table(header, rows),
    ]


def _kept_table(transfer: Transfer) -> str:
    """How many channels of each group stay."""
    widths, kept = transfer.facts.widths, transfer.facts.kept
    rows = [[f"`{group}`", str(width), str(kept.get(group, width))] for group, width in widths.items()]
    return markdown_table(["group", "channels", "kept"], rows)


def _accuracies(found: list[Accuracy]) -> str:
    """Mean and standard error of top-1, and of top-5 where there is one."""
    if not found:
        return ""
    text = with_error(*mean_accuracy([each.top1 for each in found]), decimals=_DECIMALS)
    top5 = [each.top5 for each in found if each.top5 is not None]
    return f"{text} / {with_error(*mean_accuracy(top5), decimals=_DECIMALS)}" if top5 else text


def _test_cell(transfer: Transfer, name: str) -> str:
    """Accuracy on test images, or nothing."""
    return _accuracies(transfer.final(name)) if transfer.is_tested else ""


def _time_cell(rows: list[TransferRow]) -> str:
    """Mean time of a training."""
    seconds = float(np.mean([row.seconds for row in rows]))
    return duration(seconds) if seconds else ""


def _millions(count: int) -> str:
    """A count in millions, to three digits."""
    return f"{count / 1e6:,.1f}" if count >= 1e8 else f"{count / 1e6:.3g}"


def _code(name: str) -> str:
    """A row's name as code."""
    return f"`{name}`"
