"""How well operators are predicted that were held out, mask by mask: a table of all masks.

    python tests/benchmarks/operator_masks.py profiles/h100 --out out/masks [--only gemm]

Whole grid lines, whole shapes and the largest sizes of a profile of aiconfigurator's tables are
held out in turn. A mask that has its JSON under --out already is not run again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from reports.operators import write_scores
from validation.operators import read_kernels, score

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
def main(kernels: Path, out: Path, only: str) -> None:
    """Score every mask, print the table."""
    rows = read_kernels(kernels)
    for name, (mask, _) in MASKS.items():
        if name.startswith(only) and not (out / f"{name}.json").exists():
            click.echo(name, err=True)
            write_scores(score(rows, mask, workers=1), out / f"{name}.json")
    table(out)


def table(out: Path) -> None:
    """Every family of every mask that was run: MAPE, shares within 6 and 10 %, its bar."""
    click.echo("| held out | family | rows | MAPE | within 6 % | within 10 % | bar |")
    click.echo("|-|-|-|-|-|-|-|")
    for name, (_, bar) in MASKS.items():
        file = out / f"{name}.json"
        for family, s in json.loads(file.read_text()).items() if file.exists() else ():
            shares = " | ".join(f"{100 * s[x]:.1f}" for x in ("mape", "within_6", "within_10"))
            met = s["mape"] <= bar if name == "collectives" else s["within_10"] >= bar
            click.echo(
                f"| {name} | {family} | {s['n']:,} | {shares} | {100 * bar:.0f}"
                f"{'' if met else ' missed'} |"
            )


if __name__ == "__main__":
    sys.exit(main())
