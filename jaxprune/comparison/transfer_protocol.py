"""Takes a frozen pruning function to a full-size network: base networks, equal pruning, equal fine-tuning, tests.

Every step that takes long ends with a line on the disk, so that the same call goes on where an interrupted one was.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jaxprune.comparison.training_checks import check_one_process
from jaxprune.comparison.transfer_cost import check_resources, transfer_cost
from jaxprune.comparison.transfer_folder import KnownTransfer, TransferFolder, check_folder
from jaxprune.comparison.transfer_networks import TransferNetworks
from jaxprune.comparison.transfer_records import DENSE, Accuracy, Scoring
from jaxprune.comparison.transfer_results import Transfer, save_transfer
from jaxprune.comparison.transfer_runs import TransferRun
from jaxprune.comparison.transfer_setup import TransferSetup, set_up_transfer
from jaxprune.comparison.transfer_trainings import TransferTrainings
from jaxprune.datasets.dataset import Dataset
from jaxprune.datasets.guarded_split import read_openings
from jaxprune.files import to_text
from jaxprune.hosts.agreement import check_one_folder, facts_of
from jaxprune.hosts.sharing import Hosts
from jaxprune.interrupts import Interrupted, Interrupts
from jaxprune.pruning.budgets import Scope
from jaxprune.scoring.lookup import Function
from jaxprune.training.recipes import Recipe
from jaxprune.training.training_run import TrainingInterrupted

OnMessage = Callable[[str], None]


def transfer(
    function: Function,
    *,
    network: str,
    data: str | Dataset,
    out: str | os.PathLike[str],
    recipe: str | Recipe,
    kept_fraction: float | None = None,
    macs_fraction: float | None = None,
    against: Sequence[str] = ("l1", "l2", "random"),
    name: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    weights: Sequence[str | os.PathLike[str]] = (),
    base_recipe: str | Recipe | None = None,
    scope: Scope = "group",
    multiple_of: int = 1,
    bases: int = 3,
    seed: int = 0,
    with_scratch: bool = True,
    calibration_images: int | None = None,
    coarse_classes: int | None = None,
    scoring: Scoring = "joint",
    image_size: int | None = None,
    workers: int = 0,
    on_message: OnMessage = lambda message: None,
    hosts: Hosts | None = None,
) -> Transfer:
    """Prunes a network by a function and by its rivals, to equal sizes, and fine-tunes all of them equally.

    Each base network is trained, or loaded; it is observed on training images, every function scores its channels, and
    as many of each group are kept for all functions. The slim networks are fine-tuned in the same order of images,
    and evaluated on validation images along the way. At the end the test images are opened once.

    Everything is kept in the folder `out`. The same call with the same settings goes on where an earlier one was,
    also inside a training, and ends with the same weights on the same devices.

    Args:
      function: what is transferred: a name, a formula, an expression or a metric.
      network: a name of `NETWORKS`, or `module:factory`.
      data: a data set, or a name that `load_dataset` takes.
      out: the folder.
      recipe: how pruned networks are fine-tuned, and the slim one from scratch.
      kept_fraction: share of the channels of each group that stays; either this or the next.
      macs_fraction: share of the multiply-adds that stays.
      against: names and formulas of rivals; "random" stands for random channels.
      name: of the function's row; by default its own.
      data_dir: where prepared sets are.
      weights: checkpoints of base networks instead of training; base b starts from number b modulo their count.
      base_recipe: how base networks are trained; by default the usual one beside `recipe`.
      scope: "group", one share for every group; or "global", as many channels of each group as the function keeps on
        the first base if all channels compete in one ranking.
      multiple_of: kept counts are multiples of this.
      bases: number of base networks, the unit of means and standard errors.
      seed: initial networks, data orders and random channels follow from it.
      with_scratch: whether there is a row for the slim network from a new initialisation.
      calibration_images: number of training images to observe, equally many of each class.
      coarse_classes: number of clusters of classes to observe instead of all classes.
      scoring: "joint", all layers on one pass; or "sequential", each on activations of pruned earlier layers.
      image_size: side of images of many sizes, which are then decoded batch by batch.
      workers: processes that decode.
      on_message: is told how it goes.
      hosts: the processes that share the trainings, all of which call this alike; None for one process. Process 0
        returns, the others leave at its end.

    Returns:
      All accuracies.

    Raises:
      ValueError: for arguments that do not fit, before anything is trained, and for a function without finite scores.
      ImportError: if packages for reading are missing.
      RunDirectoryError: if the folder is in use, of other settings, damaged, or cannot be written.
      TrainingInterrupted: after Ctrl-C or SIGTERM in a training, which was saved; with several processes, anywhere.
      HostsError: if another process failed.
      SystemExit: on other processes than 0, when everything is done.
    """
    _check_processes(hosts)
    setup = set_up_transfer(
        function,
        name=name,
        against=against,
        network=network,
        data=data,
        data_dir=data_dir,
        weights=weights,
        kept_fraction=kept_fraction,
        macs_fraction=macs_fraction,
        scope=scope,
        multiple_of=multiple_of,
        recipe=recipe,
        base_recipe=base_recipe,
        bases=bases,
        seed=seed,
        with_scratch=with_scratch,
        calibration_images=calibration_images,
        coarse_classes=coarse_classes,
        scoring=scoring,
        image_size=image_size,
        workers=workers,
    )
    return run_transfer(setup, out, on_message=on_message, hosts=hosts)


def run_transfer(
    setup: TransferSetup,
    out: str | os.PathLike[str],
    *,
    on_message: OnMessage = lambda message: None,
    hosts: Hosts | None = None,
) -> Transfer:
    """Runs a transfer that was set up, or goes on with it.

    Args:
      setup: what `set_up_transfer` returned.
      out: the folder.
      on_message: is told how it goes.
      hosts: the processes that share the trainings, as for `transfer`.

    Returns:
      All accuracies, which are also in `transfer.json`.

    Raises:
      ValueError, RunDirectoryError, TrainingInterrupted, HostsError, SystemExit: as `transfer`.
    """
    _check_processes(hosts)
    path = Path(out)
    if hosts is None:
        return _run(setup, path, on_message, None)
    hosts.watch.again = (
        "Start all processes again in the same way: trainings go on from their last checkpoints."
    )
    hosts.agree("settings", facts_of(to_text(setup.document())))
    if hosts.is_leader:
        check_folder(path, setup.document())
    check_one_folder(hosts, path, option="--out")
    if not hosts.is_leader:
        networks = TransferNetworks(setup, KnownTransfer(path))
        TransferTrainings(networks, lambda message: None, hosts)
        hosts.serve()
    interrupts = Interrupts()
    try:
        with interrupts, interrupts.at_once():
            return _run(setup, path, on_message, hosts)
    except KeyboardInterrupt as stop:
        if isinstance(stop, Interrupted):
            raise
        raise TrainingInterrupted(
            f"The transfer was interrupted and saved in {path}. Start it again in the same way to go on.",
            interrupts.received or signal.SIGINT,
        ) from stop


def _check_processes(hosts: Hosts | None) -> None:
    """Checks that several processes are meant to share the transfer."""
    if hosts is None:
        check_one_process(
            "a transfer without hosts=", "Pass the processes that `joined` yields: hosts=hosts."
        )


def _run(setup: TransferSetup, path: Path, on_message: OnMessage, hosts: Hosts | None) -> Transfer:
    """Runs a transfer on this process, and on others that share its trainings."""
    check_folder(path, setup.document())
    check_resources(transfer_cost(setup), path)
    with TransferFolder(path, setup.document(), on_message) as folder:
        run = TransferRun(setup, folder, on_message, hosts)
        bases = range(setup.settings.bases)
        run.plan_bases()
        names = run.names
        run.finetune(names)
        _test(run, names)
        opened = read_openings(run.test_record) if folder.test else ()
        rows = folder.rows
        result = Transfer(
            setup.settings,
            setup.facts(run.counts),
            tuple(rows[base, row] for base in bases for row in (DENSE, *names)),
            folder.refused,
            _in_order(folder.test, names, setup.settings.bases),
            opened,
        )
        save_transfer(path, result)
        return result


def _test(run: TransferRun, names: Sequence[str]) -> None:
    """Opens the test images, if there are any, and measures all networks that were not measured yet."""
    bases = range(run.setup.settings.bases)
    guarded, done = run.setup.data.test, run.folder.test
    missing = [(base, name) for base in bases for name in (DENSE, *names) if (base, name) not in done]
    if guarded is None or not missing:
        return
    # An opening that an interruption cut short is added to, not hidden.
    opened = guarded.open(run.test_record, reopen=run.test_record.exists())
    for base, name in missing:
        run.test(base, name, opened)


def _in_order(
    test: Mapping[tuple[int, str], Accuracy], names: Sequence[str], bases: int
) -> dict[tuple[int, str], Accuracy]:
    """The accuracies on test images in the order of the rows."""
    keys = ((base, name) for base in range(bases) for name in (DENSE, *names))
    return {key: test[key] for key in keys if key in test}
