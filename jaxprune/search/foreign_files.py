"""Refuses a run directory that holds no run, but files of others that a run and its report would replace."""

from __future__ import annotations

import os
from pathlib import Path

_RUN_FILES = ("config.json", "journal.jsonl", "state.json")
"""Files by which a folder is known as a run."""

_REPLACED = ("report.md", "figures", "final.json", "archive.json", "hall_of_fame.csv")
"""What a run writes, and its report, without looking at what is there."""


def refuse_foreign_files(run_dir: Path) -> None:
    """Checks that nothing in a folder would be replaced that is of no run; to be called before anything is made there.

    Args:
      run_dir: the folder; it need not exist.

    Raises:
      ValueError: if it holds no run, but files of the names that a run writes.

    Example:
      >>> import tempfile
      >>> refuse_foreign_files(Path(tempfile.mkdtemp()))
    """
    if any(os.path.lexists(run_dir / name) for name in _RUN_FILES):
        return
    others = [str(run_dir / name) for name in _REPLACED if os.path.lexists(run_dir / name)]
    if others:
        raise ValueError(
            f"a run replaces {', '.join(others)}, and {run_dir} holds no run that this is of. Choose another run "
            "directory (--run-dir)."
        )
