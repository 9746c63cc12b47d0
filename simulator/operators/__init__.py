"""Operator models: what a kernel costs, by its shape, fitted to measured kernels.

A family (one a file) says what work a shape is; ``model.py`` fits any of them:

    seconds = fitted roofline(work) x exp(log-residual: trees, and neighbours on the grid)
"""

from simulator.operators.base import KEYS, Device, Family, Shape
from simulator.operators.families import OPERATORS, family_named
from simulator.operators.library import Library, fit_library
from simulator.operators.library_file import kept_library, load_library, save_library
from simulator.operators.model import FittedOperator, Prediction

__all__ = [
    "KEYS",
    "OPERATORS",
    "Device",
    "Family",
    "FittedOperator",
    "Library",
    "Prediction",
    "Shape",
    "family_named",
    "fit_library",
    "kept_library",
    "load_library",
    "save_library",
]
