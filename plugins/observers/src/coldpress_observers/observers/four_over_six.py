"""four_over_six: the largest number of a group of float4 is put on 6 or on 4, whichever loses less."""

from attrs import field, frozen
from attrs.validators import gt
from torch import Tensor

from coldpress_observers.algorithm import Range, Search, best_range
from coldpress_observers.searching import SearchingObserver

_FACTORS = [1.0, 1.5]


@frozen(kw_only=True)
class FourOverSix(SearchingObserver):
    """The range of each group, or one and a half times it; of the two the one with the smaller rounding error.

    Attributes:
        norm: exponent of the error; 2 is the mean squared error.
    """

    norm: float = field(default=2.0, validator=gt(0))

    def weight_range(self, x: Tensor, *, global_scale: Tensor | None = None, importance: Tensor | None = None) -> Range:
        """Choose for a weight, [*scale_shape, n], all of whose errors cost the same."""
        search = Search(1.0, len(_FACTORS), 1.0, self.norm)
        return best_range(x, self.args, _FACTORS, search, global_scale=global_scale)
