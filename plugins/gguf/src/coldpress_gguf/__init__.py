"""GGUF: models in its files, read as dense models, and the checkpoint format that writes them with their codes."""

from coldpress_gguf.embedded import EmbeddedSource
from coldpress_gguf.format import GgufFormat
from coldpress_gguf.source import GgufSource

__all__ = ["EmbeddedSource", "GgufFormat", "GgufSource"]
