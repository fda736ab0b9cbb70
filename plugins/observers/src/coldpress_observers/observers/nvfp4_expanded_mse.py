"""nvfp4_expanded_mse: the range, wider or narrower than the weights, that rounds them with the least error."""

from attrs import field, frozen
from attrs.validators import and_, ge, gt, instance_of, le
from torch import Tensor

from coldpress_observers.algorithm import Range, Search, search_range
from coldpress_observers.searching import SearchingObserver


@frozen(kw_only=True)
class NVFP4ExpandedMSE(SearchingObserver):
    """Search from `expand` times the range downwards, group by group.

    The steps of a floating-point grid are wide at its ends: a group may lose less when its largest number is put on 4
    and not on 6.

    Attributes:
        expand: the first factor.
        maxshrink: share of the first factor that may be given up, in (0, 1].
        patience: factors in a row without gain in any group after which the search ends.
        grid: a step is 1/grid of the expanded range; at most 10,000.
        norm: exponent of the error.
        triton_error_buffer: understood and without effect: no search here ends early for speed.
    """

    expand: float = field(default=1.8, validator=ge(1))
    maxshrink: float = field(default=1 - 0.8 / 1.8, validator=and_(gt(0), le(1)))
    patience: int = field(default=1000, validator=and_(instance_of(int), ge(1)))
    grid: float = field(default=200.0, validator=and_(ge(1), le(10_000)))
    norm: float = field(default=2.4, validator=gt(0))
    triton_error_buffer: float | None = None

    def weight_range(self, x: Tensor, *, global_scale: Tensor | None = None, importance: Tensor | None = None) -> Range:
        """Search for a weight, [*scale_shape, n], all of whose errors cost the same."""
        search = Search(self.maxshrink, self.patience, self.grid, self.norm, self.expand)
        return search_range(x, self.args, search, global_scale=global_scale)
