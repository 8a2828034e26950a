"""Runs on disk: every worker writes and reads its own shares; see docs/checkpoints.md."""
