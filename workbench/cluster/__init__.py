"""Dask places and supervises, torch steps: the lab, its workers, rank hosts and rank processes."""
