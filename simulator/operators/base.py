"""What an operator family declares, and what its models share.

A family turns rows of the ``kernels`` table into kinds of work, features and grid places;
everything that is fitted to measurements lies in ``model.py`` and is the same for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulator.hardware import load_hardware
from simulator.operators.lines import Axis, Place
from traces.errors import ConfigError
from traces.kernels.work import DTYPES

Floats = npt.NDArray[np.float64]

KEYS = ("device", "node", "engine", "engine_version", "backend", "dtype", "timing")
"""Columns whose values never mix in one fit; a family may add some."""


@dataclass(frozen=True, slots=True)
class Device:
    """What a shape needs to know of the device. Without a sheet ``sms`` is 1: no waves."""

    sms: int
    peak_flops: float
    l2_bytes: float = np.inf

    @classmethod
    def named(cls, name: str, dtype: str) -> Device:
        """From the hardware sheet; with no sheet one SM, no peak, and a cache for all."""
        try:
            sheet = load_hardware(name)
        except ConfigError:
            return cls(1, np.inf)
        peaks: dict[str, float] = {str(k): v for k, v in sheet.peak_tflops.items()}
        kind = DTYPES[dtype][2] if dtype in DTYPES else ""
        return cls(sheet.sms, 1e12 * peaks.get(kind, max(peaks.values())), 1e6 * sheet.l2_mb)


@dataclass(frozen=True, slots=True)
class Shape:
    """Rows as a family sees them; every array is ``(n,)``.

    ``work`` holds the kinds of work of the roofline, among them ``flops`` and ``bytes`` where
    they are known; ``features`` what the log-residual may depend on; ``place`` the
    coordinates on the measured grid.
    """

    work: dict[str, Floats]
    features: dict[str, Floats]
    place: Place


class Family(Protocol):
    """One kind of operator.

    ``labels`` are the shape columns that hold names or must have been measured, ``keyed`` those
    that, like KEYS, never mix. ``axes`` are the coordinates of ``place`` along which a grid may
    be interpolated.
    """

    labels: tuple[str, ...]
    keyed: tuple[str, ...]
    axes: tuple[Axis, ...]

    def shape(self, rows: pd.DataFrame, device: Device) -> Shape:
        """Work, features and place of rows of the ``kernels`` table, in their order."""


def number(rows: pd.DataFrame, name: str, missing: float = np.nan) -> Floats:
    """A column as floats; ``missing`` where it is null or absent."""
    if name not in rows:
        return np.full(len(rows), missing)
    values = rows[name].to_numpy(np.float64, na_value=np.nan)
    return np.where(np.isnan(values), missing, values)


def label(rows: pd.DataFrame, name: str) -> npt.NDArray[np.object_]:
    """A column of names; empty where it is null or absent."""
    if name not in rows:
        return np.full(len(rows), "", object)
    values: npt.NDArray[np.object_] = rows[name].astype(object).fillna("").to_numpy(object)
    return values


def width(rows: pd.DataFrame, name: str) -> Floats:
    """Bytes of a value of the type named in a column, 2 where it is not known.

    >>> width(pd.DataFrame({"kv_dtype": ["fp8", None]}), "kv_dtype").tolist()
    [1.0, 2.0]
    """
    return _each(label(rows, name), 0)


def activation(rows: pd.DataFrame, name: str) -> Floats:
    """Bytes of an activation beside weights of the type named in a column."""
    return _each(label(rows, name), 1)


def _each(names: npt.NDArray[np.object_], part: int) -> Floats:
    codes, values = pd.factorize(names)
    known = [DTYPES[v][part] if v in DTYPES else 2.0 for v in values]
    found: Floats = np.array([float(k) for k in known])[codes]
    return found


def octaves(values: Floats) -> Floats:
    """log2, with 0 taken for a half."""
    found: Floats = np.log2(np.maximum(values, 0.5))
    return found


def waves(blocks: Floats, sms: int) -> tuple[Floats, Floats]:
    """Thread blocks a multiprocessor, in octaves, and how full the last wave is left.

    The second is ceil(x) / x: 1 where all multiprocessors end together, 2 where half idle.
    """
    share = np.maximum(blocks, 1e-3) / sms
    return np.log2(share), np.ceil(share) / share
