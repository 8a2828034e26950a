"""Collectives between ranks: one interface, and a backend for wherever the ranks are."""
