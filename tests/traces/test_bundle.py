"""Bundles on disk: written once, checked on reading, every fault by file, row and column."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import Result

from traces.bundle import Manifest, inside, is_bundle, read_bundle, write_bundle
from traces.errors import TraceError

REQUESTS = {
    "request_id": ["a", "b"], "arrival_s": [0.0, 1.0], "prompt_tokens": [3, 4],
    "output_tokens": [1, 2], "first_token_s": [0.5, 1.5], "finished_s": [0.5, 2.0],
    "block_hashes": [[1, -2], []],
}  # fmt: skip
STEPS = {
    "cluster": ["main"] * 2, "replica": [0] * 2, "step": [0, 1], "start_s": [0.0, 0.5],
    "end_s": [0.25, 0.75], "prefill_tokens": [3, 4], "decode_tokens": [0, 1], "running": [1, 2],
    "waiting": [0, 0],
}  # fmt: skip


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    tables = {"requests": pa.table(REQUESTS), "steps": pa.table(STEPS)}
    write_bundle(tmp_path / "b", Manifest("measured", seed=3), tables, model_config={"a": 1})
    return tmp_path / "b"


def faults(path: Path, **options: Any) -> list[str]:
    with pytest.raises(TraceError) as error:
        read_bundle(path, **options)
    return [f.replace(f"{path}/", "").replace(str(path), ".") for f in error.value.faults]


def rewrite(bundle: Path, table: str, **changed: Any) -> None:
    """Write a table anew with other columns; None leaves one out."""
    columns = {**(REQUESTS if table == "requests" else STEPS), **changed}
    kept = {k: v for k, v in columns.items() if v is not None}
    pq.write_table(pa.table(kept), bundle / f"{table}.parquet")


def test_what_was_written_is_read(bundle: Path) -> None:
    read = read_bundle(bundle)
    assert read.tables == ["requests", "steps"]
    assert read.requests.to_pydict() == REQUESTS
    assert read.manifest == Manifest("measured", seed=3, deployment={"model": "model.json"})
    assert read.model_config() == {"a": 1}
    assert "steps" in read
    assert "spans" not in read


def test_skipped_columns_are_neither_read_nor_checked(bundle: Path) -> None:
    rewrite(bundle, "requests", block_hashes=["x", "y"])
    assert faults(bundle) == [
        "requests.parquet: column 'block_hashes': expected list[int], got string"
    ]
    assert "block_hashes" not in read_bundle(bundle, skip=["block_hashes"]).requests.column_names


def test_columns_of_nulls_are_not_written(tmp_path: Path) -> None:
    requests = pa.table({**REQUESTS, "sent_s": pa.array([None, None], pa.float64())})
    write_bundle(tmp_path / "b", Manifest("measured"), {"requests": requests})
    assert "sent_s" not in read_bundle(tmp_path / "b").requests.column_names


class TestRefusals:
    def test_no_bundle(self, tmp_path: Path) -> None:
        assert faults(tmp_path / "gone") == [".: not a bundle (no such directory)"]
        assert faults(tmp_path) == [".: not a bundle (no bundle.yaml)"]
        assert not is_bundle(tmp_path)

    def test_a_truncated_table(self, bundle: Path) -> None:
        file = bundle / "requests.parquet"
        file.write_bytes(file.read_bytes()[:-40])
        (fault,) = faults(bundle)
        assert fault.startswith("requests.parquet: not readable as parquet: ")

    def test_an_empty_file(self, bundle: Path) -> None:
        (bundle / "steps.parquet").write_bytes(b"")
        (fault,) = faults(bundle)
        assert fault.startswith("steps.parquet: not readable as parquet: ")

    def test_no_requests(self, bundle: Path) -> None:
        (bundle / "requests.parquet").unlink()
        assert faults(bundle) == ["requests.parquet: missing"]

    def test_faults_of_all_tables_at_once(self, bundle: Path) -> None:
        rewrite(bundle, "requests", prompt_tokens=None, outputtokens=[1, 2])
        rewrite(bundle, "steps", end_s=[-1.0, float("nan")])
        first, second, *rest = faults(bundle)
        assert first == "requests.parquet: column 'prompt_tokens' is missing"
        unknown = "requests.parquet: unknown column 'outputtokens'; did you mean 'output_tokens'?"
        assert second.startswith(unknown)
        assert rest == [
            "steps.parquet: row 0, column 'end_s' is -1.0: must be a number >= 0",
            "steps.parquet: row 1, column 'end_s' is nan: must be a number >= 0",
        ]

    def test_only_when_asked_for(self, bundle: Path) -> None:
        rewrite(bundle, "steps", end_s=None)
        lazy = read_bundle(bundle, eager=False)
        assert len(lazy.requests) == 2
        with pytest.raises(TraceError, match=r"steps.parquet: column 'end_s' is missing"):
            lazy.table("steps")

    def test_the_command_line_exits_with_2_and_no_traceback(
        self, bundle: Path, frontier: Callable[..., Result]
    ) -> None:
        rewrite(bundle, "requests", arrival_s=[1.0, 0.5])
        got = frontier("traces", "inspect", bundle)
        assert got.exit_code == 2
        assert got.output == (
            f"frontier: {bundle}/requests.parquet: row 0, column 'first_token_s' is before "
            f"'arrival_s'\nfrontier: {bundle}/requests.parquet: row 0, column 'finished_s' is "
            f"before 'arrival_s'\nfrontier: {bundle}/requests.parquet: row 1, column 'arrival_s' "
            "goes backwards\n"
        )


class TestManifest:
    @pytest.mark.parametrize(
        ("changed", "what"),
        [
            ({"kindd": 1}, "unknown key 'kindd'; did you mean 'kind'? (known: clock, command, "),
            ({"schema": 2}, "schema is 2, this version reads 1"),
            ({"schema": None}, "schema is None, this version reads 1"),
            ({"kind": "measurd"}, "kind is 'measurd'; did you mean 'measured'? (known: measured, "),
            ({"vantage": "gpu"}, "vantage is 'gpu' (known: client, engine)"),
            ({"clock": []}, "clock must be a dict"),
            ({"ignored": "x"}, "ignored must be a list"),
            ({"hash_block_tokens": 0}, "hash_block_tokens must be a positive number of tokens"),
        ],
    )
    def test_faults(self, bundle: Path, changed: dict[str, Any], what: str) -> None:
        file = bundle / "bundle.yaml"
        content = {**yaml.safe_load(file.read_text()), **changed}
        file.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
        (fault,) = faults(bundle)
        assert fault.startswith(f"bundle.yaml: {what}")

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            (b"- 1", "expected keys, got list"),
            (b"", "expected keys, got NoneType"),
            (b"a: [", "not YAML: while parsing a flow node"),
            (b"\xff\xfe\xff", "not YAML: "),
            (b"kind: !!python/object/apply:os.getcwd []\n", "not YAML: could not determine a con"),
        ],
    )
    def test_not_a_manifest(self, bundle: Path, content: bytes, what: str) -> None:
        (bundle / "bundle.yaml").write_bytes(content)
        (fault,) = faults(bundle)
        assert fault.startswith(f"bundle.yaml: {what}")

    def test_a_model_that_is_not_json(self, bundle: Path) -> None:
        (bundle / "model.json").write_text("{")
        with pytest.raises(TraceError, match=r"model.json: not JSON: "):
            read_bundle(bundle).model_config()


class TestPaths:
    @pytest.mark.parametrize("path", ["../secret.json", "/etc/hostname", "a/../../secret.json"])
    def test_no_path_leaves_the_bundle(self, bundle: Path, path: str) -> None:
        (bundle.parent / "secret.json").write_text("{}")
        write = yaml.safe_load((bundle / "bundle.yaml").read_text())
        write["deployment"]["model"] = path
        (bundle / "bundle.yaml").write_text(yaml.safe_dump(write))
        with pytest.raises(TraceError) as error:
            read_bundle(bundle).model_config()
        assert str(error.value) == f"{bundle}/bundle.yaml: path {path!r} leaves the bundle"

    def test_nor_a_link(self, bundle: Path) -> None:
        (bundle.parent / "secret.json").write_text("{}")
        (bundle / "model.json").unlink()
        (bundle / "model.json").symlink_to(bundle.parent / "secret.json")
        with pytest.raises(TraceError, match="leaves the bundle"):
            read_bundle(bundle).model_config()

    def test_paths_within(self, bundle: Path) -> None:
        assert inside(bundle, "spool/../model.json") == (bundle / "model.json").resolve()


class TestWriting:
    def test_a_measured_bundle_is_never_overwritten(self, bundle: Path) -> None:
        with pytest.raises(TraceError) as error:
            write_bundle(bundle, Manifest("simulated"), {"requests": pa.table(REQUESTS)})
        assert str(error.value) == (
            f"{bundle}: holds a measured bundle, which is never overwritten"
        )
        assert read_bundle(bundle).manifest.kind == "measured"

    def test_a_simulated_one_is_replaced_whole(self, tmp_path: Path) -> None:
        tables = {"requests": pa.table(REQUESTS), "steps": pa.table(STEPS)}
        write_bundle(tmp_path / "s", Manifest("simulated"), tables, model_config={})
        write_bundle(tmp_path / "s", Manifest("simulated"), {"requests": pa.table(REQUESTS)})
        assert sorted(f.name for f in (tmp_path / "s").iterdir()) == [
            "bundle.yaml", "requests.parquet",
        ]  # fmt: skip

    def test_what_is_no_bundle_is_not_touched(self, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("x")
        for path in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
            with pytest.raises(
                TraceError, match="exists and is not a bundle; choose another --out"
            ):
                write_bundle(path, Manifest("simulated"), {"requests": pa.table(REQUESTS)})
        assert [f.name for f in (tmp_path / "mine").iterdir()] == ["thesis.txt"]

    def test_no_pickle_in_the_tables(self, bundle: Path) -> None:
        for file in bundle.glob("*.parquet"):
            assert b"pandas" not in file.read_bytes()
