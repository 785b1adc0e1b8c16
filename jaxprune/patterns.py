"""Names that are chosen by other names and by shell patterns."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase


def matching(pattern: str, names: Collection[str]) -> list[str]:
    """Returns the names that a pattern matches; a pattern that is a name matches only that.

    Example:
      >>> matching("conv*", ["conv1.kernel", "dense.kernel"]), matching("a[0]", ["a[0]", "a0"])
      (['conv1.kernel'], ['a[0]'])
    """
    return [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]


def check_patterns(option: str, patterns: Collection[str], names: Collection[str]) -> None:
    """Checks that every pattern matches a group.

    Raises:
      ValueError: for patterns that match nothing, all of them.
    """
    unmatched = [pattern for pattern in patterns if not matching(pattern, names)]
    if unmatched:
        raise ValueError(f"{option} needs names or patterns of groups, {', '.join(names)}, got {unmatched}.")


def chosen_groups(
    names: Collection[str], groups: str | Sequence[str] | None, ignore: str | Sequence[str]
) -> list[str]:
    """Returns the groups that a pattern of `groups` matches and none of `ignore` does, in their order.

    Args:
      names: of all groups.
      groups: names or patterns, or one of them; None stands for all groups.
      ignore: likewise.

    Raises:
      ValueError: for patterns that match nothing.

    Example:
      >>> chosen_groups(["conv1", "conv2", "dense"], "conv*", ["conv2"])
      ['conv1']
    """
    wanted, unwanted = ["*"] if groups is None else as_list(groups), as_list(ignore)
    if groups is not None:
        check_patterns("groups", wanted, names)
    check_patterns("ignore", unwanted, names)
    included, left_out = (
        {name for pattern in patterns for name in matching(pattern, names)} for patterns in (wanted, unwanted)
    )
    return [name for name in names if name in included - left_out]


def as_list(patterns: str | Sequence[str]) -> list[str]:
    """Returns a list of patterns; a text alone is one."""
    return [patterns] if isinstance(patterns, str) else list(patterns)
