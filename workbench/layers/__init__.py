"""Parallel layers: what stands in the place of a layer that a plan cuts."""
