"""What every trace format promises, whatever it looks like."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from traces.bundle import read_bundle, write_bundle
from traces.errors import TraceError
from traces.formats import FORMATS, recognise
from traces.formats.base import MeasuredFormat, WritableFormat
from traces.load import load_workload


@dataclass(frozen=True)
class Sample:
    """A small file of a format, and the three requests in it."""

    text: str
    arrival_s: tuple[float, ...] = (0.0, 0.25, 1.5)
    prompt: tuple[int, ...] = (600, 20, 1100)
    output: tuple[int, ...] = (3, 1, 40)


def lines(*rows: object) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


SAMPLES = {
    "azure": Sample(
        lines(
            "TIMESTAMP,ContextTokens,GeneratedTokens",
            "2023-11-16 18:15:46.7500000,600,3",
            "2023-11-16 18:15:47,20,1",
            "2023-11-16 18:15:48.25,1100,40",
        )
    ),
    "blis": Sample(
        lines(
            "request_id,tenant_id,output_tokens,server_input_tokens,arrival_time_us,"
            "send_time_us,first_chunk_time_us,last_chunk_time_us,status",
            "0,a,3,600,5,1000000000000,1000000100000,1000000300000,ok",
            "2,b,40,1100,1500005,1000001500000,1000001700000,1000002700000,ok",
            "1,a,1,20,250005,1000000250000,1000000260000,1000000260000,ok",
        )
    ),
    "burstgpt": Sample(
        lines(
            "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
            "5,ChatGPT,600,3,603,Conversation log",
            "5.25,GPT-4,20,1,21,API log",
            "6.5,ChatGPT,1100,40,1140,Conversation log",
        ),
        arrival_s=(5.0, 5.25, 6.5),
    ),
    "engine_stamps": Sample(
        lines(
            *(
                {
                    "request_id": f"b{i}", "input_toks": p, "output_toks": o,
                    "arrival_time": 1.7e9 + t, "queued_ts": 500 + t + late,
                    "scheduled_ts": 500.5 + t, "first_token_ts": 501 + t, "last_token_ts": 502 + t,
                }
                for i, (p, o, t, late) in enumerate(
                    ((600, 3, 0.0, 0.25), (20, 1, 0.25, 0.0), (1100, 40, 1.5, 0.125))
                )
            )
        )
    ),
    "mooncake": Sample(
        lines(
            {"timestamp": 0, "input_length": 600, "output_length": 3, "hash_ids": [7, 8]},
            {"timestamp": 250, "input_length": 20, "output_length": 1, "hash_ids": [9]},
            {"timestamp": 1500, "input_length": 1100, "output_length": 40, "hash_ids": [7, 5, 6]},
        )
    ),
    "sharegpt": Sample(
        lines(
            *(
                {
                    "input_toks": p, "output_toks": o, "arrival_time_ns": t,
                    "block16_hashes": [f"{k:012x}" for k in range(p // 16)],
                }
                for p, o, t in ((600, 3, 0), (20, 1, 250_000_000), (1100, 40, 1_500_000_000))
            )
        )
    ),
    "vidur": Sample(
        lines(
            "arrived_at,num_prefill_tokens,num_decode_tokens",
            "0.0,600,3",
            "0.25,20,1",
            "1.5,1100,40",
        )
    ),
    "vllm_bench": Sample(
        json.dumps(
            {
                "date": "20260101-000000", "backend": "vllm", "model_id": "m", "num_prompts": 3,
                "request_rate": "inf", "duration": 3.0, "completed": 3,
                "total_input_tokens": 1720, "total_output_tokens": 44, "request_throughput": 1.0,
                "input_lens": [600, 1100, 20], "output_lens": [3, 40, 1],
                "ttfts": [0.5, 0.25, 0.125], "itls": [[0.25, 0.25], [0.5] * 39, []],
                "start_times": [100.0, 101.5, 100.25], "generated_texts": ["x", "y", "z"],
                "errors": ["", "", ""],
            }
        )
    ),
}  # fmt: skip

every_format = pytest.mark.parametrize("name", FORMATS)
every_writable = pytest.mark.parametrize(
    "name", [n for n, f in FORMATS.items() if isinstance(f, WritableFormat)]
)
every_measured = pytest.mark.parametrize(
    "name", [n for n, f in FORMATS.items() if isinstance(f, MeasuredFormat)]
)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_every_format_has_a_sample_and_its_own_name() -> None:
    assert sorted(SAMPLES) == list(FORMATS)
    assert {name: f.name for name, f in FORMATS.items()} == {n: n for n in FORMATS}


@every_format
def test_recognised_by_content_alone(name: str, tmp_path: Path) -> None:
    data = SAMPLES[name].text.encode()
    for content in (
        data,
        b"\xef\xbb\xbf" + data,
        data.replace(b"\n", b"\r\n"),
        gzip.compress(data),
    ):
        path = tmp_path / "anything.bin"
        path.write_bytes(content)
        assert recognise(path).name == name


@every_format
def test_no_other_format_would_take_it(name: str) -> None:
    mine = {*FORMATS[name].columns}
    assert mine
    assert not [n for n, f in FORMATS.items() if n != name and mine <= {*f.columns}]


@every_format
def test_reads_the_demand_by_arrival(name: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    for newline in ("\n", "\r\n"):
        path = tmp_path / "w"
        path.write_bytes(sample.text.replace("\n", newline).encode())
        table = load_workload(path).requests
        assert tuple(table["arrival_s"].to_pylist()) == sample.arrival_s
        assert tuple(table["prompt_tokens"].to_pylist()) == sample.prompt
        assert tuple(table["output_tokens"].to_pylist()) == sample.output
        assert len(set(table["request_id"].to_pylist())) == 3


@every_format
def test_the_place_of_the_file_leaves_no_trace(name: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    one, two = (written(d / "w", SAMPLES[name].text) for d in (tmp_path, tmp_path / "elsewhere"))
    assert load_workload(one) == load_workload(two)


@every_format
def test_an_empty_file_is_one_clear_line(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "w", "\n")
    with pytest.raises(TraceError) as error:
        load_workload(path, name)
    assert len(error.value.faults) == 1
    assert str(error.value).startswith(f"{path}")


@every_format
def test_a_truncated_file_is_a_fault_that_names_the_line(name: str, tmp_path: Path) -> None:
    whole = SAMPLES[name].text.rstrip()
    path = written(tmp_path / "w", whole[: whole.rindex(",")])
    with pytest.raises(TraceError, match=r"^[^ ]*w:\d+: ") as error:
        load_workload(path, name)
    assert len(error.value.faults) == 1


# vllm_bench is one object, whose lists are named by its own tests
@pytest.mark.parametrize("name", [n for n in FORMATS if n != "vllm_bench"])
def test_each_column_missing_is_named(name: str, tmp_path: Path) -> None:
    first, *rest = SAMPLES[name].text.splitlines()
    for column in FORMATS[name].columns:
        if first.startswith("{"):
            row = json.loads(first)
            del row[column]
            changed = [json.dumps(row), *rest]
        else:
            header = ["gone" if c == column else c for c in first.split(",")]
            changed = [",".join(header), *rest]
        path = written(tmp_path / "w", "\n".join(changed))
        with pytest.raises(TraceError) as error:
            load_workload(path, name)
        assert f"{column!r} is missing" in str(error.value)


@every_writable
def test_what_can_be_written_comes_back(name: str, tmp_path: Path) -> None:
    form = FORMATS[name]
    assert isinstance(form, WritableFormat)
    workload = load_workload(written(tmp_path / "w", SAMPLES[name].text))
    form.write(workload, tmp_path / "out")
    form.write(workload, tmp_path / "again.gz")
    assert (tmp_path / "out").read_bytes() == gzip.decompress((tmp_path / "again.gz").read_bytes())
    back = load_workload(tmp_path / "again.gz", name)
    lengths = ["arrival_s", "prompt_tokens", "output_tokens"]
    assert back.requests.select(lengths) == workload.requests.select(lengths)
    with pytest.raises(TraceError, match="out: exists; choose another --out"):
        form.write(workload, tmp_path / "out")


@every_measured
def test_what_was_measured_makes_a_sound_bundle(name: str, tmp_path: Path) -> None:
    form, sample = FORMATS[name], SAMPLES[name]
    assert isinstance(form, MeasuredFormat)
    path = written(tmp_path / "w", sample.text)
    manifest, tables = form.read_bundle(path)
    write_bundle(tmp_path / "b", manifest, tables)
    bundle = read_bundle(tmp_path / "b")
    assert bundle.manifest.kind == "measured"
    assert bundle.requests["status"].to_pylist() == ["finished"] * 3
    demand = load_workload(tmp_path / "b").requests
    names = ["request_id", "arrival_s", "prompt_tokens", "output_tokens"]
    assert demand.select(names) == load_workload(path).requests.select(names)
