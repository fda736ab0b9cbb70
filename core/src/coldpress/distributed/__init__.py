"""Several processes that compress one model: the only room that knows `torch.distributed`."""

from coldpress.distributed.ranks import ALONE, Ranks
from coldpress.distributed.share import WHOLE, Share

__all__ = ["ALONE", "WHOLE", "Ranks", "Share"]
