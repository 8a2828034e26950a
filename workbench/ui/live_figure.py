"""A Bokeh figure as a widget that two threads may touch."""

from __future__ import annotations

import threading
from typing import Any

from bokeh.models import LayoutDOM
from jupyter_bokeh.widgets import BokehModel


class LiveFigure(BokehModel):
    """A figure whose traffic with the browser goes through one lock.

    A patch travels in several messages, which must not mix. The figure is only looked at: what the
    browser changes (where it has zoomed to) stays there.
    """

    def __init__(self, model: LayoutDOM, lock: threading.RLock, **options: Any) -> None:
        self._lock = lock
        for part in model.references():
            # It tells of its axes with every change of the data, which nobody here asks for.
            part.syncable = False
        super().__init__(model, **options)

    def close(self) -> None:
        """Take the figure off the page; unlike the parent's, this may be called twice."""
        if self.comm is not None:
            super().close()

    def _document_patched(self, event: Any) -> None:
        with self._lock:
            super()._document_patched(event)

    def _sync_model(self, *_message: Any) -> None:
        """Take nothing over from the browser.

        It sends where its axes begin and end; a figure that had taken that over, and was sent whole
        again, would keep the axes where they were and not follow new data.
        """
