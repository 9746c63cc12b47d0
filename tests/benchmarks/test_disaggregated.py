"""Prefill and decode apart: what a long trace costs.

Step times come from the full operator tables of ``bench_workloads.py``; start-up
(imports, the compiled engine, reading the trace) is not counted, writing requests and transfers
is.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from bench_workloads import BENCHES, MOONCAKE, full_tables

from simulator.arrivals import OpenLoop
from simulator.deployment import Link
from simulator.disaggregation.connection import Connection, KVLayout
from simulator.disaggregation.setup import Side, demands
from simulator.disaggregation.simulation import PrefillDecode
from simulator.disaggregation.tables import requests_table, transfers_table
from traces.bundle import write_table

pytestmark = pytest.mark.bench
REPLICAS = {"prefill": 4, "decode": 8}
ROLES = {"prefill": "kv_producer", "decode": "kv_consumer"}
BLOCK_BYTES, LAYERS = 2 << 20, 32  # 16 tokens of 8 KV heads of 128, 16 bits
CPU_S = 3.0
BENCH = BENCHES["mooncake"]


@pytest.mark.skipif(not MOONCAKE.is_file(), reason="no ../shared beside the project")
def test_mooncake_conversations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = BENCH.table(BENCH)
    prefill, decode = (
        Side(name, count, replace(BENCH.config, kv_role=ROLES[name]), full_tables(), BENCH.router)
        for name, count in REPLICAS.items()
    )
    begun_s = time.process_time()
    first, last = demands(table, prefill, decode, BENCH.hash_block_tokens)
    link = Link(**{"from": "prefill", "to": "decode"}, bandwidth_gb_s=50, setup_us=100)
    simulation = PrefillDecode(
        prefill.stage(first),
        decode.stage(last),
        Connection(link, KVLayout(BLOCK_BYTES, LAYERS, 1)),
        proxy_ps=500_000_000,
    )
    simulation.run(OpenLoop(first))
    simulation.check()
    requests = requests_table(simulation, "prefill")
    write_table(tmp_path, "requests", requests)
    write_table(tmp_path, "transfers", transfers_table(simulation, "prefill", "decode"))
    cpu_s = time.process_time() - begun_s
    statuses = requests["status"].to_pylist()
    with capsys.disabled():
        print(
            f"\n{len(table):,} conversations through 4 prefill and 8 decode replicas: {cpu_s:.2f} "
            f"CPU s, {statuses.count('finished'):,} finished, {statuses.count('failed'):,} lost "
            "their lease"
        )
    assert len(statuses) == len(table) == statuses.count("finished") + statuses.count("failed")
    assert cpu_s < CPU_S
