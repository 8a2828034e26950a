"""Pages of the workbench in the Dask dashboard: speedup, timeline, metrics, the cut.

A preload of Dask's: ``dask scheduler --preload workbench.dashboard`` has the pages from the start.
Importing it lists them for every scheduler that this process makes from now on; ``dask_setup``
gives them to a scheduler that runs. Clusters of :func:`workbench.start` have them by themselves,
those of others as soon as they are adopted. Everything here runs on the scheduler's event loop: it
draws what it is told, and computes nothing.
"""

from workbench.dashboard.serving import dask_setup, list_pages

__all__ = ["dask_setup"]

list_pages()
