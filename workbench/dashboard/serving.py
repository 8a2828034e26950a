"""How a scheduler comes to have our pages: listed before it is made, or given to it later.

A scheduler makes its web application from a table of pages, once. A page that is in the table
before that is like Dask's own. To a scheduler that runs, a second application is added; whether the
first one lists the new pages hangs on an attribute of Bokeh's that is not public, so without it
they are served and not listed.
"""

from __future__ import annotations

import logging
from typing import Any

from bokeh.server.tornado import BokehTornado
from distributed import Scheduler
from distributed.dashboard.core import BokehApplication
from distributed.dashboard.scheduler import applications, template_variables
from tornado.ioloop import IOLoop

from workbench.dashboard.board import Board
from workbench.dashboard.pages import PAGES

logger = logging.getLogger(__name__)


def list_pages() -> None:
    """List the pages for every scheduler that this process makes from now on."""
    applications.update(PAGES)


def dask_setup(scheduler: Scheduler) -> None:
    """Give a scheduler the pages, and what they show; nothing if it has them or no dashboard."""
    dashboards = [
        each
        for each in getattr(scheduler.http_application, "applications", ())
        if isinstance(each, BokehTornado)
    ]
    if not dashboards or Board.name in scheduler.plugins:
        return
    if not any(page in each.app_paths for each in dashboards for page in PAGES):
        _serve(scheduler, dashboards[0])
    _put_into_menu(template_variables(scheduler))
    Board().attach(scheduler)


def _serve(scheduler: Scheduler, first: BokehTornado) -> None:
    """Serve the pages by an application of their own, and list them in the first one."""
    added = BokehApplication(
        PAGES, scheduler, prefix=first.prefix, template_variables=template_variables(scheduler)
    )
    scheduler.http_application.add_application(added)
    added.initialize(IOLoop.current())
    added.start()
    try:
        first._applications.update(added._applications)  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        logger.info("The pages of the workbench are served and not listed.")


def _put_into_menu(variables: dict[str, Any]) -> None:
    """Name the pages in the bar and the menu of every page."""
    if "workbench" not in variables["pages"]:
        variables["pages"].insert(1, "workbench")
    listed = {plot["url"] for plot in variables["plots"]}
    new = [path.strip("/") for path in PAGES if "individual" in path]
    variables["plots"] += [
        {"url": url, "name": url.removeprefix("individual-").replace("-", " ").title()}
        for url in new
        if url not in listed
    ]
    variables["plots"].sort(key=lambda plot: plot["name"])
