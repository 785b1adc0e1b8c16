"""One generation in one record: what the live table shows and the journal keeps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tally:
    """What became of a generation's proposals before anything was fine-tuned.

    Args:
      proposed: expressions made.
      duplicates: those whose canonical form or behaviour was already known, or came twice.
      invalid: those whose scores were invalid.
      unique: those left; the generation is picked from them.
    """

    proposed: int = 0
    duplicates: int = 0
    invalid: int = 0
    unique: int = 0


@dataclass(frozen=True)
class GenerationSummary:
    """What one generation did, and where the search stands after it.

    Args:
      generation: its number; 0 is the library, own seeds and guesses.
      num_generations: number of the last generation that the config asks for.
      best_id, best_mean, best_se, best_text: the leader by mean minus standard error, after this generation.
      best_bases: bases the leader was tried on, over all tasks.
      proposed, unique, duplicates, invalid: see `Tally`.
      evaluated: new candidates fine-tuned in this generation.
      evaluated_total: the same, since the start.
      fine_tunings: fine-tunings run in this generation, references and re-evaluations included.
      fine_tunings_total: the same, since the start.
      references: fine-tunings of l2 under new keys, for the paired differences.
      reevaluations: fine-tunings of elites on further bases and keys.
      cache_hits: results that were already known from an equal plan.
      archive_size: number of members of the Pareto archive.
      seconds: wall-clock time of the generation, scoring included.
      eta_seconds: estimated time to the end, or None before it can be told.
    """

    generation: int
    num_generations: int
    best_id: int
    best_mean: float
    best_se: float
    best_text: str
    best_bases: int
    proposed: int
    unique: int
    duplicates: int
    invalid: int
    evaluated: int
    evaluated_total: int
    fine_tunings: int
    fine_tunings_total: int
    references: int
    reevaluations: int
    cache_hits: int
    archive_size: int
    seconds: float = 0.0
    eta_seconds: float | None = None


def estimate_seconds_left(seconds: list[float], generations_left: int) -> float | None:
    """The mean time of the last three generations, times those left; generation 0 only while alone.

    Example:
      >>> estimate_seconds_left([100.0, 10.0, 12.0, 14.0, 16.0], 2)
      28.0
    """
    recent = seconds[1:][-3:] or seconds
    return generations_left * sum(recent) / len(recent) if recent else None
