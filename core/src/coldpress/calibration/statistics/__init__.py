"""The statistics that core offers by name, one a file."""

from coldpress.calibration.statistics.absmax import Absmax
from coldpress.calibration.statistics.average import Average
from coldpress.calibration.statistics.gram import Gram, GramValue
from coldpress.calibration.statistics.histogram import Histogram
from coldpress.calibration.statistics.mean import Mean
from coldpress.calibration.statistics.mean_abs import MeanAbs
from coldpress.calibration.statistics.minmax import Minmax, Range
from coldpress.calibration.statistics.observed import Observed
from coldpress.calibration.statistics.second_moment import SecondMoment

__all__ = [
    "Absmax",
    "Average",
    "Gram",
    "GramValue",
    "Histogram",
    "Mean",
    "MeanAbs",
    "Minmax",
    "Observed",
    "Range",
    "SecondMoment",
]
