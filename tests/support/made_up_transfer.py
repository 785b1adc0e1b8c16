"""A finished transfer with made-up numbers, for reports and figures."""

from __future__ import annotations

from jaxprune.comparison.transfer_records import DENSE, Accuracy, TransferFacts, TransferRow, TransferSettings
from jaxprune.comparison.transfer_results import Transfer
from jaxprune.training.recipes import RECIPES

ROWS = ("winner", "l1", "random")


def made_up_transfer(
    *, network: str = "resnet56", data: str = "tfds:cifar10", bases: int = 2, weights: tuple[str, ...] = ()
) -> Transfer:
    """Two base networks of 90 and 92 %; the winner loses 1 point, l1 2 and 3, random channels 5."""
    settings = TransferSettings(
        functions={"winner": "mean(X)*2", "l1": "sum(abs(WI))"},
        controls=("random",),
        network=network,
        data=data,
        recipe=RECIPES["cifar_finetune"],
        base_recipe=None if weights else RECIPES["cifar_base"],
        weights=weights,
        kept_fraction=None,
        macs_fraction=0.5,
        scope="group",
        multiple_of=1,
        bases=bases,
        seed=0,
        calibration_images=2000,
        coarse_classes=None,
        scoring="joint",
        image_size=None,
    )
    facts = TransferFacts(
        num_classes=10,
        image_shape=(32, 32, 3),
        num_train=40_000,
        num_validation=10_000,
        data_fingerprint="0" * 16,
        data_source="made up",
        widths={"stem.kernel": 16, "head.kernel": 64},
        kept={"stem.kernel": 8, "head.kernel": 32},
        macs=125_000_000,
        parameters=850_000,
        slim_macs=62_500_000,
        slim_parameters=400_000,
    )
    rows, test = [], {}
    for base in range(bases):
        dense = 90.0 + 2 * base
        losses = {DENSE: 0.0, "winner": 1.0, "l1": 2.0 + base, "random": 5.0}
        for name, loss in losses.items():
            after = Accuracy(dense - loss, 99.0)
            before = None if name == DENSE else Accuracy(30.0, 70.0)
            kind = {DENSE: "base", "random": "random"}.get(name, "function")
            curve = ((1.0, after.top1 - 1), (2.0, after.top1))
            row = TransferRow(base, name, kind, before, after, curve, 100, 75.0, 1, f"{base}{name}", "", ())
            rows.append(row)
            test[base, name] = Accuracy(after.top1 - 0.5, 98.5)
    return Transfer(
        settings, facts, tuple(rows), {"fdr": "base 0: not finite"}, test, ("2026-01-01T00:00:00+00:00",)
    )
