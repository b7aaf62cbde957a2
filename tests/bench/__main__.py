"""`make bench`, or `python -m tests.bench [SCENARIO …]`: measure, and say what came out. `--help` lists the options.

Results are kept in .sluice/bench, one file a scenario, so that any of them can be measured anew; the report is of all
that are there. `--write` puts it into tests/bench/README.md, with its plots.
"""

import argparse
import shutil
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from deploy.local.process import Failure
from tests.bench import machine, report
from tests.bench.bench import Bench, Options
from tests.bench.cores import NICE, come_first, one_core_each, pinned
from tests.bench.load.closed_loop import has_wrk
from tests.bench.progress import Bars
from tests.bench.results import Result, load_all
from tests.bench.scenario import Scenario
from tests.bench.scenarios import ALL, BY_NAME

DIRECTORY = Path(".sluice/bench")
README = Path(__file__).with_name("README.md")
PLOTS = Path(__file__).with_name("plots")
ROWS_UNITS = {"k": 1_000, "M": 1_000_000}


def main() -> int:
    args = _parser().parse_args()
    if args.list:
        print("\n".join(f"{scenario.name:20} {scenario.title}" for scenario in ALL))
        return 0
    if sys.platform != "linux":
        print("Only on Linux: cores are pinned, and CPU time is read from /proc.", file=sys.stderr)
        return 1
    if args.quick and args.write:
        print("What --quick measures is not to be written down.", file=sys.stderr)
        return 2
    results_dir = DIRECTORY / ("quick" if args.quick else "results")
    bars = Bars()
    status = 0
    if not args.report_only:
        scenarios = list(dict.fromkeys(args.scenario)) or ALL
        try:
            status = _measure(scenarios, _options(args), results_dir, bars)
        except KeyboardInterrupt:
            return 130
    _report(results_dir, write=args.write)
    return status


def _parser() -> argparse.ArgumentParser:
    defaults = Options()
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scenario", nargs="*", type=_scenario, metavar="SCENARIO", help="default: all of them")
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    parser.add_argument("--runs", type=int, help=f"interleaved runs of each; default: {defaults.runs}")
    parser.add_argument("--seconds", type=float, help=f"of each run; default: {defaults.seconds}")
    parser.add_argument("--backlog-rows", type=_rows, help=f"to drain, 2M or 500k; default: {defaults.backlog_rows}")
    parser.add_argument("--memory-rows", type=_rows, help=f"the same in `memory`; default: {defaults.memory_rows}")
    parser.add_argument("--table-rows", type=_rows, help=f"that are there before; default: {defaults.table_rows}")
    parser.add_argument("--quick", action="store_true", help="see that all works; the figures mean nothing")
    parser.add_argument("--report-only", action="store_true", help="measure nothing, report what was measured before")
    parser.add_argument("--write", action="store_true", help="write table and plots into tests/bench/README.md")
    return parser


def _scenario(name: str) -> Scenario:
    if name not in BY_NAME:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(BY_NAME)}")
    return BY_NAME[name]


def _rows(text: str) -> int:
    """20000000 or 20M. Raises ValueError."""
    factor = ROWS_UNITS.get(text[-1:], 1)
    return int(text if factor == 1 else text[:-1]) * factor


def _options(args: argparse.Namespace) -> Options:
    options = Options.quick() if args.quick else Options()
    names = ("runs", "seconds", "backlog_rows", "memory_rows", "table_rows")
    return replace(options, **{name: getattr(args, name) for name in names if getattr(args, name) is not None})


def _measure(scenarios: Sequence[Scenario], options: Options, results_dir: Path, bars: Bars) -> int:
    """0 if all could be measured. What fails is said, and the others go on."""
    bench = Bench(options, DIRECTORY.absolute(), bars)
    if come_first() > NICE:
        bars.warn("Not run as root: what else the machine does comes into the latencies")
    if not has_wrk():
        bars.warn("wrk is not installed: a load generator in Python takes its place, which saturates less")
    status = 0
    # What we do ourselves must not take from the server under test.
    with pinned(one_core_each(bench.cores).load), bars.live():
        for scenario in scenarios:
            found = machine.describe(len(bench.cores))
            if found.is_busy:
                bars.warn(f"The machine is busy (load {found.load}): {scenario.name} may say nothing")
            result = Result(scenario.name, machine=found.json(), options=asdict(options))
            if not has_wrk():
                result.note("wrk is not installed: load by our own closed loop, servers may not have been saturated")
            try:
                scenario.run(bench, result)
            except Failure as failure:
                bars.warn("\n".join([f"{scenario.name}: {failure}", *failure.lines]))
                status = 1
            except Exception:
                bars.warn(f"{scenario.name}:\n{traceback.format_exc()}")
                status = 1
            else:
                result.save(results_dir)
    shutil.rmtree(bench.directory / "stacks", ignore_errors=True)
    return status


def _report(results_dir: Path, *, write: bool) -> None:
    # Loads matplotlib: not before it is needed.
    from tests.bench import plots

    results = load_all(results_dir, list(BY_NAME))
    if not results:
        print("Nothing has been measured yet.")
        return
    plots_dir = PLOTS if write else results_dir / "plots"
    drawn = {name: plots.draw(BY_NAME[name], result, plots_dir) for name, result in results.items()}
    names = {name: [f"plots/{path.name}" for path in paths] for name, paths in drawn.items()}
    text = report.render(ALL, results, names)
    (results_dir / "report.md").write_text(text)
    print(text)
    if write:
        report.write_into(README, text)


if __name__ == "__main__":
    sys.exit(main())
