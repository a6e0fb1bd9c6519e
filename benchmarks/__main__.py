"""Run the benchmarks: `python -m benchmarks` in the project's root."""

from __future__ import annotations

import asyncio
import logging
import shlex
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from benchmarks import aims, apps, disk, engines, growth, imports, machine, memory, report, rounds
from benchmarks.adk_runner import WORKLOADS
from benchmarks.peers import Threadline
from benchmarks.results import Failure, Results
from benchmarks.scale import FULL, QUICK, Scale

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.engines import Engine

RESULTS = Path(__file__).parent / "results"
PARTIAL = RESULTS / "partial"
"""Where a run goes that must not replace the report of a whole one."""

NAMES = {
    engine: (
        *(workload.name for workload in WORKLOADS if engine in workload.stores),
        *((imports.NAME,) if engine == "sqlite" else ()),
        apps.NAME,
        disk.NAME,
        growth.NAME,
        *((memory.NAME,) if engine == "sqlite" else ()),
    )
    for engine in engines.ENGINES
}
"""What is measured on each engine."""


cli = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@cli.command()
def main(
    engine: Annotated[
        str, typer.Option(help=f"Where to measure: {', '.join(engines.ENGINES)}.")
    ] = "sqlite",
    rounds: Annotated[int, typer.Option(min=1, help="How often every store is measured.")] = 5,
    quick: Annotated[
        bool, typer.Option("--quick", help="One round of small counts: shows that all of it runs.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A workload to run; may be repeated. One of: {', '.join(NAMES['sqlite'])}."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where report.md, results.json and the plot go. Default: benchmarks/results "
            "(and the engine's name below it, if it is a server), "
            "or benchmarks/results/partial with --quick or --only."
        ),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="Where files are made and removed again."),
    ] = None,
) -> None:
    """Measure threadline beside other stores and print the ratios."""
    if engine not in NAMES:
        raise typer.BadParameter(f"no such engine: {engine}; there are {', '.join(NAMES)}")
    wanted = tuple(only or NAMES[engine])
    unknown = set(wanted) - set(NAMES[engine])
    if unknown:
        raise typer.BadParameter(f"no such workload on {engine}: {', '.join(sorted(unknown))}")
    home = output or (PARTIAL if quick or only else RESULTS) / engine.removeprefix("sqlite")
    home.mkdir(parents=True, exist_ok=True)
    # The peers warn and log at import and in use; none of it is about the measurement.
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    console = Console()
    scale = QUICK if quick else FULL
    scale = scale if engine == "sqlite" else scale.on_server()
    with tempfile.TemporaryDirectory(dir=directory, prefix="threadline-bench-") as temporary:
        try:
            place = engines.opened(engine, Path(temporary))
        except engines.NoServerError as error:
            console.print(str(error), markup=False, soft_wrap=True)
            raise typer.Exit(1) from None
        results = Results(
            machine.environment() | place.facts(),
            engine,
            place.title,
            1 if quick else rounds,
            full=not quick,
        )
        with console.status("starting") as status:
            asyncio.run(_run_and_clear(results, scale, wanted, place, home, status.update))
    verdicts = aims.judge(results, scale)
    report.show(console, results, verdicts, scale)
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    report.write(home, results, verdicts, scale, command)
    console.print(f"Written to {home}", markup=False, soft_wrap=True)
    if results.failures:
        raise typer.Exit(1)


async def _run_and_clear(
    results: Results,
    scale: Scale,
    wanted: tuple[str, ...],
    engine: Engine,
    output: Path,
    say: Callable[[str], None],
) -> None:
    try:
        await _measure(results, scale, wanted, engine, output, say)
    finally:  # a run that is interrupted leaves no database on a server
        await engine.clear()


async def _measure(
    results: Results,
    scale: Scale,
    wanted: tuple[str, ...],
    engine: Engine,
    output: Path,
    say: Callable[[str], None],
) -> None:
    for workload in WORKLOADS:
        if workload.name in wanted:
            await rounds.run(workload(scale, engine.name), results, engine, say)
    if imports.NAME in wanted:
        imports.run(results, scale, say)
    for name, figures in (
        (apps.NAME, apps.run(results, scale, engine, say)),
        (disk.NAME, disk.run(results, scale, engine, say)),
        (growth.NAME, growth.run(results, scale, engine, output, say)),
        (memory.NAME, memory.run(results, scale, engine, say)),
    ):
        if name not in wanted:
            figures.close()
            continue
        try:
            await figures
        except Exception as error:  # what was measured before is reported all the same
            results.failures.append(
                Failure(name, Threadline.name, f"{type(error).__name__}: {error}")
            )


if __name__ == "__main__":
    cli(prog_name="python -m benchmarks")
