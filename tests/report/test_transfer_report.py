"""The report of a transfer shows accuracies, paired differences, published results and what has to be known."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from made_up_transfer import made_up_transfer

from jaxprune.comparison.transfer_folder import file_name
from jaxprune.comparison.transfer_records import DENSE
from jaxprune.comparison.transfer_results import mean_accuracy, save_transfer, write_summary
from jaxprune.files import RunDirectoryError
from jaxprune.report.transfer_report import (
    accuracy_table,
    difference_table,
    transfer_text,
    write_transfer_report,
)


def test_differences_are_paired_by_base():
    transfer = made_up_transfer()
    assert transfer.paired("winner", "l1") == (
        1.5,
        0.5,
        2,
    )  # 1 and 2 points; over rows the spread is 2 points
    table = difference_table(transfer)
    assert "| `l1` | +1.50 ± 0.50 | 2 |" in table and "| dense | -1.00 ± 0.00 | 2 |" in table
    assert "test images" in table


def test_the_table_has_every_row_with_means_over_bases():
    table = accuracy_table(made_up_transfer())
    assert (
        "| dense |  | 91.00 ± 1.00 / 99.00 ± 0.00 | 90.50 ± 1.00 / 98.50 ± 0.00 | 125.0 | 0.85 | 1:15 |"
        in table
    )
    assert "| `winner` | 30.00 ± 0.00 / 70.00 ± 0.00 | 90.00 ± 1.00 / 99.00 ± 0.00 |" in table
    assert "| 62.5 | 0.4 |" in table


def test_published_results_stand_beside_ours_on_the_whole_set_alone():
    text = transfer_text(made_up_transfer())
    assert "| ours: `winner` | 89.50 | 90.50 | +1.00 | 50.0% left | this run |" in text
    assert "| GReg | 93.55 | 93.53 | -0.02 | 2.1x faster | Torch-Pruning" in text
    assert "Published results" not in transfer_text(made_up_transfer(data="cifar-part"))


@pytest.mark.parametrize("data", ["/somewhere/mine.npz", "mine.npz", "folder/mine.npz/"])
def test_files_are_called_by_their_last_name(data):
    assert transfer_text(made_up_transfer(data=data)).startswith("# Transfer to resnet56 on mine.npz\n")


def test_the_text_says_what_was_done_and_left_out():
    text = transfer_text(made_up_transfer())
    assert text.startswith("# Transfer to resnet56 on tfds:cifar10\n")
    for part in (
        "2 base networks, trained by recipe cifar_base (200 epochs), keep at most 50% of the multiply-adds",
        "50.0% of the multiply-adds (2.00x fewer)",
        "- `winner`: `mean(X)*2`",
        "> `fdr` was left out: base 0: not finite",
        "Test images were opened at 2026-01-01T00:00:00+00:00.",
        "| `stem.kernel` | 16 | 8 |",
    ):
        assert part in text, part


def test_bases_from_one_checkpoint_are_said_to_count_data_orders():
    text = transfer_text(made_up_transfer(weights=("given",)))
    assert "loaded from given" in text and "1 checkpoint(s) serve 2 bases" in text


def test_a_group_that_l2_ordered_is_named():
    transfer = made_up_transfer()
    rows = tuple(
        replace(row, fallback_groups=("stem.kernel",)) if row.name == "winner" else row
        for row in transfer.rows
    )
    text = transfer_text(replace(transfer, rows=rows))
    assert "`winner` scored all channels alike in 1 group(s), which l2 ordered instead." in text


def test_without_test_images_validation_images_count():
    transfer = replace(made_up_transfer(), test={}, opened=())
    assert [each.top1 for each in transfer.final(DENSE)] == [90.0, 92.0]
    assert "validation images" in difference_table(transfer) and "opened" not in transfer_text(transfer)


def test_the_summary_has_every_row_on_every_base():
    summary = made_up_transfer().summary()
    assert summary["top1"]["winner"] == {
        "before": [30.0, 30.0], "after": [89.0, 91.0], "test": [88.5, 90.5], "seconds": [75, 75],
    }  # fmt: skip
    assert summary["differences"]["l1"] == {"mean": 1.5, "se": 0.5, "n": 2}
    assert mean_accuracy([1.0]) == (1.0, None)


def test_the_summary_of_a_finished_transfer_is_written_as_json(tmp_path):
    save_transfer(tmp_path, made_up_transfer())
    write_summary(tmp_path, tmp_path / "results" / "case.json")
    written = json.loads((tmp_path / "results" / "case.json").read_text())
    assert written == json.loads(json.dumps(made_up_transfer().summary()))


def test_report_and_figures_are_written_beside_the_result(tmp_path):
    pytest.importorskip("matplotlib")
    save_transfer(tmp_path, made_up_transfer())
    path = write_transfer_report(tmp_path)
    assert path.read_text() == transfer_text(made_up_transfer())
    for name in ("curves", "kept"):
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_there_is_no_report_without_a_result(tmp_path):
    with pytest.raises(RunDirectoryError, match="needs a finished transfer"):
        write_transfer_report(tmp_path)


@pytest.mark.parametrize("name", ["mean(X)*2", "mean(X)/2", "a/b", "..", "ü", "x" * 300])
def test_rows_have_names_of_files_of_their_own(name):
    assert "/" not in file_name(name) and len(file_name(name)) < 60 and file_name(name)[0] not in ".-"
    assert file_name(name) != file_name(f"{name} ")
