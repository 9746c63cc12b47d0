"""``frontier live``: load for a real endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from replay.verbs.common import ANY_PATH, DIRECTORY


@click.command()
@click.argument("workload", type=ANY_PATH)
@click.option("--url", required=True, help="Base URL, as http://host:8000.")
@click.option("--decode-url", "decode_urls", multiple=True,
              help="A decode engine's, repeatable; --url is then prefill's.")  # fmt: skip
@click.option("--out", required=True, type=DIRECTORY, help="Directory of the client's bundle.")
@click.option("--model", help="Name to ask for (default: the first one served).")
@click.option(
    "--concurrency", type=click.IntRange(1), help="Closed loop with N (sessions) in flight."
)
@click.option("--sessions", is_flag=True, help="A turn leaves when its session has thought.")
@click.option("--rate-scale", type=click.FloatRange(0, min_open=True), default=1.0)
@click.option("--limit", type=click.IntRange(1), help="Only the first N requests.")
@click.option("--bench-json", type=ANY_PATH, help="Also as vllm bench serve's result file.")
@click.option("--warmup", type=click.IntRange(0), default=0, help="Requests sent before the rest.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the token ids.")
@click.option("--vocab-size", type=int, help="Token ids stay below this.")
@click.option("--temperature", type=click.FloatRange(0), default=1.0, show_default=True)
def live(
    workload: Path, out: Path, rate_scale: float, limit: int | None, bench_json: Path | None,
    **options: Any,
) -> None:  # fmt: skip
    """Send WORKLOAD to a real OpenAI-compatible endpoint and record what the client sees."""
    from replay.live import LiveOptions, run_live

    bundle = run_live(workload, out, LiveOptions(**options), rate_scale=rate_scale, limit=limit)
    if bench_json is not None:
        from traces.bench_result import write_bench_result

        write_bench_result(bundle, bench_json)
    click.echo(f"sent {len(bundle.requests)} requests: {out}", err=True)
