"""Checkpoints on disk: a memory-mapped reader, an atomic writer, and what a format plugin must do."""

from coldpress.checkpoint.reader import CheckpointReader
from coldpress.checkpoint.writer import CheckpointWriter
from coldpress.format import Format, SchemeLookup

__all__ = ["CheckpointReader", "CheckpointWriter", "Format", "SchemeLookup"]
