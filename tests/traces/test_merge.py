"""Bundles on one clock: what moves, what is renumbered, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import Result

from traces.bundle import Bundle, Manifest, read_bundle, write_bundle
from traces.errors import TraceError
from traces.merge import common_clock, merge
from traces.metrics import request_metrics

BOOT_S = 1.7e9
LISTS = pa.list_(pa.float64())


def deployment(replicas: int = 1, **engine: Any) -> dict[str, Any]:
    cluster = {"name": "main", "role": "colocated", "replicas": replicas, "hardware": "cpu"}
    return {"clusters": [{**cluster, "engine": {"max_num_seqs": 4, **engine}}]}


def engine(
    path: Path,
    ids: str,
    zero_s: float,
    *,
    host_s: float = BOOT_S,
    tables: dict[str, pa.Table] | None = None,
    layout: dict[str, Any] | None = None,
    **manifest: Any,
) -> Bundle:
    """An engine's bundle whose requests arrive 0, 1, 2, ... s after its zero."""
    n = len(ids)
    at = [float(i) for i in range(n)]
    requests = pa.table(
        {
            "request_id": list(ids), "arrival_s": at, "prompt_tokens": [10] * n,
            "output_tokens": [2] * n, "think_s": [0.5] * n, "cluster": ["main"] * n,
            "replica": [0] * n, "queued_s": at, "scheduled_s": [t + 0.25 for t in at],
            "first_token_s": [t + 0.5 for t in at], "finished_s": [t + 0.75 for t in at],
            "status": ["finished"] * n,
        }
    )  # fmt: skip
    steps = pa.table(
        {
            "cluster": ["main"] * n, "replica": [0] * n, "step": list(range(n)), "start_s": at,
            "end_s": [t + 0.5 for t in at], "forward_s": [0.25] * n, "prefill_tokens": [10] * n,
            "decode_tokens": [0] * n, "running": [1] * n, "waiting": [0] * n,
        }
    )  # fmt: skip
    clock = {"name": "CLOCK_MONOTONIC", "zero_monotonic_s": zero_s, "zero_epoch_s": host_s + zero_s}
    made = Manifest(
        **{
            "kind": "measured", "engine": "vllm", "engine_version": "0.32.0", "clock": clock,
            "deployment": layout or deployment(), **manifest,
        }
    )  # fmt: skip
    rest = {"requests": requests, "steps": steps, **(tables or {})}
    write_bundle(path, made, rest, model_config={"layers": 2})
    return read_bundle(path)


def client(path: Path, ids: str, zero_s: float) -> Bundle:
    n = len(ids)
    sent = [i + 0.5 for i in range(n)]
    requests = pa.table(
        {
            "request_id": list(ids), "arrival_s": [float(i) for i in range(n)], "sent_s": sent,
            "prompt_tokens": [10] * n, "output_tokens": [2] * n, "session_id": list(ids.upper()),
            "first_token_s": [t + 1 for t in sent], "finished_s": [t + 2 for t in sent],
            "status": ["finished"] * n,
            "token_times_s": pa.array([[t + 1, t + 2] for t in sent], LISTS),
        }
    )  # fmt: skip
    clock = {"name": "CLOCK_MONOTONIC", "zero_monotonic_s": zero_s, "zero_epoch_s": BOOT_S + zero_s}
    write_bundle(path, Manifest("measured", "client", clock=clock), {"requests": requests})
    return read_bundle(path)


def column(bundle: Bundle, name: str, table: str = "requests") -> list[Any]:
    values: list[Any] = bundle.table(table)[name].to_pylist()
    return values


def test_engines_of_one_host_on_the_earlier_zero(tmp_path: Path) -> None:
    one, two = engine(tmp_path / "one", "ab", 100.5), engine(tmp_path / "two", "cde", 100.0)
    merge([one, two], tmp_path / "m", ["frontier"])
    merged = read_bundle(tmp_path / "m")
    assert column(merged, "request_id") == ["c", "a", "d", "b", "e"]
    assert column(merged, "arrival_s") == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert column(merged, "finished_s") == [0.75, 1.25, 1.75, 2.25, 2.75]
    assert column(merged, "think_s") == [0.5] * 5  # a duration does not move
    assert column(merged, "replica") == [1, 0, 1, 0, 1]
    assert column(merged, "start_s", "steps") == [0.5, 1.5, 0.0, 1.0, 2.0]
    assert column(merged, "forward_s", "steps") == [0.25] * 5
    assert column(merged, "replica", "steps") == [0, 0, 1, 1, 1]
    manifest = merged.manifest
    assert manifest.clock == {
        "name": "CLOCK_MONOTONIC", "zero_monotonic_s": 100.0, "zero_epoch_s": BOOT_S + 100,
    }  # fmt: skip
    assert manifest.deployment == {**deployment(replicas=2), "model": "model.json"}
    assert merged.model_config() == {"layers": 2}
    assert manifest.notes["clock"] == "monotonic: one host, the instants of boot agree"
    assert manifest.notes["renumbered"] == ["two: main is main, its replicas from 1"]
    assert [m["moved_s"] for m in manifest.notes["merged"]] == [0.5, 0.0]
    assert manifest.ignored == ["how requests were spread over the merged engines"]
    assert request_metrics(merged)["e2e"].tolist() == [0.75] * 5  # as in each of the two


def test_engines_of_two_hosts_meet_on_the_epoch(tmp_path: Path) -> None:
    # the second host was booted 1000 s later: its monotonic clock is 1000 s behind
    one = engine(tmp_path / "one", "a", 5000.0)
    two = engine(tmp_path / "two", "b", 4003.0, host_s=BOOT_S + 1000)
    shifts_s, clock, basis = common_clock([one, two])
    assert shifts_s == [0.0, 3.0]
    assert clock["zero_epoch_s"] == BOOT_S + 5000
    assert basis.startswith("epoch")


def test_monotonic_alone_is_taken_to_be_one_host(tmp_path: Path) -> None:
    one = engine(tmp_path / "one", "a", 7.0)
    two = engine(tmp_path / "two", "b", 9.0, clock={"zero_monotonic_s": 9.0})
    shifts_s, clock, basis = common_clock([one, two])
    assert (shifts_s, clock) == ([0.0, 2.0], {"name": "CLOCK_MONOTONIC", "zero_monotonic_s": 7.0})
    assert basis == "monotonic, taken to be of one host"


def test_no_clock_in_common(tmp_path: Path) -> None:
    one = engine(tmp_path / "one", "a", 7.0, clock={"zero_epoch_s": 1.0})
    two = engine(tmp_path / "two", "b", 9.0, clock={"zero_monotonic_s": 9.0})
    with pytest.raises(TraceError) as error:
        merge([one, two], tmp_path / "m")
    assert str(error.value) == (
        f"no clock in common, zero_epoch_s or zero_monotonic_s ({one.path}: zero_epoch_s; "
        f"{two.path}: zero_monotonic_s)"
    )
    assert not (tmp_path / "m").exists()


def test_data_parallel_ranks_keep_their_order(tmp_path: Path) -> None:
    layout = deployment(data_parallel_size=2)
    one, two = (
        engine(tmp_path / n, i, 1.0, layout=layout) for n, i in (("one", "a"), ("two", "b"))
    )
    merged = merge([one, two], tmp_path / "m")
    assert column(merged, "replica") == [0, 2]
    assert merged.manifest.deployment["clusters"][0]["replicas"] == 2


def test_other_settings_take_the_name_of_their_directory(tmp_path: Path) -> None:
    one = engine(tmp_path / "one", "a", 1.0)
    two = engine(tmp_path / "two", "b", 1.0, layout=deployment(max_num_seqs=8))
    merged = merge([one, two], tmp_path / "m")
    assert column(merged, "cluster") == ["main", "two"]
    assert column(merged, "replica") == [0, 0]
    assert [c["name"] for c in merged.manifest.deployment["clusters"]] == ["main", "two"]
    (tmp_path / "deep").mkdir()
    three = engine(tmp_path / "deep" / "two", "c", 1.0, layout=deployment(max_num_seqs=16))
    with pytest.raises(TraceError, match="'two' is taken too: rename the directory"):
        merge([one, two, three], tmp_path / "m3")


def test_routing_snapshots_do_not_survive_renumbering(tmp_path: Path) -> None:
    def routing(request_id: str) -> dict[str, pa.Table]:
        row = {"request_id": request_id, "time_s": 0.0, "cluster": "main", "replica": 0,
               "in_flight": [0]}  # fmt: skip
        return {"routing": pa.Table.from_pylist([row])}

    one = engine(tmp_path / "one", "a", 1.0, tables=routing("a"))
    two = engine(tmp_path / "two", "b", 1.0, tables=routing("b"))
    merged = merge([one, two], tmp_path / "m")
    assert column(merged, "request_id", "routing") == ["a"]
    left_out = "routing left out, its lists count other replicas"
    assert merged.manifest.notes[left_out] == ["two"]


def test_transfers_forbid_renumbering(tmp_path: Path) -> None:
    row = {"source": "main/0", "destination": "main/0", "request_id": "b", "bytes": 1,
           "start_s": 0.0, "end_s": 1.0}  # fmt: skip
    one = engine(tmp_path / "one", "a", 1.0)
    two = engine(tmp_path / "two", "b", 1.0, tables={"transfers": pa.Table.from_pylist([row])})
    with pytest.raises(TraceError, match="two: its clusters cannot be renamed: KV transfers"):
        merge([one, two], tmp_path / "m")
    merged = merge([two, one], tmp_path / "m")
    assert column(merged, "source", "transfers") == ["main/0"]


def test_a_client_adds_when_requests_were_sent(tmp_path: Path) -> None:
    server = engine(tmp_path / "server", "abc", 100.0)
    asker = client(tmp_path / "asker", "xba", 99.0)
    merged = merge([server, asker], tmp_path / "m")
    assert merged.manifest.vantage == "engine"
    assert column(merged, "request_id") == ["a", "b", "c"]
    assert column(merged, "arrival_s") == [1.0, 2.0, 3.0]  # as the engine saw them
    assert column(merged, "sent_s") == [2.5, 1.5, None]
    assert column(merged, "session_id") == ["A", "B", None]
    assert "token_times_s" not in merged.requests.column_names
    assert merged.manifest.notes["joined"] == {
        "requests of both": 2, "only of an engine": 1, "only of a client, left out": 1,
    }  # fmt: skip
    assert merged.manifest.ignored == []
    assert request_metrics(merged)["ttft"].tolist() == request_metrics(server)["ttft"].tolist()


def test_clients_merge_with_each_other(tmp_path: Path) -> None:
    one, two = client(tmp_path / "one", "ab", 10.0), client(tmp_path / "two", "c", 10.25)
    merged = merge([one, two], tmp_path / "m")
    assert merged.manifest.vantage == "client"
    assert column(merged, "request_id") == ["a", "c", "b"]
    assert column(merged, "token_times_s") == [[1.5, 2.5], [1.75, 2.75], [2.5, 3.5]]


def test_a_client_of_other_requests(tmp_path: Path) -> None:
    server, asker = engine(tmp_path / "server", "a", 1.0), client(tmp_path / "asker", "x", 1.0)
    with pytest.raises(TraceError, match="asker: no request of it is in an engine's bundle"):
        merge([server, asker], tmp_path / "m")


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"engine_version": "0.31.0"}, "two: engine_version is '0.31.0', '0.32.0' in "),
        ({"kind": "simulated"}, "two: kind is 'simulated', 'measured' in "),
        ({"hash_block_tokens": 16}, "two: hash_block_tokens is 16, None in "),
        ({"layout": {**deployment(), "moe": {"placement": "eplb"}}},
         "two: deployment.moe is not that of the others"),
        ({"layout": {"clusters": ["main"]}},
         "two: deployment.clusters must be a list of clusters"),
    ],
)  # fmt: skip
def test_engines_that_are_not_one_deployment(
    tmp_path: Path, changed: dict[str, Any], what: str
) -> None:
    one, two = engine(tmp_path / "one", "a", 1.0), engine(tmp_path / "two", "b", 1.0, **changed)
    with pytest.raises(TraceError) as error:
        merge([one, two], tmp_path / "m")
    assert what in str(error.value)


def test_another_model(tmp_path: Path) -> None:
    one, two = engine(tmp_path / "one", "a", 1.0), engine(tmp_path / "two", "b", 1.0)
    (two.path / "model.json").write_text('{"layers": 3}')
    with pytest.raises(TraceError, match=r"two: the model is not that of .*one"):
        merge([one, two], tmp_path / "m")


class TestCommand:
    def test_merges(self, tmp_path: Path, frontier: Callable[..., Result]) -> None:
        engine(tmp_path / "one", "ab", 1.0)
        engine(tmp_path / "two", "cd", 1.0)
        got = frontier("traces", "merge", tmp_path / "one", tmp_path / "two",
                       "--out", tmp_path / "m")  # fmt: skip
        assert got.exit_code == 0, got.output
        assert "renumbered: ['two: main is main, its replicas from 1']" in got.output
        merged = read_bundle(tmp_path / "m")
        assert merged.manifest.command == ["frontier", "traces", "merge", "one", "two"]

    def test_equal_ids_are_refused_in_one_line(
        self, tmp_path: Path, frontier: Callable[..., Result]
    ) -> None:
        one, two = engine(tmp_path / "one", "abc", 1.0), engine(tmp_path / "two", "xbc", 1.0)
        got = frontier("traces", "merge", one.path, two.path, "--out", tmp_path / "m")
        assert got.exit_code == 2
        assert got.output == (
            f"frontier: {two.path}: request 'b' is also in {one.path} (and 1 more): only bundles "
            "of engines that served different requests can be merged, not repeats of a run nor "
            "the prefill and decode side of one\n"
        )

    def test_one_bundle_is_no_merge(self, tmp_path: Path, frontier: Callable[..., Result]) -> None:
        engine(tmp_path / "one", "a", 1.0)
        got = frontier("traces", "merge", tmp_path / "one", "--out", tmp_path / "m")
        assert (got.exit_code, got.output) == (2, "frontier: merge: needs at least two bundles\n")
