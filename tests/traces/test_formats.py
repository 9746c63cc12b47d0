"""Each format on small files by hand: exact values, exact words for what is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from traces.bundle import Bundle
from traces.errors import TraceError
from traces.formats import FORMATS, recognise
from traces.formats.base import MeasuredFormat
from traces.load import load_workload
from traces.metrics import request_metrics
from traces.workload import Workload


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "f"


def faults(path: Path, text: str, fmt: str | None = None) -> list[str]:
    """The faults of a file, without the name of its folder."""
    path.write_text(text)
    with pytest.raises(TraceError) as error:
        load_workload(path, fmt)
    return [f.replace(str(path), path.name) for f in error.value.faults]


def read(path: Path, text: str) -> Workload:
    path.write_text(text)
    return load_workload(path)


def columns(table: pa.Table, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*(table[n].to_pylist() for n in names), strict=True))


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n"
BURST = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
)
BLIS = (
    "request_id,session_id,prefix_group,output_tokens,server_input_tokens,arrival_time_us,"
    "send_time_us,first_chunk_time_us,last_chunk_time_us,status\n"
)


def moon(timestamp: Any = 0, prompt: Any = 600, output: Any = 3, **keys: Any) -> str:
    row = {"timestamp": timestamp, "input_length": prompt, "output_length": output, **keys}
    return json.dumps(row) + "\n"


def bench(**changed: Any) -> str:
    result = {
        "backend": "vllm", "request_rate": 2.0, "duration": 3.0, "completed": 1,
        "total_input_tokens": 7, "request_throughput": 1.0, "input_lens": [7, 9],
        "output_lens": [3, 0], "ttfts": [0.5, 0.0], "itls": [[0.25, 0.5], []],
        "start_times": [8.0, 9.5], "errors": ["", "Traceback"], "generated_texts": ["a", ""],
    }  # fmt: skip
    return json.dumps({k: v for k, v in {**result, **changed}.items() if v is not None})


def stamps(**changed: Any) -> str:
    row = {
        "request_id": "a", "input_toks": 5, "output_toks": 2, "arrival_time": 1.7e9,
        "queued_ts": 10.0, "scheduled_ts": 11.0, "first_token_ts": 12.0, "last_token_ts": 13.0,
    }  # fmt: skip
    return json.dumps({**row, **changed}) + "\n"


class TestRecognition:
    def test_an_unknown_file_lists_the_known_formats(self, file: Path) -> None:
        known = "azure, blis, burstgpt, engine_stamps, mooncake, sharegpt, vidur, vllm_bench"
        assert faults(file, "a,b\n1,2\n") == [f"f: no known trace format (known: {known})"]

    def test_an_almost_known_file_says_what_is_missing(self, file: Path) -> None:
        (fault,) = faults(file, "arrived_at,num_prefill_tokens\n0,1\n")
        assert "; nearest is vidur, but 'num_decode_tokens' is missing (known: " in fault

    def test_an_unknown_name_is_told_the_nearest(self, file: Path) -> None:
        (fault,) = faults(file, VIDUR, "vidurr")
        assert fault.startswith("unknown workload format 'vidurr'; did you mean 'vidur'? (known: ")

    @pytest.mark.parametrize(
        ("content", "fault"),
        [
            (b"", "f: the file is empty"),
            (b"PAR1\x00\x01", "f: not a text file"),
            (gzip.compress(AZURE.encode() * 9, mtime=0)[:-9], "f: not readable as gzip: "),
        ],
    )
    def test_not_a_text(self, file: Path, content: bytes, fault: str) -> None:
        file.write_bytes(content)
        with pytest.raises(TraceError) as error:
            recognise(file)
        assert str(error.value).replace(str(file), "f").startswith(fault)

    def test_no_such_file_and_a_folder(self, tmp_path: Path) -> None:
        folder = r"a directory, but not a bundle \(no bundle.yaml, no spool\)"
        for path, what in ((tmp_path / "no", "no such file or directory"), (tmp_path, folder)):
            with pytest.raises(TraceError, match=what):
                load_workload(path)


class TestAzure:
    def test_fractions_of_any_length_and_both_spellings(self, file: Path) -> None:
        got = read(
            file,
            AZURE + "2023-11-16 23:59:59.6805900,374,44\n"
            "2023-11-17 00:00:00,396,109\n"
            "2023-11-17T00:00:00.000001+00:00,879,55\n"
            "2023-11-17 00:00:01.123456789Z,1,1\n",
        )
        assert got.requests["arrival_s"].to_pylist() == [0.0, 0.31941, 0.319411, 1.442866789]
        assert columns(got.requests, "prompt_tokens", "output_tokens")[0] == (374, 44)

    def test_faults(self, file: Path) -> None:
        rows = ["2023-11-16 18:15:46,374,44", "2023-11-16 18:15:45.5,1,1", "2023-13-40 1:1:1,1,1",
                "yesterday,1,1", "2023-11-16 18:15:47+02:00,1,1", "2023-11-16 18:15:48,-3,1.5",
                "2023-11-16 18:15:49,7"]  # fmt: skip
        want = "expected a date and time in UTC"
        assert faults(file, AZURE + "\n".join(rows)) == [
            "f:8: 2 columns, the header has 3",
            f'f:4: TIMESTAMP is "2023-13-40 1:1:1": {want}',
            f'f:5: TIMESTAMP is "yesterday": {want}',
            f'f:6: TIMESTAMP is "2023-11-16 18:15:47+02:00": {want}',
            'f:3: TIMESTAMP goes backwards: "2023-11-16 18:15:45.5" after "2023-11-16 18:15:46"',
            'f:7: ContextTokens is "-3": expected a whole number >= 0',
            'f:7: GeneratedTokens is "1.5": expected a whole number >= 0',
        ]

    def test_only_a_header_is_an_empty_workload(self, file: Path) -> None:
        for text in (AZURE, AZURE.strip()):
            assert faults(file, text) == ["f: an empty workload (no request in it)"]

    def test_a_column_given_twice(self, file: Path) -> None:
        assert faults(file, "TIMESTAMP,ContextTokens,ContextTokens,GeneratedTokens\n") == [
            "f: column 'ContextTokens' appears twice"
        ]


class TestVidur:
    def test_zero_lengths_are_skipped_and_counted(self, file: Path) -> None:
        got = read(file, VIDUR + "0,5,0\n1,0,7\n2,0,0\n3.5,6,2\n")
        assert columns(got.requests, "arrival_s", "prompt_tokens", "output_tokens") == [(3.5, 6, 2)]
        assert got.notes == {
            "requests without a prompt token skipped": 2,
            "requests without an output token skipped": 1,
        }
        assert faults(file, VIDUR + "0,5,0\n") == [
            "f: an empty workload (no request with a token to generate)"
        ]

    def test_columns_in_another_order_and_others_beside_them(self, file: Path) -> None:
        got = read(file, "x,num_decode_tokens,arrived_at,num_prefill_tokens\nq,2,1e-1, 30 \n")
        assert columns(got.requests, "arrival_s", "prompt_tokens", "output_tokens") == [
            (0.1, 30, 2)
        ]

    def test_every_fault_at_once(self, file: Path) -> None:
        assert faults(file, VIDUR + "nan,1,1\ninf,1,1\n-1,1,1\n2,x,1\n1,1,1\n") == [
            'f:2: arrived_at is "nan": expected a number >= 0',
            'f:3: arrived_at is "inf": expected a number >= 0',
            'f:4: arrived_at is "-1": expected a number >= 0',
            'f:6: arrived_at goes backwards: "1" after "2"',
            'f:5: num_prefill_tokens is "x": expected a whole number >= 0',
        ]

    def test_many_faults_are_counted_not_listed(self, file: Path) -> None:
        got = faults(file, VIDUR + "0,1,z\n" * 10)
        assert got[2:] == [
            'f:4: num_decode_tokens is "z": expected a whole number >= 0',
            "f: 7 more lines like the last",
        ]

    def test_times_keep_every_digit(self, file: Path, tmp_path: Path) -> None:
        got = read(file, VIDUR + "0.1,1,1\n0.30000000000000004,2,2\n")
        lost = FORMATS["vidur"].write(got, tmp_path / "out")  # type: ignore[attr-defined]
        assert (tmp_path / "out").read_text() == VIDUR + "0.1,1,1\n0.30000000000000004,2,2\n"
        assert lost == {"columns left out": ["request_id"]}


class TestBurstGPT:
    def test_failures_are_skipped_and_models_counted(self, file: Path) -> None:
        got = read(
            file,
            BURST + "5,s1,2.5,ChatGPT,472,18,490,Conversation log\n"
            "45,s2,0,GPT-4,1087,0,1087,Conversation log\n"
            "118,s1,1,ChatGPT,417,276,693,Conversation log\n"
            "119,,1,GPT-4,3,4,7,API log\n",
        )
        assert columns(
            got.requests, "arrival_s", "prompt_tokens", "output_tokens", "session_id", "turn"
        ) == [(5, 472, 18, "s1", 0), (118, 417, 276, "s1", 1), (119, 3, 4, None, None)]
        assert got.notes == {
            "requests without an output token skipped": 1,
            "requests by model": {"ChatGPT": 2, "GPT-4": 1},
        }


class TestMooncake:
    def test_the_id_of_a_partial_block_is_left_out(self, file: Path) -> None:
        got = read(file, moon(0, 1024, 1, hash_ids=[4, 5]) + moon(27, 1535, 2, hash_ids=[4, 6, 7]))
        assert got.requests["block_hashes"].to_pylist() == [[4, 5], [4, 6]]
        assert (got.hash_block_tokens, got.requests["arrival_s"].to_pylist()) == (512, [0.0, 0.027])

    def test_without_ids(self, file: Path) -> None:
        got = read(file, moon(0) + moon(1))
        assert "block_hashes" not in got.requests.column_names
        assert (got.hash_block_tokens, got.notes) == (None, {"prefix hashes": "none in the file"})

    def test_faults(self, file: Path) -> None:
        text = (
            moon(5, hash_ids=[1, 2, 3])
            + moon(hash_ids=["a", 2])
            + moon(9, 600.5)
            + '{"timestamp": NaN, "input_length": true, "output_length": "3"}\n'
            + '{"timestamp": 9, "input_length": 1}\n[1]\n'
            + moon(9)[:-9]
        )
        assert faults(file, text, "mooncake") == [
            "f:5: key 'output_length' is missing",
            "f:6: expected an object",
            "f:7: not JSON: Unterminated string starting at: line 1 column 39 (char 38)",
            "f:4: timestamp is NaN: expected a number >= 0",
            "f:2: timestamp goes backwards: 0 after 5",
            "f:3: input_length is 600.5: expected a whole number >= 0",
            "f:4: input_length is true: expected a whole number >= 0",
            'f:4: output_length is "3": expected a whole number >= 0',
            "f:1: 3 hash_ids do not fit 600 tokens in blocks of 512",
            'f:2: hash_ids is ["a", 2]: expected whole numbers',
        ]

    def test_shared_blocks_stay_shared_through_writing(self, file: Path, tmp_path: Path) -> None:
        ids = ([70, 80, 1], [70, 80, 2], [70, 90])
        text = "".join(moon(t, 1100 if len(i) > 2 else 1024, 1, hash_ids=i)
                       for t, i in enumerate(ids))  # fmt: skip
        out = tmp_path / "out"
        FORMATS["mooncake"].write(read(file, text), out)  # type: ignore[attr-defined]
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [r["hash_ids"] for r in rows] == [[0, 1, 2], [0, 1, 3], [0, 4]]


class TestShareGPT:
    def row(self, **changed: Any) -> str:
        row = {"input_toks": 35, "output_toks": 2, "arrival_time_ns": 46926808, **changed}
        return json.dumps(row) + "\n"

    def test_hashes_are_numbers_of_their_digits(self, file: Path) -> None:
        got = read(file, self.row(block16_hashes=["bfa01e9b91ed", "00000000000a"]))
        assert got.requests["block_hashes"].to_pylist() == [[0xBFA01E9B91ED, 10]]
        assert got.hash_block_tokens == 16
        assert got.requests["arrival_s"].to_pylist() == [0.046926808]

    def test_faults(self, file: Path) -> None:
        text = (
            self.row(block16_hashes=["a", "b", "c"])
            + self.row(block16_hashes=["xyz"])
            + self.row(arrival_time_ns=-1)
        )
        assert faults(file, text) == [
            "f:3: arrival_time_ns is -1: expected a whole number >= 0",
            "f:3: arrival_time_ns goes backwards: -1 after 46926808",
            "f:1: 3 hashes do not fit 35 tokens in blocks of 16",
            'f:2: block16_hashes is ["xyz"]: expected hex digits',
        ]


def bundle_of(path: Path, text: str) -> Bundle:
    path.write_text(text)
    form = recognise(path)
    assert isinstance(form, MeasuredFormat)
    manifest, tables = form.read_bundle(path)
    return Bundle(path, manifest, tables)


class TestEngineStamps:
    def test_clocks_are_aligned_by_the_smallest_delay(self, file: Path) -> None:
        text = stamps(queued_ts=10.5) + stamps(
            request_id="b", arrival_time=1.7e9 + 2, queued_ts=12.25, scheduled_ts=12.25,
            first_token_ts=12.5, last_token_ts=14.5, output_toks=5,
        )  # fmt: skip
        bundle = bundle_of(file, text)
        # b was queued 0.25 s after the offset a would give: a waited 0.25 s longer than b
        assert columns(bundle.requests, "request_id", "arrival_s", "queued_s", "scheduled_s",
                       "first_token_s", "finished_s") == [
            ("a", 0.0, 0.25, 0.75, 1.75, 2.75), ("b", 2.0, 2.0, 2.0, 2.25, 4.25),
        ]  # fmt: skip
        assert bundle.manifest.clock["zero_monotonic_s"] == 10.25
        assert bundle.manifest.clock["zero_epoch_s"] == 1.7e9
        metrics = request_metrics(bundle)
        assert metrics["ttft"].tolist() == [1.75, 0.25]
        assert metrics["tpot"].tolist() == [1.0, 0.5]

    def test_the_engine_is_what_the_recorder_says_beside_it(self, file: Path) -> None:
        (file.parent / "meta.json").write_text('{"vllm_version": "0.19.0", "model": "m", "x": 1}')
        manifest = bundle_of(file, stamps()).manifest
        assert (manifest.engine, manifest.engine_version) == ("vllm", "0.19.0")
        assert manifest.notes == {"converted from": "engine_stamps f", "model": "m"}

    def test_faults(self, file: Path) -> None:
        text = stamps(scheduled_ts=9.5) + stamps(queued_ts=None, request_id=7, last_token_ts=1)
        assert faults(file, text) == [
            "f:2: queued_ts is null: expected a number >= 0",
            "f:1: scheduled_ts is before queued_ts",
            "f:2: last_token_ts is before first_token_ts",
            "f:2: request_id is 7: expected a text",
        ]

    def test_an_id_given_twice(self, file: Path) -> None:
        file.write_text(stamps() * 2)
        with pytest.raises(TraceError, match="request_id='a' appears 2 times"):
            load_workload(file)


class TestVLLMBench:
    def test_client_bundle(self, file: Path) -> None:
        bundle = bundle_of(file, bench())
        assert columns(bundle.requests, "sent_s", "first_token_s", "finished_s", "status",
                       "token_times_s", "output_tokens") == [
            (0.0, 0.5, 1.25, "finished", [0.5, 0.75, 1.25], 3),
            (1.5, None, None, "failed", [], 0),
        ]  # fmt: skip
        assert (bundle.manifest.vantage, bundle.manifest.clock["zero_monotonic_s"]) == ("client", 8)
        assert "generated_texts" not in json.dumps(bundle.manifest.notes)

    def test_demand_skips_failures(self, file: Path) -> None:
        got = read(file, bench())
        assert columns(got.requests, "request_id", "arrival_s", "output_tokens") == [("0", 0.0, 3)]
        assert got.notes == {"requests without an output token skipped": 1}

    def test_older_results_have_no_start_times(self, file: Path) -> None:
        got = read(file, bench(start_times=None))
        assert (
            got.notes["arrivals"] == "none in the file (start_times): all at 0, for --concurrency"
        )
        with pytest.raises(TraceError, match="'start_times' is missing: when requests ran is not"):
            bundle_of(file, bench(start_times=None))

    @pytest.mark.parametrize(
        ("text", "want"),
        [
            (bench(itls=None), ["f: 'itls' is missing: was it saved with --save-detailed?"]),
            (bench(itls=3), ["f: itls is no list"]),
            (
                bench(ttfts=[0.5]),
                ["f: lists of different lengths: input_lens 2, output_lens 2, ttfts 1, itls 2, "
                 "start_times 2"],
            ),
            (
                bench(input_lens=[], output_lens=[], ttfts=[], itls=[], start_times=[]),
                ["f: an empty workload (no request in it)"],
            ),
            (bench(start_times=[1.0, float("nan")]),
             ["f: request 1: start_times is NaN: expected a number >= 0"]),
            (bench(input_lens=[-1, 9]),
             ["f: request 0: input_lens is -1: expected a whole number >= 0"]),
            (bench()[:-9], ["f:1: not JSON: Expecting value: line 1 column 296 (char 295)"]),
            (
                bench() + "\n" + bench(),
                ["f:2: not JSON: Extra data: line 2 column 1 (char 305): "
                 "several results in one file"],
            ),
        ],
    )  # fmt: skip
    def test_faults(self, file: Path, text: str, want: list[str]) -> None:
        assert faults(file, text, "vllm_bench") == want

    def test_gaps_that_are_no_times(self, file: Path) -> None:
        with pytest.raises(TraceError) as error:
            bundle_of(file, bench(itls=[[0.25, -0.5], [None]]))
        assert [f.replace(str(file), "f") for f in error.value.faults] == [
            "f: request 0: itls is [0.25, -0.5]: expected numbers >= 0",
            "f: request 1: itls is [null]: expected numbers >= 0",
        ]


class TestBlis:
    def test_what_was_sent_counts_not_what_was_due(self, file: Path) -> None:
        text = (
            BLIS + "0,,g,3,600,0,1000000000,1000500000,1001500000,ok\n"
            "1,s,,2,20,1000000,1003000000,0,0,error\n"
            "2,,,1,7,500000,1000750000,1000800000,1000800000,ok\n"
        )
        bundle = bundle_of(file, text)
        assert columns(bundle.requests, "request_id", "arrival_s", "sent_s", "first_token_s",
                       "finished_s", "status") == [
            ("0", 0.0, 0.0, 0.5, 1.5, "finished"), ("2", 0.75, 0.75, 0.8, 0.8, "finished"),
            ("1", 3.0, 3.0, None, None, "failed"),
        ]  # fmt: skip
        assert bundle.manifest.clock["zero_epoch_s"] == 1000.0
        assert load_workload(file).notes == {
            "sent up to this many seconds late by the client": 2.0,
            "requests with a session_id, not kept": 1,
            "requests with a prefix_group, not kept": 1,
        }

    def test_faults(self, file: Path) -> None:
        text = BLIS + "0,,,3,600,0,1000,900,800,ok\n1,,,3,600,0,x,0,0,error\n"
        assert faults(file, text) == [
            'f:3: send_time_us is "x": expected a whole number >= 0',
            "f:2: first_chunk_time_us is before sending",
            "f:2: last_chunk_time_us is before first_chunk_time_us",
        ]
