"""The command line: one function per verb, each importing what it needs when it runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from replay.startup import check_packages

check_packages()  # before anything is imported from a package that may be another's

from traces.errors import CaptureError, ConfigError, TraceError  # noqa: E402

if TYPE_CHECKING:
    from validation.ladder import Simulator
    from validation.scorecard import Scorecard

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
DIRECTORY = click.Path(path_type=Path, file_okay=False)
ANY_PATH = click.Path(path_type=Path)


class _Group(click.Group):
    """Prints an error the user can fix as one line and exits with 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TraceError as error:
            for fault in error.faults:
                click.echo(f"frontier: {fault}", err=True)
        except (ConfigError, CaptureError) as error:
            click.echo(f"frontier: {error}", err=True)
        sys.exit(2)


@click.group(cls=_Group, context_settings=SETTINGS)
@click.version_option(package_name="frontier-replay")
def main() -> None:
    """Capture a real vLLM deployment, replay it in a simulator, measure the difference."""


@main.group()
def traces() -> None:
    """Look at, translate, make and merge workloads and bundles."""


@traces.command("inspect")
@click.argument("path", type=ANY_PATH)
@click.option("--from", "fmt", help="Format of PATH (default: by its content).")
def traces_inspect(path: Path, fmt: str | None) -> None:
    """Say what PATH, a bundle or a trace of any known format, holds."""
    from rich.console import Console

    from traces.inspect import inspect

    console = Console()
    for table in inspect(path, fmt):
        console.print(table)
        console.print()


@traces.command("convert")
@click.argument("path", type=ANY_PATH)
@click.option("--from", "fmt", help="Format of PATH (default: by its content).")
@click.option("--to", required=True, help="bundle, or a format that can be written.")
@click.option("--out", required=True, type=ANY_PATH, help="File (.gz: compressed) or directory.")
def traces_convert(path: Path, fmt: str | None, to: str, out: Path) -> None:
    """Write PATH in another format; says what was skipped or lost."""
    from traces.convert import convert

    command = ["frontier", "traces", "convert", path.name]
    _say_notes(convert(path, to, out, fmt=fmt, command=command))


@traces.command("synth")
@click.option("--out", required=True, type=ANY_PATH, help="Directory of the bundle, or file.")
@click.option("--to", default="bundle", show_default=True, help="A format that can be written.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--requests", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--rate", "rate_per_s", type=click.FloatRange(0, min_open=True), default=1.0,
              show_default=True, help="Mean requests a second.")  # fmt: skip
@click.option("--arrivals", default="poisson", show_default=True,
              help="poisson, gamma[:CV] or onoff[:MEAN_ON_S,MEAN_OFF_S].")  # fmt: skip
@click.option("--prompt", default="lognormal:512,0.8,16,4096", show_default=True,
              help="Tokens: lognormal:MEDIAN,SIGMA,MIN,MAX, fixed:N or from:PATH.")  # fmt: skip
@click.option("--output", default="lognormal:128,0.8,4,1024", show_default=True,
              help="Tokens to generate, likewise.")  # fmt: skip
@click.option("--prefixes", type=click.IntRange(0), default=0, help="System prompts shared.")
@click.option("--prefix-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option("--prefix-share", type=click.FloatRange(0, 1), default=1.0, show_default=True,
              help="Share of requests (sessions) that begin with one.")  # fmt: skip
@click.option("--turns", help="Makes sessions: turns of each, as fixed:4.")
@click.option("--think", default="lognormal:5,1,0.5,60", show_default=True,
              help="Seconds from an answer to the next turn.")  # fmt: skip
@click.option("--answer-s", type=click.FloatRange(0), default=1.0, show_default=True,
              help="Seconds an answer is taken to last.")  # fmt: skip
@click.option("--block-tokens", type=click.IntRange(1), default=16, show_default=True,
              help="Tokens of a hashed block.")  # fmt: skip
def traces_synth(out: Path, to: str, seed: int, **recipe: Any) -> None:
    """Make a workload: arrivals, lengths, shared system prompts, sessions."""
    from numpy.random import default_rng

    from traces.convert import write_workload
    from traces.synthesis import Recipe, synthesise

    workload = synthesise(Recipe(**recipe), default_rng(seed))
    command = ["frontier", "traces", "synth"]
    _say_notes(write_workload(workload, to, out, seed=seed, command=command))


@traces.command("merge")
@click.argument("bundles", nargs=-1, required=True, type=DIRECTORY)
@click.option("--out", required=True, type=DIRECTORY, help="Directory of the merged bundle.")
def traces_merge(bundles: tuple[Path, ...], out: Path) -> None:
    """Put BUNDLES of several engines, or of engines and their client, on one clock."""
    from traces.bundle import read_bundle
    from traces.merge import merge

    command = ["frontier", "traces", "merge", *(b.name for b in bundles)]
    _say_notes(merge([read_bundle(b) for b in bundles], out, command).manifest.notes)


@main.command()
@click.argument("workload", type=ANY_PATH)
@click.option("--deployment", "-D", type=ANY_PATH, help="Deployment file, or a bundle for its own.")
@click.option("--out", required=True, type=DIRECTORY, help="Directory of the simulated bundle.")
@click.option("--operators", type=DIRECTORY, help="Operator profile (overrides the deployment's).")
@click.option("--rate-scale", type=click.FloatRange(0, min_open=True), default=1.0)
@click.option("--concurrency", type=click.IntRange(1), help="Closed loop with N in flight.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N requests.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--record", default="none", show_default=True, help="Beside the requests: steps,step_requests."
)
def replay(workload: Path, deployment: Path | None, out: Path, **options: Any) -> None:
    """Simulate WORKLOAD (a bundle or any known trace format) as a bundle."""
    from replay.startup import load_pyarrow

    load_pyarrow()
    from replay.simulate import run_replay

    summary = run_replay(workload, deployment or workload, out, **options)
    click.echo(summary)


@main.command()
@click.argument("bundles", nargs=-1, required=True, type=DIRECTORY)
@click.option("--out", required=True, type=DIRECTORY, help="Directory of the profile.")
@click.option("--cluster", help="Only this cluster's engines, where there are several.")
@click.option("--operators", type=DIRECTORY, help="Profile of kernels: fit what they do not tell.")
@click.option("--deployment", "-D", type=ANY_PATH, help="With --operators, if BUNDLES have none.")
@click.option("--uncalibrated", is_flag=True,
              help="From the device's data sheet; BUNDLES only say which engine.")  # fmt: skip
def fit(
    bundles: tuple[Path, ...],
    out: Path,
    cluster: str | None,
    operators: Path | None,
    deployment: Path | None,
    uncalibrated: bool,
) -> None:
    """Fit a profile from captured BUNDLES of one engine: its steps, or what kernels leave open."""
    if operators is not None:
        from replay.fit_overhead import fit_overhead, overhead_table

        click.echo(overhead_table(fit_overhead(bundles, operators, deployment, out, _say)))
        return
    from replay.plan import sheet_profile_of
    from simulator.moe.fit import describe, fit_bundles, write_fitted
    from simulator.step_time.fit import fit_profile, profile_table
    from simulator.step_time.fitted import save_profile
    from traces.bundle import read_bundle

    captures = [read_bundle(b) for b in bundles]
    if uncalibrated:
        profile, loads = sheet_profile_of(bundles[0]), None
    else:
        profile = fit_profile(captures, cluster=cluster, progress=_say)
        loads = fit_bundles(captures)
    save_profile(profile, out)
    click.echo(profile_table(profile))
    if loads is not None:
        write_fitted(loads, out)
        click.echo(describe(loads))


@main.command()
@click.option("--out", default="frontier-demo", show_default=True, type=DIRECTORY)
@click.pass_context
def demo(ctx: click.Context, out: Path) -> None:
    """Fit on shipped captures, replay a higher load, print the errors, write the reports."""
    from reports.compare import console_table
    from reports.console import open_console
    from reports.validate import print_outcome
    from traces.samples import sample_runs

    for model in ("dense", "moe"):
        seen, held = sample_runs(f"{model}-low"), sample_runs(f"{model}-high")
        click.echo(f"\n{model}: fitted on {model}-low, held against {model}-high")
        before = _tried(ctx, seen, held, out / model / "uncalibrated", uncalibrated=True)
        after = _tried(ctx, seen, held, out / model, uncalibrated=False)
        print_outcome(after, [], out / model / "report")
        click.echo("\nwhat fitting changed:")
        cards = [("data sheet alone", before), ("fitted", after)]
        open_console().print(console_table(cards))


def _tried(
    ctx: click.Context, seen: list[Path], held: list[Path], home: Path, *, uncalibrated: bool
) -> Scorecard:
    """Fit, replay, validate, under ``home``."""
    from replay.simulate import run_replay
    from reports.validate import run_validate

    measured, *repeats = held
    profile, simulated, report = (home / d for d in ("profile", "simulated", "report"))
    ctx.invoke(fit, bundles=seen, out=profile, uncalibrated=uncalibrated)
    click.echo(run_replay(measured, measured, simulated, operators=profile, record="steps"))
    return run_validate(measured, simulated, report, repeats=repeats, progress=_say)[0]


@main.command("import-kernels")
@click.argument("source")
@click.argument("path", type=ANY_PATH)
@click.option("--out", required=True, type=DIRECTORY, help="Directory of the profile.")
@click.option("--add", is_flag=True, help="Add to the kernels the profile holds already.")
@click.option("--gpu", help="Only this device, as its hardware sheet is named.")
@click.option("--engine", help="aiconfigurator: vllm (default), sglang or trtllm.")
@click.option("--version", help="aiconfigurator: an engine version, latest (default) or all.")
def import_kernels(source: str, path: Path, out: Path, add: bool, **selection: str | None) -> None:
    """Read measured operator tables (SOURCE at PATH) into a profile; fits nothing.

    SOURCE is aiconfigurator, bundle, frontier, network or rtx-vllm0.19; aiconfigurator's PATH
    is a wheel of aiconfigurator-core, a directory of it, or "installed".
    """
    from replay.import_kernels import import_kernels as run
    from traces.kernels.base import Selection

    click.echo(run(source, path, out, Selection(**selection), add=add, progress=_say))


@main.group()
def operators() -> None:
    """Fit, look at and judge operator models."""


@operators.command("score")
@click.argument("kernels", type=ANY_PATH)
@click.option("--holdout", required=True, help="pandas query of the rows to hold out.")
@click.option("--out", required=True, type=ANY_PATH, help="JSON file of the scores.")
@click.option("--workers", type=click.IntRange(1), help="Processes that fit (default: one a core).")
def operators_score(kernels: Path, holdout: str, out: Path, workers: int | None) -> None:
    """Fit on the rest of KERNELS (a table or a profile), score the rows that are held out."""
    from reports.operators import write_scores
    from validation.operators import read_kernels, score

    scores = score(read_kernels(kernels), holdout, _say, workers=workers)
    click.echo(write_scores(scores, out))


@operators.command("fit")
@click.argument("profile", type=DIRECTORY)
@click.option("--workers", type=click.IntRange(1), help="Processes that fit (default: one a core).")
def operators_fit(profile: Path, workers: int | None) -> None:
    """Fit operator models to the kernels of PROFILE and keep them there, as data."""
    from validation.operators import fit_profile_operators

    library = fit_profile_operators(profile, workers=workers, progress=_say)
    click.echo(f"fitted {len(library.operators)} operators: {profile}", err=True)


@operators.command("show")
@click.argument("profile", type=DIRECTORY)
@click.option("--out", type=ANY_PATH, help="Directory of plots of prediction and measurement.")
def operators_show(profile: Path, out: Path | None) -> None:
    """Print PROFILE's operator families, ranges and errors; fits them where none are kept."""
    from reports.operators import operators_table, write_plots
    from validation.operators import profile_operators

    library = profile_operators(profile, progress=_say)
    click.echo(operators_table(library))
    if out:
        click.echo(f"plots: {write_plots(library, out)}", err=True)


@main.command()
@click.option("--out", required=True, type=DIRECTORY, help="Directory of the measured bundle.")
@click.option("--print-hooks", is_flag=True, help="Print what a server started elsewhere needs.")
@click.option("--deployment", "-D", type=ANY_PATH, help="Start its prefill and decode engines.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def capture(
    out: Path, print_hooks: bool, deployment: Path | None, command: tuple[str, ...]
) -> None:
    """Run COMMAND (vllm serve ..., after a --) and record what it does until it stops."""
    from replay.capture import run_capture
    from replay.command import hook_instructions
    from replay.pair import run_pair

    if print_hooks:
        click.echo(hook_instructions(out))
        return
    if bool(command) == bool(deployment):
        raise click.UsageError(
            "what to run? frontier capture --out B -- vllm serve MODEL ..., or --deployment D"
        )
    bundle = run_pair(deployment, out) if deployment else run_capture(command, out)
    steps = len(bundle.table("steps")) if "steps" in bundle else 0
    click.echo(f"captured {len(bundle.requests)} requests in {steps} steps: {out}", err=True)


@main.command()
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


@main.command()
@click.argument("measured", type=DIRECTORY)
@click.argument("simulated", type=DIRECTORY)
@click.option("--out", required=True, type=ANY_PATH, help="Directory of the reports.")
@click.option("--repeats", multiple=True, type=DIRECTORY, help="Another run of MEASURED: noise.")
@click.option("--bars", type=ANY_PATH, help="YAML of the largest errors allowed; beyond: exit 1.")
@click.option("--allow-vantage-mix", is_flag=True, help="Compare an engine's with a client's.")
@click.option("--require-holdout", is_flag=True, help="Refuse a simulation fitted on these runs.")
@click.option("--ladder", is_flag=True, help="Say what explains the error, and where it starts.")
@click.option("--operators", type=DIRECTORY, help="--ladder: profile (default: SIMULATED's own).")
def validate(
    measured: Path, simulated: Path, out: Path, ladder: bool, operators: Path | None, **options: Any
) -> None:
    """Compare SIMULATED with MEASURED: scorecard.json, report.html, report.md, junit.xml."""
    from reports.validate import print_outcome, run_validate

    if ladder:
        options["simulator"] = lambda: _simulator_of(measured, simulated, operators)
    scorecard, judgements = run_validate(measured, simulated, out, progress=_say, **options)
    print_outcome(scorecard, judgements, out)
    sys.exit(0 if all(j.passed for j in judgements) else 1)


@main.command()
@click.argument("scorecards", nargs=-1, required=True, type=ANY_PATH)
@click.option("--out", type=ANY_PATH, help="Markdown file of the table.")
def compare(scorecards: tuple[Path, ...], out: Path | None) -> None:
    """The errors of several SCORECARDS of one workload side by side: before and after."""
    from reports.compare import console_table, markdown, read_cards
    from reports.console import open_console

    cards = read_cards(scorecards)
    open_console().print(console_table(cards))
    if out is not None:
        out.write_text(markdown(cards), encoding="utf-8")


@main.command()
@click.argument("bundles", nargs=-1, required=True, type=DIRECTORY)
@click.option("--out", required=True, type=ANY_PATH, help="JSON file (.gz: compressed).")
def timeline(bundles: tuple[Path, ...], out: Path) -> None:
    """Write one of BUNDLES, or two side by side on one clock, for ui.perfetto.dev."""
    from reports.timeline import write_timeline

    if len(bundles) > 2:
        raise click.UsageError(f"one or two bundles, not {len(bundles)}")
    events = write_timeline(bundles, out)
    click.echo(f"{events:,} events: {out} (open it at ui.perfetto.dev or chrome://tracing)")


@main.command()
@click.argument("groups", nargs=-1, required=True, type=DIRECTORY)
@click.option("--out", type=ANY_PATH, help="File to keep the numbers in, as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Only the summary.")
def noise(groups: tuple[Path, ...], out: Path | None, quiet: bool) -> None:
    """How far runs of the real system differ: each of GROUPS holds repeats of one workload."""
    from reports.console import open_console
    from reports.noise import floor_table, run_noise, summary

    floors = run_noise(groups, out, progress=_say)
    console = open_console()
    for name, floor in floors.items() if not quiet else ():
        console.print(floor_table(name, floor))
        console.print()
    for line in summary(floors):
        click.echo(line)


@main.command()
@click.argument("runs", type=DIRECTORY)
@click.option("--out", type=ANY_PATH, help="File to keep the numbers in, as JSON.")
@click.option("--simulated", type=DIRECTORY, help="Directory of the predicted runs, as bundles.")
def pipeline(runs: Path, out: Path | None, simulated: Path | None) -> None:
    """Hold the pipelined steps of the testbed's RUNS to the model of them."""
    from rich.console import Console

    from reports.pipelined import run_pipeline

    tables, said = run_pipeline(runs, out, simulated)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    for table in tables:
        console.print(table)
        console.print()
    for line in said:
        click.echo(line)


@main.command()
@click.argument("directory", type=DIRECTORY)
@click.option("--out", required=True, type=ANY_PATH, help="Directory of decisions.json and .md.")
@click.option("--slo", "slos", multiple=True, metavar="METRIC.STATISTIC=NUMBER",
              help="As ttft.p99=0.5 (seconds); without any, the medians of measured.")  # fmt: skip
def decisions(directory: Path, out: Path, slos: tuple[str, ...]) -> None:
    """Does the simulator choose as reality does? DIRECTORY has <name>/measured and /simulated."""
    from reports.console import open_console
    from reports.decisions import run_decisions, sentence, tables

    found = run_decisions(directory, out, slos, progress=_say)
    console = open_console()
    for table in tables(found):
        console.print(table)
        console.print()
    click.echo(sentence(found))


@main.command()
@click.argument("workload", type=ANY_PATH)
@click.option("--sweep", required=True, type=ANY_PATH, help="What to vary, hold and rank: YAML.")
@click.option(
    "--out", required=True, type=ANY_PATH, help="Directory; a killed sweep goes on in it."
)
@click.option("--operators", type=DIRECTORY, help="Operator profile (overrides the deployments').")
@click.option("--error", type=ANY_PATH, help="Scorecard of the base: how far to trust differences.")
@click.option("--jobs", type=click.IntRange(1), help="Processes (default: one a core).")
@click.option("--backend", default="local", show_default=True, help="local, or ray.")
@click.option("--address", help="--backend ray: the cluster (default: Ray on this machine).")
@click.option("--limit", type=click.IntRange(1), help="Only the first N requests.")
def whatif(
    workload: Path, sweep: Path, out: Path, error: Path | None, jobs: int | None, **options: Any
) -> None:
    """Replay WORKLOAD in many deployments; which is best under SLOs and constraints?"""
    from joblib import cpu_count

    from replay.whatif.run import run_whatif
    from reports.whatif import print_whatif, read_known_error, report_whatif

    known = read_known_error(error) if error is not None else None
    deployment_of = run_whatif(workload, sweep, out, jobs=jobs or cpu_count(), **options)
    found = report_whatif(out, known)
    if found.best is not None:
        (out / "best.yaml").write_text(deployment_of(found.best))
    print_whatif(found, out)
    sys.exit(0 if found.feasible else 2)


@main.command()
@click.argument("scorecard", type=ANY_PATH)
@click.option("--baseline", required=True, type=ANY_PATH, help="The scorecard to be held to.")
@click.option("--update-baseline", "update", is_flag=True, help="Make SCORECARD the baseline.")
@click.option("--points", default=2.0, show_default=True, help="Growth of an error to ignore, %.")
@click.option("--ms", default=0.1, show_default=True, help="Growth of an error to ignore, ms.")
@click.option("-v", "--verbose", is_flag=True, help="Print every reason, not only the first.")
def check(
    scorecard: Path, baseline: Path, update: bool, points: float, ms: float, verbose: bool
) -> None:
    """Fail (exit 1) if SCORECARD is worse than the baseline beyond its noise, 2 if another."""
    from reports.check import Threshold, run_check

    threshold = Threshold(points / 100, ms / 1e3)
    findings, reason = run_check(scorecard, baseline, update=update, threshold=threshold)
    for finding in findings if verbose else ():
        click.echo(f"{finding.kind}: {finding.text}")
    click.echo(reason)
    sys.exit(1 if findings else 0)


def _simulator_of(measured: Path, simulated: Path, operators: Path | None) -> Simulator:
    """What the simulator made of the deployments of two bundles."""
    from replay.plan import load_step_time, make_plan
    from validation.ladder import Simulator

    real, plan = make_plan(measured), make_plan(simulated, operators=operators)
    model, note = load_step_time(plan)
    return Simulator(real.scheduler_config(), plan.scheduler_config(), model, note.get("profile"))


def _say_notes(notes: Mapping[str, Any]) -> None:
    from traces.inspect import readable_notes

    for name, note in readable_notes(notes).items():
        click.echo(f"{name}: {note}", err=True)


def _say(text: str) -> None:
    click.echo(f"{text} ...", err=True)


if __name__ == "__main__":
    main()
