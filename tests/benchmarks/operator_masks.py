"""How well operators are predicted that were held out, mask by mask: a table of all masks.

    python tests/benchmarks/operator_masks.py profiles/h100 --out out/masks \
        [--only gemm] [--rows "dtype == 'bfloat16'"] [--against aiconfigurator,forest]

Whole grid lines, whole shapes and the largest sizes of a profile of aiconfigurator's tables are
held out in turn. Predictions are kept under --out, a file a mask: a mask or a peer that is there
is not run again. ``aiconfigurator`` is its own engine on its own tables without the held-out
rows (``pip install aiconfigurator-core``; skipped where it is not installed), ``forest`` a random
forest of the raw shape.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
import pandas as pd
from operator_peers import PEERS, Masked, PeerMissing

from simulator.operators import fit_library
from validation.operators import held_out, read_kernels, score_of, split

PREFILL, DECODE = "operator == 'attention_prefill'", "operator == 'attention_decode'"
GEMM, MOE = "operator == 'linear'", "operator == 'grouped_gemm'"
MLA = "operator in ['mla_prefill', 'mla_decode']"
MESSAGE = "operator in ['all_reduce', 'all_gather', 'reduce_scatter', 'all_to_all']"
MASKS = {  # name: what is held out, and the share within 10 % to reach (collectives: MAPE)
    "prefill-lengths": (f"{PREFILL} and query_tokens in [32, 256, 1536, 6144]", 0.96),
    "prefill-batches": (f"{PREFILL} and batch in [4, 32]", 0.96),
    "prefill-heads": (f"{PREFILL} and heads in [8, 20, 48]", 0.92),
    "prefill-largest": (f"{PREFILL} and query_tokens >= 10240", 0.95),
    "decode-batches": (f"{DECODE} and batch in [8, 64]", 0.95),
    "decode-lengths": (f"{DECODE} and context_tokens in [127, 2047]", 0.90),
    "decode-heads": (f"{DECODE} and heads in [8, 20, 48]", 0.95),
    "decode-largest": (f"{DECODE} and context_tokens >= 8191", 0.83),
    "gemm-m": (f"{GEMM} and m in [5, 12, 33, 48, 112, 193, 768, 2048, 3329]", 0.93),
    "gemm-n": (f"{GEMM} and n in [256, 1536, 4096]", 0.93),
    "gemm-k": (f"{GEMM} and k in [256, 1536, 4096]", 0.93),
    "gemm-largest": (f"{GEMM} and m > 4400", 0.60),
    "moe-tokens": (f"{MOE} and tokens in [16, 96, 320, 1536, 6144]", 0.92),
    "moe-tp": (f"{MOE} and tp == 4", 0.80),
    "moe-ep": (f"{MOE} and ep == 8", 0.80),
    "mla-lengths": (f"{MLA} and (query_tokens in [32, 256, 1536, 6144] or "
                    "(query_tokens == 1 and context_tokens in [128, 2048]))", 0.97),
    "mla-batches": (f"{MLA} and batch in [4, 32]", 0.97),
    "collectives": (f"{MESSAGE} and (bytes in [4096, 65536, 1048576, 67108864] "
                    "or (hidden > 0 and tokens in [8, 64, 512]))", 0.05),
}  # fmt: skip


@click.command()
@click.argument("kernels", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--only", default="", help="Masks whose name begins so.")
@click.option("--rows", "part", default="", help="Of the profile, take only rows of this query.")
@click.option("--against", default="", help=f"Peers, with commas: {', '.join(PEERS)}.")
def main(kernels: Path, out: Path, only: str, part: str, against: str) -> None:
    """Predict every mask's rows, print the table."""
    peers = [name for name in against.split(",") if name]
    if unknown := sorted(set(peers) - set(PEERS)):
        raise click.BadParameter(f"{unknown[0]}: not one of {', '.join(PEERS)}")
    rows = read_kernels(kernels)
    if part:
        rows = rows[held_out(rows, part)].reset_index(drop=True)
    out.mkdir(parents=True, exist_ok=True)
    for name, (mask, _) in MASKS.items():
        if name.startswith(only):
            predict(rows, mask, out / f"{name}.parquet", peers)
    table(out, peers)


def predict(rows: pd.DataFrame, mask: str, file: Path, peers: list[str]) -> None:
    """Measured and predicted seconds of the rows that a mask holds out; NaN is a refusal."""
    kept = pd.read_parquet(file) if file.exists() else pd.DataFrame()
    wanted = [n for n in ("frontier", *peers) if n not in kept]
    if not wanted:
        return
    known, asked = split(rows, held_out(rows, mask))
    if kept.empty:
        kept = asked[["operator", "backend", "dtype", "duration_s"]].copy()
    for name in wanted:
        click.echo(f"{file.stem}: {name}, {len(asked)} rows", err=True)
        if name == "frontier":
            found = fit_library(known, workers=1).predict(asked)
            kept["extrapolated"], kept[name] = found.extrapolated, found.seconds
            continue
        try:
            kept[name] = PEERS[name](Masked(known, asked, mask))
        except PeerMissing as missing:
            click.echo(f"{name} left out: {missing}", err=True)
    kept.to_parquet(file)


def table(out: Path, peers: list[str]) -> None:
    """Every family of every mask: ours against its bar, and beside each peer on its answers."""
    beside = "".join(f" {p}: answers | {p} | frontier there |" for p in peers)
    click.echo(f"| held out | family | rows | MAPE | within 6 % | within 10 % | bar |{beside}")
    click.echo("|-|-|-|-|-|-|-|" + "-|-|-|" * len(peers))
    for name, (_, bar) in MASKS.items():
        file = out / f"{name}.parquet"
        kept = pd.read_parquet(file) if file.exists() else pd.DataFrame({"operator": []})
        for family, own in kept.groupby("operator"):
            measured = own["duration_s"].to_numpy()
            s = score_of(own["frontier"].to_numpy(), measured, own["extrapolated"].to_numpy())
            met = s.mape <= bar if name == "collectives" else s.within_10 >= bar
            line = f"| {name} | {family} | {s.n:,} | {percent(s.mape)} | {percent(s.within_6)} | "
            line += f"{percent(s.within_10)} | {100 * bar:.0f}{'' if met else ' missed'} |"
            click.echo(line + "".join(compared(own, measured, p) for p in peers if p in own))


def compared(rows: pd.DataFrame, measured: np.ndarray, peer: str) -> str:
    """Rows that a peer answers and refuses, MAPE / within 10 % of both where it answers."""
    said = rows[peer].to_numpy()
    answers = np.isfinite(said)
    cells = [f" {answers.sum():,}, refuses {np.isnan(said).sum():,}"]
    for name in (peer, "frontier"):
        s = score_of(rows[name].to_numpy()[answers], measured[answers], answers[answers])
        cells.append(f" {percent(s.mape)} / {percent(s.within_10)}" if s.n else " -")
    return " |".join(cells) + " |"


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


if __name__ == "__main__":
    sys.exit(main())
