"""Observers: how the range of a weight or an activation is found, from which its scale follows."""

from coldpress_observers.observers.four_over_six import FourOverSix
from coldpress_observers.observers.imatrix_mse import ImatrixMSE, NVFP4ExpandedImatrix
from coldpress_observers.observers.kl import KL
from coldpress_observers.observers.memoryless_minmax import MemorylessMinMax
from coldpress_observers.observers.memoryless_mse import MemorylessMSE
from coldpress_observers.observers.minmax import MinMax
from coldpress_observers.observers.mse import MSE
from coldpress_observers.observers.nvfp4_expanded_mse import NVFP4ExpandedMSE
from coldpress_observers.observers.percentile import Percentile
from coldpress_observers.observers.rceil import RoundedUp
from coldpress_observers.observers.static_minmax import StaticMinMax

__all__ = [
    "KL",
    "MSE",
    "FourOverSix",
    "ImatrixMSE",
    "MemorylessMSE",
    "MemorylessMinMax",
    "MinMax",
    "NVFP4ExpandedImatrix",
    "NVFP4ExpandedMSE",
    "Percentile",
    "RoundedUp",
    "StaticMinMax",
]
