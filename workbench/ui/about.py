"""What stands below a figure: how to read it, and its data as a table, both folded."""

from __future__ import annotations

import ipywidgets as widgets  # type: ignore[import-untyped]

from workbench.ui.chart import Columns
from workbench.ui.figure_table import data_table, how_to_read
from workbench.ui.language import text
from workbench.ui.widget import Fold, box, put


class About:
    """The two folds below one figure."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._how, self._data = widgets.HTML(), widgets.HTML()
        self._folds = {"how": Fold(self._how), "data": Fold(self._data)}
        self.root = box([fold.root for fold in self._folds.values()], "wb-about")

    def speak(self) -> None:
        """Say everything in the language of this thread."""
        for key, fold in self._folds.items():
            fold.say(text(f"about.{key}"))
        put(self._how, how_to_read(self.name))

    def show(self, columns: Columns) -> None:
        """Show the figure's data."""
        put(self._data, data_table(self.name, columns))
