"""`python -m runner.clean DIR...`: shows what could be freed, and frees what is confirmed."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from runner.clean.account import account_things
from runner.clean.caches import cache_things
from runner.clean.jobs import job_things, readable
from runner.clean.thing import KINDS, Thing, age_text, size_text
from runner.errors import RunnerError
from runner.job_folders import faults_of, job_folders
from runner.jobs.job import Job
from runner.paths import MANIFEST_NAME
from runner.system.amounts import count
from runner.system.printable import log_to, printable

log = logging.getLogger(__name__)

WIDE = 220
"""Columns of a table written to a file or a program, where commands are not wrapped."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Show the table and remove what is confirmed; 0, 1 if something could not be removed, 2 if there are no jobs."""
    options = _parse(arguments)
    log_to(sys.stderr, logging.WARNING)
    if faults := faults_of(options.folders, job_folders):
        print(*faults, sep="\n", file=sys.stderr)
        return 2
    folders = [job for root in options.folders for job in job_folders(root)]
    jobs, whole = readable(list(dict.fromkeys(folders)))
    if not jobs:
        print(f"no job that can be read in {', '.join(map(str, options.folders))}", file=sys.stderr)
        return 2
    try:
        things = find(jobs, whole=whole, only=options.only)
    except RunnerError as error:
        print(error, file=sys.stderr)
        return 2
    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    show(things, console)
    if any(thing.kind == "cache" for thing in things) and (others := _beside(jobs)):
        console.print(Text(printable(others)))
    chosen = _confirmed(things, options, console)
    return int(not free(chosen)) if chosen else 0


def find(jobs: Sequence[Job], *, whole: bool = True, only: Sequence[str] | None = None) -> list[Thing]:
    """What could be freed from these jobs, by kind.

    Args:
        whole: whether these are all jobs of their folders; otherwise it is unknown what the others use from the caches.
        only: the kinds to find; None for all except those that must be named.
    """
    wanted = [kind.name for kind in KINDS.values() if not kind.named] if only is None else list(only)
    found = list(job_things(jobs))
    if "cache" in wanted and whole:
        found += cache_things(jobs)
    elif "cache" in wanted:
        log.warning("skipped: the caches, since it is unknown what the jobs above use")
    if {"s3", "s3-inputs", "endpoints", "images"} & set(wanted):
        found += account_things(jobs)
    order = list(KINDS)
    return sorted((thing for thing in found if thing.kind in wanted), key=lambda thing: order.index(thing.kind))


def show(things: Sequence[Thing], console: Console) -> None:
    """The table, with a sum for each kind."""
    if not things:
        console.print("nothing to free")
        return
    for name, own in _by_kind(things).items():
        sizes = [thing.size_bytes for thing in own if thing.size_bytes is not None]
        title = f"{name}: {KINDS[name].doc}" + (f", {size_text(sum(sizes))}" if sizes else "")
        console.print(Text(title, style="bold"))
        table = Table(show_edge=False, pad_edge=False, box=None)
        table.add_column("what", overflow="fold")
        table.add_column("size", justify="right", no_wrap=True)
        table.add_column("changed", justify="right", no_wrap=True)
        for thing in own:
            table.add_row(Text(printable(thing.what)), size_text(thing.size_bytes), age_text(thing.changed_s))
            if thing.command:
                table.add_row(Text(printable(f"  {thing.command}")), "", "")
        console.print(table)
        console.print()


def _beside(jobs: Sequence[Job]) -> str:
    """The note about jobs beside these, which may use the caches as well; empty if there are none."""
    here, roots = {job.folder for job in jobs}, {job.folder.parent.parent for job in jobs}
    others = {file.parent for root in roots for file in root.glob(f"*/*/{MANIFEST_NAME}")} - here
    if not others:
        return ""
    where = ", ".join(sorted({folder.parent.name for folder in others}))
    keep = " ".join(sorted(map(str, roots)))
    return f"cache: includes what {count(len(others), 'other job')} in {where} may use; to keep that, name {keep}\n"


def free(things: Iterable[Thing]) -> bool:
    """Remove things; returns whether all went well. A failure does not keep the others from being removed."""
    good = True
    for thing in things:
        assert thing.remove is not None, thing
        try:
            thing.remove()
        except (RunnerError, OSError) as error:
            log.error("kept: %s: %s", thing.what, error)
            good = False
        else:
            print(printable(f"removed: {thing.what}, {size_text(thing.size_bytes)}"))
    return good


def _confirmed(things: Sequence[Thing], options: argparse.Namespace, console: Console) -> list[Thing]:
    """What to remove: everything named, with --yes, or each kind to which a person says yes."""
    free_able = {name: own for name, own in _by_kind(things).items() if not KINDS[name].listed}
    if options.yes:
        return [thing for own in free_able.values() for thing in own]
    if not free_able:
        return []
    if not (sys.stdin.isatty() and console.is_terminal):
        console.print(f"Nothing was removed. To remove: --yes --only {','.join(free_able)}")
        return []
    chosen = []
    try:
        for name, own in free_able.items():
            size = size_text(sum(thing.size_bytes or 0 for thing in own))
            if input(f"remove {name} ({size})? [y/N] ").strip().lower() in ("y", "yes"):
                chosen += own
    except (KeyboardInterrupt, EOFError):  # Ctrl-C or Ctrl-D instead of an answer takes back the others
        console.print("\nNothing was removed.")
        return []
    return chosen


def _by_kind(things: Sequence[Thing]) -> dict[str, list[Thing]]:
    return {name: own for name in KINDS if (own := [thing for thing in things if thing.kind == name])}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    kinds = [f"  {kind.name:<{max(map(len, KINDS))}}  {kind.doc}" for kind in KINDS.values()]
    parser = argparse.ArgumentParser(
        prog="python -m runner.clean",
        description="Show what could be freed; nothing is removed without a yes.",
        epilog="\n".join(["kinds:", *kinds]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="outputs/<name>, a job in it, or a folder of experiments"
    )
    parser.add_argument("--only", type=_kinds, metavar="KINDS", help="only these kinds, separated by commas")
    parser.add_argument("--yes", action="store_true", help="remove the kinds that --only names, without asking")
    options = parser.parse_args(arguments)
    if options.yes and options.only is None:
        parser.error("--yes needs --only: name the kinds to remove")
    if options.yes and (listed := [name for name in options.only if KINDS[name].listed]):
        parser.error(f"--yes with {', '.join(listed)}: these are only listed, each with the command that removes it")
    return options


def _kinds(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names:
        said = f"there is no kind {', '.join(unknown)}" if unknown else "names no kind"
        raise argparse.ArgumentTypeError(f"{said}; there are {', '.join(KINDS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
