"""Whether ranks go on, wait or end: told to rank 0, decided by all ranks at the same step."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter, sleep

import torch

from workbench.cluster.context import RankContext

LOOK_EVERY_S = 0.02
"""How long ranks that wait between steps leave the processor before they look for a command."""

_HALF = 0.5  # exact in the sum of any number of ranks


@dataclass(frozen=True)
class Verdict:
    """What all ranks have decided at the end of a step."""

    stop: bool
    pause: bool


class Pace:
    """A rank's part in decisions that all ranks make together, between steps.

    Commands are ``"stop"``, ``"pause"`` (after the step in hand), ``"resume"``, ``"step N"`` (N
    more steps, then a pause) and ``"written N"``, see :mod:`workbench.snapshots`. They reach ranks
    at different times, so each rank puts what it knows into one number, and what the ranks do
    follows from the sum: every rank that is told to stop adds 1; rank 0, which alone heeds those to
    pause and to go on, adds a half.
    """

    def __init__(self, context: RankContext) -> None:
        self.context, self.comm = context, context.comm
        self.stop_asked = False
        self.written = 0  # steps of the newest checkpoint that the client is done with
        self._left: int | None = None  # steps until the pause; None where none is wanted

    def vote(self) -> float:
        """Return what this rank adds to the sum at the end of a step."""
        self.listen()
        if self._left:
            self._left -= 1
        halt = self.context.rank == 0 and self._left == 0
        return float(self.stop_asked) + _HALF * halt

    @staticmethod
    def verdict(votes: float) -> Verdict:
        """Return what the sum of the votes of all ranks says."""
        return Verdict(stop=votes >= 1.0, pause=votes % 1.0 == _HALF)

    def wait(self, step: int) -> float:
        """Wait, all ranks together, until told to go on or to stop; return the seconds it took.

        ``stop_asked`` says, on all ranks alike, which of the two it was. The ranks meet every few
        milliseconds, so one that dies while they wait is noticed as in a step, and no collective
        waits for long.
        """
        start_s = perf_counter()
        first = self.context.rank == 0
        if first:
            self.context.send("pace", {"paused": True, "step": step})
        while True:
            self.listen()
            mine = float(self.stop_asked) + _HALF * (first and self._left != 0)
            said = self.verdict(self._sum(mine))
            if said.stop or said.pause:
                break
            sleep(LOOK_EVERY_S)
        self.stop_asked = said.stop
        if first:
            self.context.send("pace", {"paused": False, "step": step})
        return perf_counter() - start_s

    def _sum(self, mine: float) -> float:
        if self.comm.size == 1:
            return mine
        number = torch.tensor([mine], dtype=torch.float64, device=self.comm.device_type)
        return float(self.comm.all_reduce(number, name="pause"))

    def listen(self) -> None:
        """Take the commands that have come."""
        for command in self.context.commands():
            word, _, number = command.partition(" ")
            if word == "written":
                self.written = int(number)
            elif word == "stop":
                self.stop_asked = True
            elif word == "pause":
                self._left = 0
            elif word == "resume":
                self._left = None
            elif word == "step":
                self._left = (self._left or 0) + int(number)
