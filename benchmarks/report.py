"""Show a run: tables on the terminal, a Markdown report, and everything as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from benchmarks import apps, disk, growth, imports, memory, peers
from benchmarks.adk_runner import WORKLOADS
from benchmarks.aims import FLAT
from benchmarks.results import ROUNDS_MIN

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from benchmarks.aims import Verdict
    from benchmarks.results import Results, Timing
    from benchmarks.scale import Scale


@dataclass
class Section:
    """One table of the report, the same on the terminal and in the file."""

    title: str
    text: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    image: str = ""
    short: tuple[int, ...] = (0, 1, 2)
    """Which columns fit on a terminal."""


def show(console: Console, results: Results, verdicts: list[Verdict], scale: Scale) -> None:
    """Print the tables."""
    show_sections(console, _sections(results, verdicts, scale), remarks(results))


def show_sections(console: Console, sections: list[Section], remarks: list[str]) -> None:
    """Print tables as far as they fit on a terminal, and remarks."""
    for section in sections:
        table = Table(title=section.title, title_justify="left", box=box.SIMPLE_HEAD)
        for number in section.short:
            table.add_column(section.columns[number], justify="right" if number else "left")
        for row in section.rows:
            table.add_row(*(row[number] for number in section.short))
        console.print(table)
        console.print()
    for line in remarks:
        console.print(line, markup=False)


def write(
    output: Path, results: Results, verdicts: list[Verdict], scale: Scale, command: str
) -> None:
    """Write `report.md` and `results.json`."""
    sections = [*_sections(results, verdicts, scale), _stores(results)]
    write_sections(output, results, sections, remarks(results), command)
    data = asdict(results) | {"scale": asdict(scale), "aims": [asdict(one) for one in verdicts]}
    write_results(output, data)


def write_sections(
    output: Path, results: Results, sections: list[Section], remarks: list[str], command: str
) -> None:
    """Write `report.md`."""
    lines = [
        f"# Benchmark results on {results.title}",
        "",
        f"Written by `{command}`; run it again to replace this file.",
        "The README of `benchmarks` says what is measured and how to read it.",
        "",
        "## Machine",
        "",
        *(f"- {name}: {value}" for name, value in results.environment.items()),
        f"- rounds: {results.rounds}",
        "",
    ]
    for section in sections:
        lines += [f"## {section.title}", ""]
        if section.text:
            lines += [*section.text.replace(". ", ".\n").splitlines(), ""]
        lines += [
            "| " + " | ".join(section.columns) + " |",
            "| --- |" + " ---: |" * (len(section.columns) - 1),
            *("| " + " | ".join(row) + " |" for row in section.rows),
            "",
        ]
        if section.image and (output / section.image).exists():
            lines += [f"![{section.title}]({section.image})", ""]
    if remarks:
        lines += ["## Remarks", "", *(f"- {remark}" for remark in remarks), ""]
    (output / "report.md").write_text("\n".join(lines), encoding="utf-8")


def write_results(output: Path, data: dict[str, Any]) -> None:
    """Write `results.json`."""
    (output / "results.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _sections(results: Results, verdicts: list[Verdict], scale: Scale) -> list[Section]:
    sections = [_aims(results, verdicts)] if verdicts else []
    for kind in WORKLOADS:
        workload = kind(scale, results.engine)
        timings = [timing for timing in results.timings if timing.workload == kind.name]
        if timings:
            names = [store.name for store in workload.here]
            section = timed(results, timings, names, kind.reference, kind.unit)
            section.title = f"{kind.title} (`{kind.name}`)"
            section.text = workload.describe()
            sections.append(section)
    timings = [timing for timing in results.timings if timing.workload == imports.NAME]
    if timings:
        section = timed(results, timings, [*imports.STATEMENTS], imports.REFERENCE, "import")
        section.title = f"{imports.TITLE} (`{imports.NAME}`)"
        section.text = imports.describe(scale)
        sections.append(section)
    for name, title, text, image in (
        (imports.NAME, f"{imports.TITLE}: figures", "", ""),
        (apps.NAME, f"{apps.TITLE} (`{apps.NAME}`)", apps.describe(scale), ""),
        (disk.NAME, f"{disk.TITLE} (`{disk.NAME}`)", disk.describe(scale, results.engine), ""),
        (
            growth.NAME,
            f"{growth.TITLE} (`{growth.NAME}`)",
            growth.describe(scale, results.title),
            growth.PLOT,
        ),
        (memory.NAME, f"{memory.TITLE} (`{memory.NAME}`)", memory.describe(scale), ""),
    ):
        rows = [
            (figure.name, f"{figure.value:,.2f} {figure.unit}", figure.note)
            for figure in results.figures
            if figure.workload == name
        ]
        if rows:
            sections.append(Section(title, text, ("what", "measured", "detail"), rows, image))
    return sections


def _stores(results: Results) -> Section:
    kinds = dict.fromkeys(
        store for workload in WORKLOADS for store in workload.stores.get(results.engine, ())
    )
    return Section(
        "Stores",
        "Each with its own defaults. What is not synced can be lost in a power cut.",
        ("store", "version", "when an append returns"),
        [
            (kind.name, peers.version(kind.package), kind.durability)
            for kind in kinds
            if kind.name not in results.missing
        ],
    )


def _aims(results: Results, verdicts: list[Verdict]) -> Section:
    return aims_section(results, verdicts, f" Growth and memory count as flat up to {FLAT:g}x. ")


def aims_section(results: Results, verdicts: list[Verdict], note: str = " ") -> Section:
    """Return the table of the aims."""
    return Section(
        "Aims",
        f"An aim against a peer is the peer's median time over ours.{note}"
        "A missed aim is a fact of this run on this machine, not an error.",
        ("aim", "wanted", "measured", "verdict"),
        [(one.aim, one.bound, one.measured, _verdict(results, one)) for one in verdicts],
        short=(0, 1, 2, 3),
    )


def _verdict(results: Results, one: Verdict) -> str:
    if not results.is_measurement:
        return "not judged"
    return "reached" if one.reached else "MISSED"


def timed(
    results: Results, timings: list[Timing], names: list[str], reference: str, unit: str
) -> Section:
    """Return the table of one workload, without a title."""
    measures = list(dict.fromkeys(timing.measure for timing in timings))
    rows = []
    for measure in measures:
        ours = results.timing(timings[0].workload, measure, reference)
        for name in names:
            timing = results.timing(timings[0].workload, measure, name)
            if timing is None:
                continue
            rows.append(
                (
                    f"{name}: {measure}" if len(measures) > 1 else name,
                    duration(timing.median),
                    f"{duration(min(timing.seconds))} to {duration(max(timing.seconds))}",
                    *_compared(timing, ours),
                    f"{timing.operations:,}",
                )
            )
    columns = (
        "store" if timings[0].workload != imports.NAME else "statement",
        f"median of one {unit}",
        "over the rounds",
        f"against {reference}",
        "pairs of rounds",
        f"{unit}s a round",
    )
    return Section("", "", columns, rows, short=(0, 1, 3, 5))


def _compared(timing: Timing, ours: Timing | None) -> tuple[str, str]:
    if ours is None:
        return "", ""
    if timing is ours:
        return "1x", ""
    low, high = timing.ratios(ours)
    return times(timing.ratio(ours)), f"{times(low)} to {times(high)}"


def times(ratio: float) -> str:
    """Return a ratio as people read it: 15.2x, 0.62x."""
    return f"{ratio:.2f}x" if ratio < 1 else f"{ratio:,.1f}x"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:,.1f} us"
    if seconds < 1:
        return f"{seconds * 1e3:,.2f} ms"
    return f"{seconds:,.2f} s"


def remarks(results: Results) -> list[str]:
    """Return what a reader has to know of a run."""
    remarks = []
    if not results.is_measurement:
        remarks.append(
            "This run shows that the suite works; its numbers are not a measurement. "
            f"That takes full counts and {ROUNDS_MIN} rounds or more."
        )
    remarks += [
        f"{store} did not run: the module {module} is not installed. "
        f"Install the peers with: {peers.INSTALL}"
        for store, module in results.missing.items()
    ]
    remarks += [
        f"{failure.store} failed in {failure.workload}: {failure.error}"
        for failure in results.failures
    ]
    remarks += [
        f"{timing.store} in {timing.workload}: {timing.note}"
        for timing in results.timings
        if timing.note
    ]
    return remarks
