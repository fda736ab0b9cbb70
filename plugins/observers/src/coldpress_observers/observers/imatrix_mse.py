"""imatrix_mse: the range that rounds a weight with the least error, each column weighed by its inputs."""

from typing import ClassVar

from attrs import field, frozen
from attrs.validators import and_, ge, gt, instance_of, le
from torch import Tensor

from coldpress.plugin import CalibrationError
from coldpress_observers.algorithm import Range, Search, search_range
from coldpress_observers.searching import SearchingObserver


@frozen(kw_only=True)
class ImatrixMSE(SearchingObserver):
    """Shrink the range of a weight until sum E[x^2] |Q(w) - w|^norm is least, group by group.

    E[x^2] is the mean square of the inputs of a column; where it is not known all columns count the same.

    Attributes:
        maxshrink: how much of the range may be given up, in (0, 1].
        patience: factors in a row without gain in any group after which the search ends.
        grid: a step is 1/grid of the range; at most 10,000.
        norm: exponent of the error; 2 is the mean squared error of the outputs, were inputs uncorrelated.
        expand: the first factor; above 1 the largest weight may leave the end of the grid free.
        strict: a weight whose inputs are not known is refused.
    """

    weighs_columns: ClassVar[bool] = True

    maxshrink: float = field(default=0.95, validator=and_(gt(0), le(1)))
    patience: int = field(default=5, validator=and_(instance_of(int), ge(1)))
    grid: float = field(default=20.0, validator=and_(ge(1), le(10_000)))
    norm: float = field(default=3.0, validator=gt(0))
    expand: float = field(default=1.0, validator=ge(1))
    strict: bool = False

    def weight_range(self, x: Tensor, *, global_scale: Tensor | None = None, importance: Tensor | None = None) -> Range:
        """Search for a weight, [*scale_shape, n], whose errors cost what `importance` says.

        Raises:
            CalibrationError: nothing is known of its inputs, and the observer is strict.
        """
        if self.strict and importance is None:
            raise CalibrationError(
                "a weight's inputs are not known, and its observer is strict: calibrate with more data, "
                "or set strict: false"
            )
        search = Search(self.maxshrink, self.patience, self.grid, self.norm, self.expand)
        return search_range(x, self.args, search, global_scale=global_scale, importance=importance)


@frozen(kw_only=True)
class NVFP4ExpandedImatrix(ImatrixMSE):
    """The same from `expand` times the range downwards, in finer steps: for NVFP4, as `nvfp4_expanded_mse` is.

    Attributes:
        maxshrink: share of the first factor that may be given up, in (0, 1].
    """

    maxshrink: float = field(default=1 - 0.8 / 1.8, validator=and_(gt(0), le(1)))
    patience: int = field(default=1000, validator=and_(instance_of(int), ge(1)))
    grid: float = field(default=200.0, validator=and_(ge(1), le(10_000)))
    norm: float = field(default=2.4, validator=gt(0))
    expand: float = field(default=1.8, validator=ge(1))
