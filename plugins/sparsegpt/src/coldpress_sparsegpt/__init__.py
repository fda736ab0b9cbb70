"""SparseGPT: drop weights column after column, and let the columns that follow make up for what is gone."""

from coldpress_sparsegpt.modifier import SparseGPTModifier

__all__ = ["SparseGPTModifier"]
