"""How much memory a rank has taken at most while it made its steps: measured, not predicted."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_CLEAR_PEAK = "5"
"""What Linux takes for: the peak of resident memory counts from now on."""

WORTH_TELLING_BYTES = 2**20


class PeakMemory:
    """The most memory from :meth:`begin` on, above what there was when this was made.

    On a GPU it is what torch's allocator has given out. On a CPU it is the resident memory that the
    process has for itself: with what torch keeps for later and the samples in hand, without pages
    of files (torch's own code, mapped data) and of shared memory (the rank's data, the mailboxes of
    messages). Linux tells the peak of all together, so of these as much is taken off as there is
    when :attr:`peak_bytes` is asked for.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before_bytes = self._now_bytes()
        self.told_bytes = 0

    def begin(self) -> None:
        """Count the peak from now on."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with suppress(OSError):  # then the peak of the whole life of the process counts
                _CLEAR.write_text(_CLEAR_PEAK)

    @property
    def peak_bytes(self) -> int:
        """The most so far."""
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = _status_bytes("VmHWM") - _status_bytes("RssFile") - _status_bytes("RssShmem")
        return max(0, peak - self._before_bytes)

    def grown(self) -> bool:
        """Return whether the peak is worth telling again; ``told_bytes`` is the one to tell."""
        peak_bytes = self.peak_bytes
        if grown := peak_bytes >= self.told_bytes + WORTH_TELLING_BYTES:
            self.told_bytes = peak_bytes
        return grown

    def _now_bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        return _status_bytes("RssAnon")


def _status_bytes(name: str) -> int:
    """Return an entry of what Linux tells of this process, which is in KiB."""
    lines = _STATUS.read_text().splitlines()
    found = next(line for line in lines if line.startswith(f"{name}:"))
    return int(found.split()[1]) * 1024
