"""Where data comes from: files of every kind, described by the client and read by workers or ranks.

Nothing here imports Dask or torch: a rank reads its rows by itself.
"""
