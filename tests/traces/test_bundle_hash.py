"""A bundle's hash follows its content and nothing else."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from traces.bundle import Bundle, Manifest, bundle_hash, content_hash, read_bundle, write_bundle
from traces.errors import TraceError

REQUESTS = pa.table(
    {
        "request_id": ["a", "b", "ü"],
        "arrival_s": [0.0, 0.5, 1.0],
        "prompt_tokens": [3, 4, 5],
        "output_tokens": [1, 2, 3],
        "session_id": ["s", None, "s"],
        "block_hashes": pa.array([[1, 2], None, []], pa.list_(pa.int64())),
    }
)


def bundle(path: Path, requests: pa.Table = REQUESTS, **manifest: object) -> Bundle:
    write_bundle(path, Manifest(kind="measured", **manifest), {"requests": requests})
    return read_bundle(path)


def test_equal_for_equal_content_however_it_is_stored(tmp_path: Path) -> None:
    one = bundle(tmp_path / "one", command=["vllm"], notes={"x": 1})
    two = bundle(tmp_path / "two", command=["other"])
    narrow = REQUESTS.set_column(2, "prompt_tokens", REQUESTS["prompt_tokens"].cast(pa.int16()))
    pq.write_table(
        narrow, tmp_path / "two" / "requests.parquet", compression="snappy", row_group_size=1
    )
    assert bundle_hash(one) == bundle_hash(two) == bundle_hash(read_bundle(two.path, eager=False))


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("prompt_tokens", pa.array([3, 4, 6])),
        ("request_id", pa.array(["ab", "", "ü"])),
        ("session_id", pa.array(["s", "", "s"])),
        ("block_hashes", pa.array([[1], [2], []], pa.list_(pa.int64()))),
        ("block_hashes", pa.array([[1, 2], [], []], pa.list_(pa.int64()))),
    ],
)
def test_differs_when_one_value_differs(tmp_path: Path, column: str, values: pa.Array) -> None:
    changed = REQUESTS.set_column(REQUESTS.column_names.index(column), column, values)
    before = bundle_hash(bundle(tmp_path / "a"))
    assert bundle_hash(bundle(tmp_path / "b", changed)) != before


def test_differs_with_the_deployment_and_the_row_order(tmp_path: Path) -> None:
    before = bundle_hash(bundle(tmp_path / "a"))
    other = bundle(tmp_path / "c", deployment={"clusters": [{"name": "x"}]})
    assert bundle_hash(other) != before
    same_time = REQUESTS.set_column(1, "arrival_s", pa.array([0.0, 0.0, 0.0]))
    swapped = same_time.take(pa.array([1, 0, 2]))
    hashes = {bundle_hash(bundle(tmp_path / n, t)) for n, t in (("d", same_time), ("e", swapped))}
    assert len(hashes) == 2


def test_the_model_counts_but_not_where_it_lies(tmp_path: Path) -> None:
    tables = {"requests": REQUESTS}
    hashes = []
    for name, layers in (("a", 1), ("b", 2)):
        write_bundle(
            tmp_path / name, Manifest(kind="measured"), tables, model_config={"layers": layers}
        )
        hashes.append(bundle_hash(read_bundle(tmp_path / name)))
    moved = read_bundle(tmp_path / "a")
    (tmp_path / "a" / "elsewhere.json").write_bytes((tmp_path / "a" / "model.json").read_bytes())
    moved.manifest.deployment["model"] = "elsewhere.json"
    assert hashes[0] != hashes[1]
    assert bundle_hash(moved) == hashes[0]


def test_content_hash_of_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    assert len(content_hash(tmp_path / "f")) == 32
    with pytest.raises(TraceError, match="gone: No such file"):
        content_hash(tmp_path / "gone")


def test_a_bundle_read_in_part_hashes_whole(tmp_path: Path) -> None:
    whole = bundle(tmp_path / "a")
    part = read_bundle(whole.path, skip=["block_hashes"])
    assert "block_hashes" not in part.requests.column_names
    assert bundle_hash(part) == bundle_hash(whole)
