"""Whether the groups that ranks want to form fit together."""

from __future__ import annotations

from collections.abc import Sequence


def disagreement(named: Sequence[Sequence[int]], ranks: Sequence[int]) -> str | None:
    """Return why the groups are no partition, in the same words on every rank; None if they are.

    Parameters
    ----------
    named:
        The members of its group as each rank names them.
    ranks:
        The numbers by which the sentence calls the ranks.
    """

    def say(rank: int) -> str:
        return f"rank {ranks[rank]}"

    def group(members: Sequence[int]) -> str:
        return str([ranks[m] if 0 <= m < len(ranks) else f"unknown {m}" for m in members])

    for rank, members in enumerate(named):
        if rank not in members:
            return f"{say(rank)} names the group {group(members)}, which it does not belong to"
        if list(members) != sorted({*members}):
            return f"{say(rank)} names the group {group(members)}, which does not ascend"
        for other in members:
            if not 0 <= other < len(named):
                return f"{say(rank)} names the group {group(members)}; no such rank exists"
            if list(named[other]) != list(members):
                return (
                    f"{say(rank)} names the group {group(members)}, "
                    f"{say(other)} the group {group(named[other])}"
                )
    return None
