"""Checkpoints on disk: a memory-mapped reader, an atomic writer, and what a format plugin must do."""

from coldpress.checkpoint.format import Format, SchemeLookup
from coldpress.checkpoint.reader import CheckpointReader
from coldpress.checkpoint.writer import CheckpointWriter

__all__ = ["CheckpointReader", "CheckpointWriter", "Format", "SchemeLookup"]
