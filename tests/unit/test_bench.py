"""tests.bench: what of it is pure. Nothing is timed, and no server started."""

import asyncio
import math
import os
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from schemas.streams import APP_INTERACTIONS, RETRIEVER_INTERACTIONS
from tests.bench import __main__ as command
from tests.bench import cores, events, figures, proc, reaches, report
from tests.bench.bench import Options
from tests.bench.figures import Point, Spread
from tests.bench.load import closed_loop, open_loop
from tests.bench.load.traffic import Traffic
from tests.bench.machine import Machine
from tests.bench.reaches import REACHES, Reach, judge
from tests.bench.results import Result, load_all
from tests.bench.scenario import Measure
from tests.bench.scenarios import ALL, BY_NAME

STAT = (
    "4711 (a (b) c) S 12 4711 4711 0 -1 4194560 100 200 0 0 150 50 7 8 20 0 4 0 99 123 456 18446744073709551615 "
    "0 0 0 0 0 0 0 0 0 0 0 0 17 0 0 0 0 0 0"
)
CORE_STAT = "cpu  30 3 12 500 1 0 9 0 0 0\ncpu0 10 1 4 250 0 0 4 0 0 0\ncpu1 20 2 8 250 1 0 5 0 0 0\nintr 1 2 3\n"
MACHINE = Machine("Some CPU", 2, 8, "6.1", "3.11.7", {"uvicorn": "0.54.0"}, "abc1234", 0.1, -20, "2026-11-22 10:00 UTC")


class TestFigures:
    def test_a_spread_is_median_and_range(self) -> None:
        assert figures.spread([3, 1, 2]) == Spread(2, 1, 3, 3)
        with pytest.raises(ValueError):
            figures.spread([])

    def test_ratios_are_run_by_run(self) -> None:
        assert figures.ratios([2, 9], [1, 3]) == [2, 3]
        assert figures.ratios([2, 9], [1]) == [2]

    @pytest.mark.parametrize(("percent", "expected"), [(50, 50), (99, 99), (99.9, 100), (100, 100), (1, 1), (0, 1)])
    def test_percentiles_are_values_that_occurred(self, percent: float, expected: float) -> None:
        assert figures.percentile(range(1, 101), percent) == expected

    def test_a_percentile_of_one_value_is_that_value(self) -> None:
        assert figures.percentile([7.5], 99) == 7.5
        with pytest.raises(ValueError):
            figures.percentile([], 50)

    def test_what_came_is_cumulated_in_order_of_time(self) -> None:
        assert figures.cumulated([Point(2, 10), Point(1, 5)]) == [Point(1, 5), Point(2, 15)]

    def test_pace_leaves_out_how_it_starts_and_ends(self) -> None:
        steady = [Point(10 + at / 10, 100 * at) for at in range(1, 100)]
        late_end = Point(1000, 10_000)
        assert figures.pace([Point(0, 1), *steady, late_end]) == pytest.approx(1000)

    def test_pace_of_few_blocks_is_that_of_all(self) -> None:
        assert figures.pace([Point(0, 95), Point(2, 100)]) == pytest.approx(2.5)
        with pytest.raises(ValueError):
            figures.pace([Point(0, 100)])
        with pytest.raises(ValueError):
            figures.pace([])


class TestOptions:
    @pytest.mark.parametrize(("text", "rows"), [("20M", 20_000_000), ("500k", 500_000), ("7", 7)])
    def test_sizes_may_be_written_short(self, text: str, rows: int) -> None:
        assert command._options(command._parser().parse_args(["--table-rows", text])).table_rows == rows

    @pytest.mark.parametrize("text", ["", "M", "20G", "1.5M"])
    def test_others_are_refused(self, text: str) -> None:
        with pytest.raises(SystemExit):
            command._parser().parse_args(["--table-rows", text])


class TestProc:
    def test_a_stat_line_whose_name_has_parentheses_and_spaces(self) -> None:
        assert proc.parse_stat(STAT) == proc.Stat(4711, 12, 200)

    def test_memory_is_in_bytes(self) -> None:
        text = "Name:\tpython\nVmHWM:\t   2048 kB\nVmRSS:\t   1024 kB\n"
        assert proc.parse_status_bytes(text, "VmHWM") == 2 * 2**20
        with pytest.raises(KeyError):
            proc.parse_status_bytes("Name:\tzombie\n", "VmRSS")

    def test_of_a_core_only_what_processes_took_counts(self) -> None:
        assert proc.parse_core_ticks(CORE_STAT) == {0: 15, 1: 30}

    def test_descendants_are_found_over_generations(self) -> None:
        parents = {1: 0, 2: 1, 3: 2, 4: 3, 9: 1}
        stats = {pid: proc.Stat(pid, parent, 0) for pid, parent in parents.items()}
        assert proc.descendants(2, stats) == {2, 3, 4}

    @pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
    def test_of_ourselves_it_knows_something(self) -> None:
        assert proc.cpu_s(os.getpid()) > 0
        assert proc.peak_rss_bytes(os.getpid()) >= proc.rss_bytes(os.getpid()) > 0
        with pytest.raises(ProcessLookupError):
            proc.cpu_s(2**30)


class TestCores:
    def test_with_two_the_server_has_one_for_itself(self) -> None:
        placement = cores.one_core_each([4, 5])
        assert placement == cores.Placement(frozenset({4}), frozenset({5}), frozenset({5}))
        assert placement.sentence == "Server under test on core 4; load generator and Kafka and ClickHouse on core 5."

    def test_with_more_the_stores_have_the_rest(self) -> None:
        assert cores.one_core_each([0, 1, 2, 3]).stores == {2, 3}
        assert cores.stores_unbound([0, 1, 2, 3]) == cores.Placement(
            frozenset({0}), frozenset({1}), frozenset({1, 2, 3})
        )

    def test_with_one_all_share_it(self) -> None:
        assert cores.one_core_each([0]) == cores.Placement(frozenset({0}), frozenset({0}), frozenset({0}))

    def test_workers_have_as_many_as_there_are(self) -> None:
        assert cores.several_for_the_server([0, 1], 1).server == {0}
        assert cores.several_for_the_server([0, 1], 4).server == {0, 1}
        assert cores.several_for_the_server([0, 1], 4).load == {1}
        assert cores.several_for_the_server([0, 1, 2, 3], 2) == cores.Placement(
            frozenset({0, 1}), frozenset({2}), frozenset({3})
        )


class TestSchedule:
    def test_the_rate_is_that_asked_for(self) -> None:
        times = open_loop.schedule(1_000, 20, seed=1)
        assert abs(len(times) - 20_000) < 5 * math.sqrt(20_000)
        assert times == sorted(times)
        assert times[0] > 0
        assert times[-1] < 20

    def test_requests_come_as_from_callers_who_know_nothing_of_each_other(self) -> None:
        times = open_loop.schedule(1_000, 20, seed=2)
        gaps = [after - before for before, after in pairwise(times)]
        mean = sum(gaps) / len(gaps)
        deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
        assert deviation == pytest.approx(mean, rel=0.05)

    def test_a_seed_is_a_schedule(self) -> None:
        assert open_loop.schedule(100, 1, seed=3) == open_loop.schedule(100, 1, seed=3)
        assert open_loop.schedule(100, 1, seed=3) != open_loop.schedule(100, 1, seed=4)

    def test_percentiles_are_in_ms(self) -> None:
        found = open_loop.percentiles_ms([0.001] * 99 + [0.5])
        assert found == {"50": 1.0, "90": 1.0, "99": 1.0, "99.9": 500.0, "100": 500.0}


class TestOpenLoop:
    async def test_what_is_due_in_the_warm_up_is_sent_and_not_counted(self) -> None:
        asked = 0

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            while await reader.read(1_000):
                asked += 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            loop = open_loop.OpenLoop(Traffic("/p", [b"1"]), [0.001, 0.002, 0.011, 0.012, 0.013], warm_up_s=0.01)
            await loop.run(server.sockets[0].getsockname()[1], connections=5)
        assert asked == 5
        assert (len(loop.latencies_s), len(loop.late_s)) == (3, 3)
        assert (loop.refused, loop.unanswered) == (0, 0)


class TestTraffic:
    def test_requests_take_turns(self) -> None:
        requests = Traffic("/p", [b"1", b"22"]).requests()
        first, second, third = (next(requests) for _ in range(3))
        assert first == third != second
        assert first.startswith(b"POST /p HTTP/1.1\r\n")
        assert second.endswith(b"Content-Length: 2\r\n\r\n22")

    def test_ids_differ(self) -> None:
        requests = Traffic("/p", [b"1"], ids="run-").requests()
        assert [b"Idempotency-Key: run-%d\r\n" % n in next(requests) for n in range(3)] == [True] * 3

    def test_a_generator_reads_what_was_saved(self, tmp_path: Path) -> None:
        traffic = Traffic("/p", [b'{"a":1}'], events=3, headers={"X": "y"}, ids="z")
        traffic.save(tmp_path / "traffic.json")
        assert Traffic.load(tmp_path / "traffic.json") == traffic

    def test_wrk_gets_the_same(self) -> None:
        script = Traffic("/p", [b'{"q":"]] x"}'], headers={"X": "y"}).lua()
        assert '[==[{"q":"]] x"}]==]' in script
        assert '["X"] = "y"' in script

    def test_answers_are_read_from_the_last_line(self, tmp_path: Path) -> None:
        generator = closed_loop.generator(Traffic("/p", [b"1"]), tmp_path, 1, 1, 1)
        generator.log_path.write_text('Running\n{"answers": 10, "seconds": 2.0, "refused": 3, "broken": 1}\n')
        assert closed_loop.answers(generator) == closed_loop.Answers(7, 2.0, 3, 1)


class TestEvents:
    def test_everybody_is_sent_valid_events_without_oddities(self) -> None:
        for stream, bodies in (
            (APP_INTERACTIONS, events.app_bodies()),
            (RETRIEVER_INTERACTIONS, events.retriever_bodies()),
        ):
            for body in bodies:
                assert stream.warnings(stream.parse(body)) == []

    def test_a_row_is_what_the_gateway_writes(self) -> None:
        rows = events.Rows()
        first, second = rows.make(1_763_800_000_000), rows.make(1_763_800_000_001)
        assert first.event_id != second.event_id
        event = APP_INTERACTIONS.parse(events.app_bodies()[0])
        expected = APP_INTERACTIONS.encode(event, first.event_id.decode(), events.APP, 1_763_800_000_000)
        assert first.value == expected
        assert 300 < len(first.value) < 340

    def test_a_block_is_lines_of_rows_with_coordinates(self) -> None:
        [(size, block)] = events.blocks(1, 3, 10**6, partition=5)
        lines = [orjson.loads(line) for line in block.splitlines()]
        assert size == len(lines) == 3
        assert [(line["kafka_partition"], line["kafka_offset"]) for line in lines] == [(5, 0), (5, 1), (5, 2)]


def measured(scenario: str, *series: tuple[str, str, list[dict[str, float]]], **fields: Any) -> Result:
    result = Result(scenario, machine=MACHINE.json(), options=asdict(Options()), **fields)
    for contestant, case, runs in series:
        for run in runs:
            result.add(contestant, case, run)
    return result


RATIO = Reach("what", "s", "cpu", "ours", "64 connections", 1.2, 1.0, peer="theirs")
FLOOR = Reach("what", "s", "rows", "ours", "*", 4, 8, peer="theirs", is_floor=True)
PLAIN = Reach("what", "s", "ms", "ours", "10 %", 2.5, 1.5, unit="ms")


class TestReaches:
    def test_a_ratio_is_judged_by_its_median(self) -> None:
        ours = [{"cpu": 11.0}, {"cpu": 30.0}, {"cpu": 11.0}]
        result = measured("s", ("ours", "64 connections", ours), ("theirs", "64 connections", [{"cpu": 10.0}] * 3))
        verdict = judge(RATIO, {"s": result})
        assert verdict.measured == Spread(1.1, 1.1, 3.0, 3)
        assert (verdict.meets_must, verdict.meets_reach) == (True, False)

    def test_at_least_is_the_other_way_round(self) -> None:
        result = measured("s", ("ours", "9 rows", [{"rows": 90.0}]), ("theirs", "9 rows", [{"rows": 10.0}]))
        assert judge(FLOOR, {"s": result})[1:3] == (True, True)

    def test_a_peer_that_was_skipped_leaves_nothing_to_judge(self) -> None:
        result = measured("s", ("ours", "64 connections", [{"cpu": 1.0}]), skipped={"theirs": "no go"})
        assert judge(RATIO, {"s": result}) == reaches.Verdict(None, reason="no go")
        assert judge(RATIO, {}) == reaches.Verdict(None, reason="not measured")

    def test_a_measure_without_a_peer(self) -> None:
        result = measured("s", ("ours", "10 %", [{"ms": 3.0}]))
        assert judge(PLAIN, {"s": result})[1:3] == (False, False)

    def test_each_names_a_scenario_and_what_that_measures(self) -> None:
        for reach in REACHES:
            assert reach.measure in {measure.key for measure in BY_NAME[reach.scenario].measures}
            assert (reach.reach >= reach.must) is reach.is_floor


class TestReport:
    def test_a_table_has_medians_ranges_and_only_what_was_measured(self) -> None:
        result = measured("s", ("ours", "a", [{"x": 1.0}, {"x": 3.0}]), ("theirs", "a", [{"x": 4.0}]))
        table = report.series_table([Measure("x", "x ms"), Measure("y", "never")], result)
        assert table.splitlines() == [
            "| | | x ms |",
            "|---|---|--:|",
            "| a | ours | 2.0 (1.0 to 3.0) |",
            "| a | theirs | 4.0 |",
        ]

    def test_the_reaches_say_what_was_met(self) -> None:
        runs = [{"cpu_us_per_event": 20.0}]
        go = [{"cpu_us_per_event": 25.0}]
        gateway = BY_NAME["gateway-single"].name
        result = measured(gateway, ("Sluice", "64 connections", runs), ("Go: net/http, franz-go", "64 connections", go))
        lines = report.reaches_table({gateway: result}).splitlines()
        assert lines[2].endswith("| 0.80 | ≤ 1.2 | ≤ 1 | reached |")
        assert lines[3].endswith("| not measured | ≤ 1 | ≤ 0.9 |  |")

    def test_a_busy_machine_and_quick_runs_are_named(self) -> None:
        result = measured("gateway-single", ("Sluice", "64 connections", [{"cpu_us_per_event": 1.0}]))
        result.machine["is_busy"] = True
        result.options["is_quick"] = True
        text = report.render(ALL, {"gateway-single": result}, {"gateway-single": ["plots/a.png"]})
        assert "mean nothing" in text
        assert "was busy" in text
        assert "![gateway-single](plots/a.png)" in text
        assert "Some CPU, 2 cores" in text

    def test_only_what_is_between_the_marks_is_written(self) -> None:
        before = f"head\n{report.BEGIN}\nold\n{report.END}\ntail\n"
        assert report.written_into(before, "new\n") == f"head\n{report.BEGIN}\nnew\n{report.END}\ntail\n"
        with pytest.raises(ValueError):
            report.written_into("head\n", "new")

    def test_the_readme_has_a_place_for_it(self) -> None:
        readme = Path(report.__file__).with_name("README.md").read_text()
        assert "new" in report.written_into(readme, "new")


def test_results_come_back_from_their_files(tmp_path: Path) -> None:
    result = measured("gateway-single", ("ours", "a", [{"x": 1.0}]), skipped={"b": "c"}, notes=["d"])
    result.save(tmp_path)
    assert load_all(tmp_path, ["gateway-single", "consumer"]) == {"gateway-single": result}


def test_scenarios_have_names_of_their_own() -> None:
    assert len(BY_NAME) == len(ALL)
