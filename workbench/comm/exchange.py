"""Messages that are under way while their ranks compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor


class Exchange:
    """What :meth:`workbench.comm.comm.Comm.start_exchange` has begun."""

    def __init__(self, incoming: Mapping[int, Tensor], finish: Callable[[], None] | None) -> None:
        self._incoming = incoming
        self._finish = finish

    def finish(self) -> Mapping[int, Tensor]:
        """Wait until all messages have gone through and return those received.

        A second call returns them again.
        """
        finish, self._finish = self._finish, None
        if finish is not None:
            finish()
        return self._incoming
