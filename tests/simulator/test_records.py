"""What a simulation leaves behind, in pieces or whole."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from worlds import Make, config, demand_of, linear_step

from simulator import records
from simulator.arrivals import OpenLoop
from simulator.fleet import CompiledFleet, PlainFleet
from simulator.records import Collected, Recorder, Sink, Streamed
from simulator.simulation import Simulation

ROWS = [(i * 7, 5 + i % 9, 1 + i % 12) for i in range(80)]


def run(make: Make, record: tuple[str, ...], sink: Sink) -> None:
    demand = demand_of(*ROWS, settings=config())
    recorder = Recorder(record, "main", demand, sink)
    Simulation(demand, "round_robin", make(demand, 2, linear_step(), recorder)).run(
        OpenLoop(demand)
    )


@pytest.mark.parametrize("make", [PlainFleet, CompiledFleet])
def test_only_what_was_asked_for(make: Make) -> None:
    for asked in ((), ("steps",), ("step_requests",)):
        collected = Collected()
        run(make, asked, collected)
        assert tuple(collected.tables()) == asked


@pytest.mark.parametrize("make", [PlainFleet, CompiledFleet])
def test_pieces_make_up_the_whole(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = ("steps", "step_requests")
    whole = Collected()
    run(make, both, whole)
    monkeypatch.setattr(records, "ROOM", {"steps": 16, "step_requests": 40})
    sizes: Counter[str] = Counter()
    streamed = Streamed(lambda: tmp_path)

    def sink(name: str, piece: pa.Table) -> None:
        sizes[name] = max(sizes[name], len(piece))
        streamed(name, piece)

    run(make, both, sink)
    streamed.close()
    for name, table in whole.tables().items():
        assert sizes[name] < len(table) / 4
        file = pq.ParquetFile(tmp_path / f"{name}.parquet")
        assert file.num_row_groups > 4
        order = [("replica", "ascending"), ("step", "ascending")]
        assert file.read().sort_by(order).equals(table.sort_by(order))


def test_a_run_that_fails_leaves_no_files(tmp_path: Path) -> None:
    streamed = Streamed(lambda: tmp_path)
    run(CompiledFleet, ("steps",), streamed)
    assert [*tmp_path.iterdir()]
    streamed.discard()
    assert not [*tmp_path.iterdir()]


def test_rows_of_a_step_add_up_to_it() -> None:
    collected = Collected()
    run(CompiledFleet, ("steps", "step_requests"), collected)
    tables = {name: table.to_pylist() for name, table in collected.tables().items()}
    tokens: Counter[Any] = Counter()
    for row in tables["step_requests"]:
        tokens[row["replica"], row["step"]] += row["scheduled_tokens"]
    for step in tables["steps"]:
        assert tokens[step["replica"], step["step"]] == step["padded_tokens"]
        assert step["prefill_tokens"] + step["decode_tokens"] == step["padded_tokens"]
    assert len(tokens) == len(tables["steps"])
