"""A Bokeh figure as a widget that two threads may touch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from bokeh.models import CustomJS, Range1d
from bokeh.plotting import figure
from jupyter_bokeh.widgets import BokehModel

_TELL = "if (drawn.tags.length == 0) drawn.tags = ['drawn']"


class LiveFigure(BokehModel):
    """A figure whose traffic with the browser goes through one lock.

    A patch travels in several messages, which must not mix. The figure is only looked at: what the
    browser changes (where it has zoomed to) stays there.

    Parameters
    ----------
    on_drawn:
        Called on the kernel's threads when a page has drawn the figure for the first time.
    """

    def __init__(
        self,
        model: figure,
        lock: threading.RLock,
        on_drawn: Callable[[], None] | None = None,
        **options: Any,
    ) -> None:
        self._lock, self._on_drawn = lock, on_drawn
        for part in model.references():
            # It tells of its axes with every change of the data, which nobody here asks for.
            part.syncable = False
        if on_drawn is not None:
            drawn = Range1d()  # a small model of any kind: all that the page may tell of
            tell = CustomJS(args={"drawn": drawn}, code=_TELL, syncable=False)
            model.js_on_change("inner_width", tell)
        super().__init__(model, **options)

    def close(self) -> None:
        """Take the figure off the page; unlike the parent's, this may be called twice."""
        if self.comm is not None:
            super().close()

    def _document_patched(self, event: Any) -> None:
        with self._lock:
            super()._document_patched(event)

    def _sync_model(self, *_message: Any) -> None:
        """Take nothing over from the browser but that it is there.

        It sends where its axes begin and end; a figure that had taken that over, and was sent whole
        again, would keep the axes where they were and not follow new data.
        """
        if self._on_drawn is not None:
            self._on_drawn()
