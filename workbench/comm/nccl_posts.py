"""Messages over NCCL that wait for nobody: what a pipeline sends while it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from workbench.comm.calls import Call

Finish = Callable[[dist.Work, str], None]


class NcclPosts:
    """One group of NCCL for messages to higher ranks, and one for those to lower ranks.

    NCCL puts all messages between two ranks, of both directions, on one stream of the GPU, and a
    message there holds up the next until its receiver takes it. With both directions apart, what
    one rank has posted to another never stands before what that one has posted to it, so that two
    ranks that both post before they take do not wait for each other for ever.

    Both sides of a pair begin with the same message, as they do under every schedule: the first one
    of a direction makes the connection, and until then its sender waits too.

    Parameters
    ----------
    make:
        Makes a group, given a name that is the same on all ranks; needs no other rank.
    finish:
        Waits until the GPU has done something, within the time limit; also given what that is.
    """

    def __init__(self, rank: int, make: Callable[[str], Any], finish: Finish) -> None:
        self._rank, self._make, self._finish = rank, make, finish
        self._groups: dict[bool, Any] = {}
        # What is under way, with the tensors that must stay until then.
        self._posted: list[tuple[int, dist.Work, Tensor, Tensor]] = []

    def post(self, to: int, label: Call, flat: Tensor) -> None:
        """Send ``flat`` with what it is."""
        group = self._group(upwards=to > self._rank)
        self._posted = [each for each in self._posted if not each[1].is_completed()]
        said = torch.tensor(label, device=flat.device)
        work = group.send([said], to, 0)
        if flat.numel():
            work = group.send([flat.view(torch.uint8)], to, 0)
        self._posted.append((to, work, said, flat))

    def take(self, source: int, flat: Tensor) -> tuple[Call, Callable[[], None]]:
        """Return what comes from ``source`` next, and what waits until it is in ``flat``."""
        group = self._group(upwards=self._rank > source)
        heard = torch.empty(3, dtype=torch.int64, device=flat.device)
        what = f"a message from rank {source}"
        of_label = group.recv([heard], source, 0)
        of_data = group.recv([flat.view(torch.uint8)], source, 0) if flat.numel() else of_label
        self._finish(of_label, what)
        first, second, third = heard.tolist()
        return (first, second, third), lambda: self._finish(of_data, what)

    def settle(self) -> None:
        """Return when all that was posted has been taken."""
        posted, self._posted = self._posted, []
        for to, work, *_ in posted:
            self._finish(work, f"a message to rank {to}")

    def close(self) -> None:
        """Let go of the groups, whoever waits."""
        for group in self._groups.values():
            group.abort()
        self._groups.clear()
        self._posted.clear()

    def _group(self, *, upwards: bool) -> Any:
        if upwards not in self._groups:
            self._groups[upwards] = self._make(f"posts {'up' if upwards else 'down'}")
        return self._groups[upwards]
