"""Checkpoints as files: what is in an archive, how it is written, and how it is read when nobody knows who wrote it."""
