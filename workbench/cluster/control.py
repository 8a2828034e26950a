"""Questions to the workers of a cluster, each with a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from distributed import Client

from workbench.errors import RunError

CONTROL_LIMIT_S = 10.0
"""Longest wait for an answer that takes milliseconds when all is well."""

_MARGIN_S = 1.0


class Control:
    """A way to workers that does not need their task threads, which may all be busy."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def workers(self) -> list[str]:
        """Return the addresses of the workers that there are now.

        Raises
        ------
        RunError
            The scheduler does not answer.
        """

        async def addresses() -> list[str]:
            return list(await self._client.ncores())

        found: list[str] = self.call(addresses, CONTROL_LIMIT_S)
        return found

    def ask(
        self,
        function: Callable[..., Any],
        *args: Any,
        workers: Iterable[str],
        timeout_s: float = CONTROL_LIMIT_S,
    ) -> dict[str, Any]:
        """Call a function on the event loops of ``workers``, all at once, and return the answers.

        A worker that fails, or gives no answer within ``timeout_s``, has the exception as its
        answer. Not to be called on Dask's own threads.

        Raises
        ------
        RunError
            The scheduler does not answer.
        """

        async def ask_one(worker: str) -> Any:
            try:
                call = self._client.run(function, *args, workers=[worker], on_error="return")
                return (await asyncio.wait_for(call, timeout_s))[worker]
            except Exception as error:
                return error

        async def ask_all() -> list[Any]:
            return await asyncio.gather(*map(ask_one, addresses))

        addresses = list(workers)
        if not addresses:
            return {}
        answers = self.call(ask_all, timeout_s + _MARGIN_S)
        return dict(zip(addresses, answers, strict=True))

    def call(self, coroutine_function: Callable[[], Any], timeout_s: float) -> Any:
        """Run a coroutine function on the client's event loop and return what it returns.

        Raises
        ------
        RunError
            It failed, or took longer than ``timeout_s``.
        """
        try:
            return self._client.sync(coroutine_function, callback_timeout=timeout_s)
        except (TimeoutError, OSError, RuntimeError) as error:
            raise RunError(f"The Dask scheduler does not answer: {error!r}.") from error
