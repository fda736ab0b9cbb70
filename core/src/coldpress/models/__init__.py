"""Models in memory: loading them from wherever they are, and what is done to them besides compression."""

from coldpress.models.loading import load_model, load_processor, load_tokenizer, need_tokenizer

__all__ = ["load_model", "load_processor", "load_tokenizer", "need_tokenizer"]
