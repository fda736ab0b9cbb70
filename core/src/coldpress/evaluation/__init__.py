"""What compression cost: perplexity of a model, and its distance from another one."""

from coldpress.evaluation.divergence import Divergence, divergence
from coldpress.evaluation.perplexity import Perplexity, perplexity

__all__ = ["Divergence", "Perplexity", "divergence", "perplexity"]
