"""Our pages in the dashboard of a Dask scheduler, loaded by name as Dask loads its preloads.

What the pages are is in :mod:`workbench.dashboard`, which draws with what is above this room.
"""

from __future__ import annotations

import pickle
from contextlib import suppress
from importlib import import_module

from distributed import Client, Scheduler
from distributed.preloading import process_preloads

from workbench.cluster.control import CONTROL_LIMIT_S, Control
from workbench.cluster.feed import Feed, News

PAGES = "workbench.dashboard"
"""The module to preload into a scheduler: ``dask scheduler --preload workbench.dashboard``."""

PUBLISH = "workbench_publish"
"""What a scheduler with our pages can be asked: to take a pickled :class:`News`."""


def list_pages() -> None:
    """List our pages for every scheduler that this process makes from now on."""
    with suppress(ImportError):  # without Bokeh there is no dashboard at all
        import_module(PAGES)


async def load_pages(*, dask_scheduler: Scheduler) -> bool:
    """Give a running scheduler our pages, if it has a dashboard; return whether it has them."""
    if PUBLISH not in dask_scheduler.handlers:
        [preload] = process_preloads(dask_scheduler, PAGES, [])
        await preload.start()
    return PUBLISH in dask_scheduler.handlers


def feed_for(client: Client, control: Control) -> Feed:
    """Return the feed to the pages of a client's scheduler; it is off if there are none."""

    async def load() -> bool:
        return bool(await client.run_on_scheduler(load_pages))

    def publish(news: News) -> None:
        message = pickle.dumps(news)

        async def send() -> None:
            await getattr(client.scheduler, PUBLISH)(news=message)

        control.call(send, CONTROL_LIMIT_S)

    found = False
    with suppress(Exception):  # whatever this is, a lab works as well without pages
        found = control.call(load, CONTROL_LIMIT_S)
    return Feed(publish if found else None)
