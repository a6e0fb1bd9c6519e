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

from benchmarks import aims, disk, growth, imports, machine, memory, report, rounds
from benchmarks.adk_runner import WORKLOADS
from benchmarks.peers import Threadline
from benchmarks.results import Failure, Results
from benchmarks.scale import FULL, QUICK, Scale

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).parent / "results"
PARTIAL = RESULTS / "partial"
"""Where a run goes that must not replace the report of a whole one."""

NAMES = (
    *(workload.name for workload in WORKLOADS),
    imports.NAME,
    disk.NAME,
    growth.NAME,
    memory.NAME,
)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often every store is measured.")] = 5,
    quick: Annotated[
        bool, typer.Option("--quick", help="One round of small counts: shows that all of it runs.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"A workload to run; may be repeated. One of: {', '.join(NAMES)}."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where report.md, results.json and the plot go. Default: benchmarks/results, "
            "or benchmarks/results/partial with --quick or --only."
        ),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="Where the databases are made and removed again."),
    ] = None,
) -> None:
    """Measure threadline beside other stores and print the ratios."""
    wanted = tuple(only or NAMES)
    unknown = set(wanted) - set(NAMES)
    if unknown:
        raise typer.BadParameter(f"no such workload: {', '.join(sorted(unknown))}")
    home = output or (PARTIAL if quick or only else RESULTS)
    home.mkdir(parents=True, exist_ok=True)
    # The peers warn and log at import and in use; none of it is about the measurement.
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    console = Console()
    scale = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(dir=directory, prefix="threadline-bench-") as temporary:
        place = Path(temporary)
        results = Results(machine.environment(place), 1 if quick else rounds, full=not quick)
        with console.status("starting") as status:
            asyncio.run(_measure(results, scale, wanted, place, home, status.update))
    verdicts = aims.judge(results, scale)
    report.show(console, results, verdicts, scale)
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    report.write(home, results, verdicts, scale, command)
    console.print(f"Written to {home}", markup=False, soft_wrap=True)
    if results.failures:
        raise typer.Exit(1)


async def _measure(
    results: Results,
    scale: Scale,
    wanted: tuple[str, ...],
    directory: Path,
    output: Path,
    say: Callable[[str], None],
) -> None:
    for workload in WORKLOADS:
        if workload.name in wanted:
            await rounds.run(workload(scale), results, directory, say)
    if imports.NAME in wanted:
        imports.run(results, scale, say)
    for name, figures in (
        (disk.NAME, disk.run(results, scale, directory, say)),
        (growth.NAME, growth.run(results, scale, directory, output, say)),
        (memory.NAME, memory.run(results, scale, directory, say)),
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
    app(prog_name="python -m benchmarks")
