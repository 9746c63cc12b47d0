"""What operators cost at shapes that were not measured: models fitted to those that were."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from simulator.operators import Prediction, Shape, family_named
from simulator.operators.library import Group, Library, device_of, fit_library, groups_of
from simulator.operators.model import SLACK, FittedOperator
from simulator.step_time.select_kernels import SKEWED

Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class Unmeasured:
    """Fitted operators of one device and engine version, each fitted when first asked for.

    ``library`` keeps them; ``used`` says by layer which model priced it, and what share of
    the sizes lay outside what it was fitted on. ``alone`` is held while one is fitted.
    """

    kernels: pa.Table
    library: Library = field(default_factory=Library)
    progress: Callable[[str], None] = lambda _: None
    alone: Callable[[], AbstractContextManager[object]] = nullcontext
    used: dict[str, str] = field(default_factory=dict)

    def predict(
        self, layer: str, operator: str, shape: Mapping[str, int | str], sizes: Mapping[str, Floats]
    ) -> Prediction | None:
        """Seconds of ``layer``, an operator of ``shape``, at each of ``sizes`` (columns, ``(n,)``).

        None where too little was measured of the operator in the shape's ``dtype``.
        """
        fitted = self.operator(operator, shape)
        if fitted is None:
            return None
        own = {"operator": operator, "backend": fitted.key["backend"], **shape}
        rows = pd.DataFrame({**sizes}).assign(**own)
        device = device_of(fitted.key)
        asked = family_named(operator).shape(rows, device)
        found = fitted.predict(asked, device)
        backend = fitted.key["backend"] or fitted.key["engine"]
        self.used[layer] = (
            f"fitted to {fitted.rows} kernels of {backend}, "
            f"{found.extrapolated.mean():.0%} of sizes outside{_beyond(fitted, asked)}"
        )
        return found

    def operator(self, name: str, shape: Mapping[str, int | str]) -> FittedOperator | None:
        """The model of the key with most rows of this very shape, else with most rows."""
        wanted = pc.equal(self.kernels.column("operator"), name)
        if "dtype" in shape:
            wanted = pc.and_(wanted, pc.equal(self.kernels.column("dtype"), shape["dtype"]))
        if not pc.any(wanted).as_py():
            return None
        rows = self.kernels.filter(wanted).to_pandas()
        groups = [g for g in groups_of(rows) if g.key.get("layer") != SKEWED]
        if not groups:
            return None

        def measured(group: Group) -> tuple[int, int]:
            own = rows.iloc[group.rows]
            same = np.ones(len(own), bool)
            for column in own.columns.intersection(list(shape)):
                same &= (own[column] == shape[column]).to_numpy(bool, na_value=False)
            return int(same.sum()), len(own)

        group = max(groups, key=measured)
        kept = self._kept(group, rows)
        if kept is not None:
            return kept
        with self.alone():
            if (kept := self._kept(group, rows)) is None:  # nor fitted by another process meanwhile
                self.progress(f"fitting {group.name} ({len(group.rows)} rows)")
                fitted = fit_library(rows.iloc[group.rows]).operators
                self.library.operators += fitted
                kept = fitted[0] if fitted else None
        return kept

    def _kept(self, group: Group, rows: pd.DataFrame) -> FittedOperator | None:
        """The group's model in the library, unless it was fitted to other features."""
        one = family_named(group.operator).shape(rows.iloc[group.rows[:1]], device_of(group.key))
        same = (o for o in self.library.operators if (o.family, *o.key.values()) == group.same)
        return next((o for o in same if o.knows(one)), None)


def _beyond(fitted: FittedOperator, asked: Shape) -> str:
    """Of which coordinates, and what was measured of them."""
    found = []
    for name in fitted.lows:
        values, low, high = (
            np.asarray(asked.place.get(name, ()), float),
            fitted.lows[name],
            fitted.highs[name],
        )
        for value, bound, past in (
            (values.min(initial=low), low, "from"),
            (values.max(initial=high), high, "to"),
        ):
            if value < bound / SLACK or value > bound * SLACK:
                found.append(f"{name} {value:,.0f}, measured {past} {bound:,.0f}")
    return f" ({'; '.join(found)})" if found else ""
