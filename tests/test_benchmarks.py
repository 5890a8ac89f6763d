"""What the benchmarks' tables say follows from what was measured. Nothing is timed here."""

import re
from pathlib import Path

import pytest

from benchmarks import measure
from benchmarks.__main__ import HERE, NAMES
from benchmarks.measure import Benchmark, Target, Value

SLOW, FAST = [{"us": 400.0, "loss": 0.5}, {"us": 600.0, "loss": 0.5}], [{"us": 100.0, "loss": 0.5}] * 2


def benchmark(**more):
    values = [Value("us", "µs a step"), Value("loss", "loss", ".2f")]
    return Benchmark(cases={"": None}, quick={"": None}, values=values, ratio="times the speed of", **more)


def test_a_table_shows_medians_spread_and_the_ratio_to_the_first_row():
    assert measure.table(benchmark(), {"textbook": SLOW, "left out": [], "ours": FAST}).splitlines() == [
        "| program | µs a step | times the speed of textbook | loss |",
        "| --- | --: | --: | --: |",
        "| textbook | 500.0 [400.0-600.0] | 1.00 | 0.50 [0.50-0.50] |",
        "| ours | 100.0 [100.0-100.0] | 5.00 | 0.50 [0.50-0.50] |",
    ]


@pytest.mark.parametrize("asked, said", [(5.0, "**reached**"), (5.1, "**not reached**")])
def test_a_target_says_both_numbers_and_whether_it_is_reached(asked, said):
    targets = [Target("S1", "ours", "textbook", asked), Target("S1", "ours", "not installed")]
    (line,) = measure.verdicts(benchmark(targets=targets), {"": {"textbook": SLOW, "ours": FAST}})
    assert line.startswith("- S1: ours 100.0 [100.0-100.0], textbook 500.0 [400.0-600.0]: 5.00 [4.00-6.00]; target")
    assert line.endswith(said)


def test_a_section_takes_the_place_of_its_old_text_and_of_nothing_else():
    page = measure.replace(measure.replace("# Page\n", "a", "old"), "b", "other")
    assert measure.replace(page, "a", "new") == page.replace("old", "new")


def test_every_file_with_a_benchmark_is_run_by_the_one_command():
    found = {path.stem for path in HERE.glob("*.py") if re.search(r"^BENCHMARK = ", path.read_text("utf-8"), re.M)}
    assert found == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_asks_a_question_and_its_targets_name_its_rows(name):
    module = measure.load(name)
    assert module.__doc__.split("\n")[0].endswith("?")
    assert set(module.BENCHMARK.cases) == set(module.BENCHMARK.quick)
    rows = set(module.BENCHMARK.programs)
    for target in module.BENCHMARK.targets:
        assert {target.ours, target.theirs or target.ours} <= rows and target.case in ("", *module.BENCHMARK.cases)


def test_the_page_holds_no_section_of_a_benchmark_that_is_gone():
    page = Path(HERE / "README.md").read_text("utf-8")
    assert set(re.findall(r"<!-- (\w+) -->", page)) <= {*NAMES, "diagnosis", "policy"}
