"""Scripts written for llm-compressor, rewritten: imports move, what has no use here goes, the rest is listed."""

from coldpress.porting.port import Ported, Remark, port

__all__ = ["Ported", "Remark", "port"]
