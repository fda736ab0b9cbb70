"""Models in GGUF files, read as dense models: a file, or one that a package of the Python index carries."""

from coldpress_gguf.embedded import EmbeddedSource
from coldpress_gguf.source import GgufSource

__all__ = ["EmbeddedSource", "GgufSource"]
