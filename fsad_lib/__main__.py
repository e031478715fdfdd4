"""Command line: ``python -m fsad_lib COMMAND``. Exit status 0 done, 1 a run failed, 2 something the user can repair."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fsad_lib", description="Few-shot anomaly detection: data checks, runs, grids, tables, figures."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    check = commands.add_parser("check-data", help="say what a data folder holds, what was expected, what to do")
    check.add_argument("path", help="the folder")

    run = commands.add_parser("run", help="run one notebook with parameters, unless its run is complete")
    run.add_argument("notebook", help="name in notebooks/ (10_personalize_adp) or a path ending in .ipynb")
    run.add_argument("-p", nargs="+", action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters",
                     help="parameters, in pairs: -p dataset elpv category mono")  # fmt: skip
    run.add_argument("--list", action="store_true", help="print the notebook's parameters and stop")
    run.add_argument("--force", action="store_true", help="run it even if it is complete")

    grid = commands.add_parser("grid", help="all stages of a method over data sets x categories x shots x seeds")
    grid.add_argument("method", nargs="?", default="adp", help="adp (default), anomalysd or tgvig")
    grid.add_argument("--dataset", nargs="+", default=["minifab"], metavar="NAME")
    grid.add_argument("--category", nargs="+", metavar="NAME", help="default: all of each data set (for anomalysd: one model for all)")
    grid.add_argument("--shots", nargs="+", type=int, default=[4], metavar="K")
    grid.add_argument("--seed", nargs="+", type=int, default=[0], metavar="SEED")
    grid.add_argument("--data-root", default="", help="where the data sets lie; for 'folder' the folder itself")
    grid.add_argument("--tag", default="", help="a name that keeps these runs apart from others")
    grid.add_argument("--overrides", default="", metavar="KEY=VALUE,...", help="changes over the profile: adp.alpha=2")
    grid.add_argument("--ablations", action="store_true", help="of anomalysd and tgvig: run it without each of its parts, too")
    grid.add_argument("--baselines", nargs="+", metavar="NAME", help="of tgvig: patchcore (default), cflow, efficientad, reverse_distillation; a run each")
    grid.add_argument("--full", action="store_true", help="of tgvig: also with all normal training images of each category")
    grid.add_argument("--table1", action="store_true", help="of tgvig: only the runs of its Tables 1 and 2, with the rival generators")
    grid.add_argument("--outside", default="", metavar="FOLDER", help="with --table1: a folder of yours with web_image/, midjourney/, dalle/")
    grid.add_argument("--force", action="store_true", help="run complete runs again")
    _common(grid)

    _common(commands.add_parser("demo", help="ADP on three MiniFab categories and on solar cells, then the figures"))
    tables = commands.add_parser("tables", help="the full grid behind the tables (resumable), then the figures")
    tables.add_argument("method", nargs="?", default="adp", choices=["adp", "anomalysd", "tgvig"])
    tables.add_argument("--summary", action="store_true", help="of adp: only print the table of the runs that are complete")
    _common(tables)
    figures = commands.add_parser("figures", help="draw every table and figure from the runs that are complete")
    figures.add_argument("method", nargs="?", default="adp", choices=["adp", "anomalysd", "tgvig"])
    figures.add_argument("--profile", default="mini")
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="mini", help="mini (default) or paper")
    parser.add_argument("--jobs", type=int, metavar="N", help="cells side by side (default: chosen by the machine)")


def _pairs(groups: Sequence[Sequence[str]]) -> dict[str, str]:
    from fsad_lib.errors import FsadError

    found: dict[str, str] = {}
    for words in groups:
        if len(words) % 2:
            raise FsadError(f"-p takes names and values in pairs, found {' '.join(words)!r}.")
        for name, value in zip(words[::2], words[1::2], strict=True):
            if name in found:
                raise FsadError(f"Parameter {name!r} is given twice.")
            found[name] = value
    return found


def _check_data(args: argparse.Namespace) -> int:
    from fsad_lib.datasets.check import check

    report = check(args.path)
    print(report)
    return 0 if report.ok else 2


def _run(args: argparse.Namespace) -> int:
    from fsad_lib import pipeline

    if args.list:
        for p in pipeline.parameters(args.notebook).values():
            print(f"{p.name}: {p.type} = {p.default!r}" + (f"  # {p.help}" if p.help else ""))
        return 0
    result = pipeline.execute(
        args.notebook, _pairs(args.parameters), force=args.force, progress=sys.stderr.isatty()
    )
    print(f"complete already: {result.run.path}" if result.skipped else f"{result.seconds:.0f} s: {result.run.path}")
    return 0


def _grid(args: argparse.Namespace) -> int:
    from fsad_lib import pipeline

    several, tag = _several(args)
    pairs, failed = pipeline.cells(args.dataset, args.category, args.data_root, args.method), 0
    jobs = [(pairs, args.shots)]
    if args.full:
        jobs += [(some, [k]) for k, some in pipeline.all_images(pairs, args.data_root).items() if k not in args.shots]
    for overrides in several:
        for some, shots in jobs:
            report = pipeline.grid(
                args.method,
                some,
                shots,
                args.seed,
                args.profile,
                jobs=pipeline.default_jobs(args.profile) if args.jobs is None else args.jobs,
                data_root=args.data_root,
                tag=tag,
                overrides=overrides,
                force=args.force,
            )
            where = f" ({overrides})" if len(several) > 1 and overrides else ""
            print(f"{report.done} stages run, {report.skipped} complete already, {len(report.failed)} failed{where}")
            failed += len(report.failed)
    return 1 if failed else 0


def _several(args: argparse.Namespace) -> tuple[list[str], str]:
    """The overrides of each grid that a command asks for, and their tag."""
    from fsad_lib.errors import FsadError

    own = args.baselines or args.full or args.table1 or args.outside
    if own and args.method != "tgvig":
        raise FsadError("--baselines, --full, --table1 and --outside belong to tgvig.")
    if (args.ablations or args.baselines or args.table1) and (args.overrides or args.tag):
        raise FsadError("--ablations, --baselines and --table1 set overrides of their own; leave out --overrides and --tag.")
    if args.ablations and args.method not in ("anomalysd", "tgvig"):
        raise FsadError("--ablations belongs to anomalysd and tgvig.")
    if args.outside and not args.table1 or args.table1 and (args.ablations or args.baselines):
        raise FsadError("--table1 stands alone, but for --outside, which belongs to it.")
    if args.table1:
        from fsad_lib.datasets._common import absolute
        from fsad_lib.tables.tgvig import TABLE1_TAG, table1_overrides

        return [table1_overrides(args.profile, str(absolute(args.outside).resolve()) if args.outside else "")], TABLE1_TAG
    several = [args.overrides]
    if args.baselines:
        from fsad_lib.tables.tgvig import BASELINES, baseline_overrides

        if unknown := [name for name in args.baselines if name not in BASELINES]:
            raise FsadError(f"--baselines: found {', '.join(unknown)}, expected some of {', '.join(BASELINES)}.")
        several = [baseline_overrides(name) for name in args.baselines]
    if args.ablations:
        from importlib import import_module

        several += import_module(f"fsad_lib.tables.{args.method}").ablation_overrides(args.profile)
    return several, args.tag


def _tables(args: argparse.Namespace) -> int:
    if args.summary:
        return _summary(args)
    from fsad_lib import pipeline

    return pipeline.full(args.profile, args.jobs, args.method)


def _summary(args: argparse.Namespace) -> int:
    from fsad_lib import runs, tables
    from fsad_lib.errors import FsadError
    from fsad_lib.profiles import load_profile

    if args.method != "adp":
        raise FsadError(f"--summary: found {args.method}, expected adp; `figures {args.method}` writes the other tables to figures/.")
    profile = load_profile(args.profile).name
    table = tables.summary(runs.project_root(), profile)
    print(table.to_string() if len(table.columns) else f"no complete run of adp in the profile {profile}")
    return 0


def _demo(args: argparse.Namespace) -> int:
    from fsad_lib import pipeline

    return pipeline.demo(args.profile, args.jobs)


def _figures(args: argparse.Namespace) -> int:
    from fsad_lib import pipeline

    result = pipeline.execute(pipeline.FIGURES[args.method], {"profile": args.profile})
    print("\n".join((result.run.metrics or {}).get("files", ())))
    return 0


def _flush(status: int) -> int:
    """Write what is left, so that a reader that went away, or a full disk, is met here."""
    try:
        if sys.stdout:  # None where it was closed
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"error: the output could not be written: {error.strerror}", file=sys.stderr)
        return 2
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, that of ``arguments`` or of the process's own command line; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal's encoding lacks is no reason to stop
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(arguments)
    commands = {"check-data": _check_data, "run": _run, "grid": _grid, "demo": _demo, "tables": _tables, "figures": _figures}
    from fsad_lib.errors import FsadError

    try:
        status = commands[args.command](args)
        return _flush(status)
    except BrokenPipeError:  # `... | head` has read enough; nothing more is to be written at exit
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except FsadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what is complete is kept; the same command goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        if type(error).__name__ != "StageError":
            raise
        print(f"failed: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
