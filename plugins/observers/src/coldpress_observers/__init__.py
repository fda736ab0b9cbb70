"""Observers: how the range of a weight or an activation is found, from which its scale follows."""

from coldpress_observers.observers.memoryless_minmax import MemorylessMinMax
from coldpress_observers.observers.memoryless_mse import MemorylessMSE
from coldpress_observers.observers.minmax import MinMax
from coldpress_observers.observers.mse import MSE
from coldpress_observers.observers.static_minmax import StaticMinMax

__all__ = ["MSE", "MemorylessMSE", "MemorylessMinMax", "MinMax", "StaticMinMax"]
