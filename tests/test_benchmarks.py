"""The benchmark harness: what it promises about its own measurements."""

import json
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import rankreg_ext
from benchmarks import __main__ as cli
from benchmarks import baselines, cases, compare, harness, machine, ops, plots, report, rows
from benchmarks.cases import Case
from benchmarks.providers import OURS, OURS_NUMPY, PROVIDERS, Provider
from benchmarks.training import Trainer
from rankreg_ext import reference

ROOT = Path(__file__).parents[1]
SMALL = [
    *(Case("rank", 3, 40, dtype) for dtype in cases.DTYPES),
    *(Case("rank", 2, 50, "float32", values) for values in cases.VALUES[1:5]),
    *(Case("blackbox_backward", 3, 40, dtype) for dtype in cases.DTYPES),
    *(Case("blackbox_step", 2, 50, "float32", values) for values in cases.VALUES[:5]),
    *(
        Case(op, 2, 64, "float32", values, 5)
        for op in ("positive_ranks", "positive_ranks_backward")
        for values in cases.VALUES
    ),
    *(
        Case(op, 2, 64, dtype, "normal", 5)
        for op in ("positive_ranks", "positive_ranks_backward")
        for dtype in cases.DTYPES[1:]
    ),
    *(
        Case(op, 2, 64, "float32", "normal", positives)
        for op in ("rankreg_loss", "rankreg_loss_backward", "rankreg_loss_step")
        for positives in (1, 16)
    ),
    *(
        Case(f"hinge_violations{s}", 2, 64, d, "normal", 5)
        for s in ("", "_step")
        for d in cases.DTYPES
    ),
    Case("rankdata", 1, 30, "float64"),
    Case("rankdata", 4, 30, "float32", "tied"),
    *(Case("training_step", 1, 32, values=network, positives=3) for network in cases.NETWORKS),
]


@pytest.fixture(autouse=True)
def _one_copy(monkeypatch):
    """Few inputs in each case: these tests are not about speed."""
    monkeypatch.setattr(harness, "ROTATED_ELEMENTS", 400)


# ------------------------------------------------------------------------------------------- cases


def test_names_are_unique_and_tell_everything():
    full = cases.full()
    assert len({case.name for case in full}) == len(full) == len(set(full))
    case = Case("positive_ranks", 64, 1024, "bfloat16", "tied", 16)
    assert case.name == "positive_ranks/64x1024/bfloat16/tied/P16"


def test_every_op_is_declared_once_everywhere():
    used = {case.op for select in cases.SELECTIONS["cpu"].values() for case in select()}
    assert used == set(ops.OPS) == {*PROVIDERS, "training_step"}
    assert {case.op for case in cases.quick()} == used


def test_filters():
    standard = cases.standard()
    assert cases.select(standard) == standard
    assert {c.op for c in cases.select(standard, ops=["rank", "rankdata"])} == {"rank", "rankdata"}
    found = cases.select(standard, ops=["rank"], shapes=["64x1024"], dtypes=["bfloat16"])
    assert found == [Case("rank", 64, 1024, "bfloat16")]
    found = cases.select(standard, match=r"positive_ranks/.*/P8$")
    assert found == [Case("positive_ranks", 1, 1_000_000, positives=8)]
    with pytest.raises(ValueError, match=r"no case has op \['rnak'\]; there are .*rank"):
        cases.select(standard, ops=["rnak"])
    with pytest.raises(ValueError, match="no case passes all filters"):
        cases.select(standard, match="nothing is called this")


def test_targets_speak_of_cases_that_are_measured():
    full = set(cases.full())
    names = [target.name for target in cases.TARGETS]
    assert len(set(names)) == len(names)
    for target in cases.TARGETS:
        assert target.unit in cases.UNITS
        assert target.cases and set(target.cases) <= full, target.name
        if target.unit == "x forward":
            assert {Case("rank", c.batch, c.n, c.dtype) for c in target.cases} <= full


def test_targets_name_every_figure_to_reach():
    """Limits by unit, as the design states them: a lost or loosened one is noticed here."""
    found = {}
    for target in cases.TARGETS:
        found.setdefault(target.unit, set()).update({target.limit, *dict(target.limits).values()})
    rare = {0.1, 0.4, 1.5, 0.25, 0.85, 3.0}
    assert found == {
        "ns/element": {1.8, 2.5, 3.5, 2.3, 4.5} | rare,
        "x forward": {1.15},
        "x spread": {1.3},
        "us/call": {15.0, 2.0},
        "B/element": {16.0, 0.1},
    }


# ------------------------------------------------------------------------------------- inputs, gate


@pytest.mark.parametrize("values", cases.VALUES)
def test_inputs_are_of_the_kind_and_new_with_every_seed(values):
    case = Case("positive_ranks", 3, 200, "float32", values, 10)
    (x, positives), (other, elsewhere) = (ops.make_inputs(case, seed) for seed in (0, 1))
    again, _ = ops.make_inputs(case, 0)
    assert torch.equal(x, again)
    assert not torch.equal(positives, elsewhere)
    assert positives.sum(-1).tolist() == [10, 10, 10]
    assert not torch.equal(x, other)
    steps = x.diff(dim=-1)
    assert bool((steps >= 0).all()) is (values == "sorted")
    assert bool((steps <= 0).all()) is (values == "reversed")
    distinct = len(x[0].unique())
    assert (distinct <= 200 // 16) is (values == "tied")
    if values == "separated":
        assert x[positives].mean() > x[~positives].mean() + 1.5


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_every_provider_passes_its_gate(case):
    runners = harness.prepare(case)
    assert (runners[0].provider.name == OURS) or case.op == "rankdata"
    assert len(runners) > 1
    for runner in runners:
        compared = runner.gate != "not compared"
        assert compared is (runner.provider.name not in ("torchsort", "no_rank_loss"))


@pytest.mark.parametrize(
    "case", [case for case in SMALL if case.op.startswith(("rank/", "positive", "rankreg", "rank"))]
)
def test_counted_answers_are_those_of_the_specification(case, monkeypatch):
    inputs = ops.make_inputs(case, 3)
    expected = ops.OPS[case.op].answer(case, *inputs)
    monkeypatch.setattr(ops, "LARGE", 0)
    counted = ops.OPS[case.op].answer(case, *inputs)
    known = (
        torch.ones_like(expected.value, dtype=torch.bool)
        if counted.known is None
        else (counted.known)
    )
    assert known.any()
    assert torch.equal(counted.value[known], expected.value[known])


def _provider(change, **facts):
    def call(x):
        ranks = rankreg_ext.rank(x)
        return change(ranks)

    return Provider("candidate", call, **facts)


def _gate(provider, case, x):
    answer = ops.OPS[case.op].answer(case, x)
    return harness.check(provider, case, answer, provider.call(x), (x,))


def test_gate_refuses_one_wrong_element():
    case = Case("rank", 4, 50)
    (x,) = ops.make_inputs(case, 0)

    def swap(ranks):
        ranks[2, [10, 11]] = ranks[2, [11, 10]]
        return ranks

    assert _gate(_provider(lambda r: r), case, x) == "equal"
    assert _gate(_provider(lambda r: r.double()), case, x) == "equal"
    with pytest.raises(harness.GateError, match=r"candidate on rank/4x50.* 1.00% .*number 110: "):
        _gate(_provider(swap), case, x)


def test_gate_holds_ours_to_the_dtype():
    case = Case("rank", 4, 50)
    (x,) = ops.make_inputs(case, 0)
    wrong = Provider(OURS, lambda x: rankreg_ext.rank(x).double(), exact_ties=True)
    with pytest.raises(harness.GateError, match=r"torch.float64, not torch.float32"):
        _gate(wrong, case, x)


def test_gate_lets_ties_be_broken_arbitrarily_and_nothing_else():
    case = Case("rank", 1, 6, values="tied")
    x = torch.tensor([[3.0, 1.0, 1.0, 2.0, 0.0, -0.0]])
    good, bad = torch.tensor([[1.0, 4, 3, 2, 6, 5]]), torch.tensor([[2.0, 4, 3, 1, 6, 5]])
    assert _gate(Provider("p", lambda x: good), case, x) == "equal without ties"
    with pytest.raises(harness.GateError):
        _gate(Provider("p", lambda x: bad), case, x)
    with pytest.raises(harness.GateError):
        _gate(Provider("p", lambda x: good, exact_ties=True), case, x)


@pytest.mark.parametrize("tied", [False, True])
def test_gate_allows_a_spill_of_ties_only_where_there_are_ties(tied):
    case = Case("rank", 1, 1000)
    value = torch.arange(1000.0).unsqueeze(0)
    output = value.clone()
    output[0, 500] += 1
    untied = torch.ones(1, 1000, dtype=torch.bool)
    untied[0, 0] = not tied
    answer = ops.Answer(value, lambda: untied, spill=1e-3)
    arbitrary, exact = Provider("p", None), Provider("p", None, exact_ties=True)
    if tied:
        assert harness.check(arbitrary, case, answer, output, ()) == "equal without ties"
        output[0, 501] += 1
    for provider in (arbitrary, exact):
        with pytest.raises(harness.GateError):
            harness.check(provider, case, answer, output, ())


@pytest.mark.parametrize("network", cases.NETWORKS)
def test_gate_tells_a_step_without_the_rank_loss(network):
    case = Case("training_step", 1, 64, values=network, positives=3)
    inputs = ops.make_inputs(case, 0)
    answer = ops.OPS[case.op].answer(case, *inputs)
    without = Trainer(network, None)
    candidate = Provider("p", without.step, finish=lambda _, *x: without.fresh_gradients(*x))
    with pytest.raises(harness.GateError, match=r"the gradient is .*% off"):
        harness.check(candidate, case, answer, None, inputs)


def test_gate_refuses_another_shape():
    case = Case("rank", 4, 50)
    (x,) = ops.make_inputs(case, 0)
    with pytest.raises(harness.GateError, match=r"\(4, 1\), not \(4, 50\)"):
        _gate(_provider(lambda ranks: ranks[:, :1]), case, x)


def test_gate_refuses_nan():
    case = Case("rank", 4, 50)
    (x,) = ops.make_inputs(case, 0)
    with pytest.raises(harness.GateError):
        _gate(_provider(lambda ranks: ranks * torch.nan), case, x)


def test_a_wrong_provider_is_never_timed(monkeypatch):
    calls = []

    def wrong(x):
        calls.append(1)
        return x

    monkeypatch.setitem(PROVIDERS, "rank", lambda: [Provider("wrong", wrong)])
    with pytest.raises(harness.GateError):
        harness.measure(Case("rank", 2, 20))
    assert len(calls) == 1


def test_packed_sort_is_exact_on_all_signs():
    x = np.float32([[3, -1, 2e-45, -2e-45, 0, np.inf, -np.inf, 1e30]])
    expected = reference.rank(torch.from_numpy(x)).numpy()
    assert np.array_equal(baselines.packed_sort(x), expected)


# --------------------------------------------------------------------------------- rotation, timing


def test_rotation_goes_through_all_inputs_in_turn():
    seen = []
    arguments = [(i,) for i in range(5)]
    runner = harness.Runner(Provider("p", seen.append), arguments, calls=3)
    for _ in range(4):
        runner.sample()
    assert seen == [i % 5 for i in range(12)]


def test_rotated_inputs_differ(monkeypatch):
    (runner,) = harness.prepare(Case("rank", 2, 40), (OURS,))
    assert len(runner.arguments) == 5
    assert len({tuple(x.flatten().tolist()) for (x,) in runner.arguments}) == 5


def test_number_of_copies(monkeypatch):
    monkeypatch.undo()
    assert harness.copies_of(Case("rank", 1, 64)) == harness.MOST_COPIES
    for case in cases.full():
        copies = harness.copies_of(case)
        assert copies >= 2
        enough = copies * case.elements >= min(harness.ROTATED_ELEMENTS, 256 * case.elements)
        assert enough or copies >= 3


def test_providers_take_turns_and_the_slow_sit_out():
    log = []

    def provider(name, seconds):
        def call():
            log.append(name)
            time.sleep(seconds)

        return harness.Runner(Provider(name, call), [()])

    fast, slow = provider("fast", 5e-4), provider("slow", 1e-2)
    harness.time_rounds([fast, slow], seconds=0.1)
    assert len(fast.samples) == harness.ROUNDS
    assert harness.FEWEST_SAMPLES <= len(slow.samples) < harness.ROUNDS
    assert min(slow.samples) >= 1e-2 > min(fast.samples) >= 5e-4
    places = [i for i, name in enumerate(log) if name == "slow"]
    assert places[-1] - places[-2] > 2  # spread over the rounds, not in a row


def test_fast_calls_are_averaged_over_many():
    runner = harness.Runner(Provider("p", lambda: None), [()])
    harness.time_rounds([runner], seconds=0.05)
    assert runner.calls > 50
    assert 0 < harness.quantiles(runner.samples)[1] < 1e-5


def test_quantiles():
    assert harness.quantiles([1.0]) == (1.0, 1.0, 1.0)
    low, median, high = harness.quantiles([10.0 - i for i in range(11)])
    assert (low, median, high) == pytest.approx((1.0, 5.0, 9.0))


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs /proc")
def test_peak_memory_counts_output_and_freed_scratch():
    size = 32 * 2**20

    def with_scratch():
        scratch = np.ones(size, np.uint8)
        return scratch[: size // 2].copy()

    slack = 2 * 2**20
    assert harness.peak_memory(lambda: None) < slack
    assert abs(harness.peak_memory(lambda: np.ones(size, np.uint8)) - size) < slack
    assert abs(harness.peak_memory(with_scratch) - 1.5 * size) < slack


# ------------------------------------------------------------------------------------------ machine


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86-64 code")
def test_clock_is_plausible():
    clock = machine.clock_ghz()
    assert clock is None or 0.4 < clock < 8


def test_unknown_instruction_set_is_refused():
    assert machine.isa() in (*machine.isas(), "none")
    with pytest.raises(ValueError, match="instruction set 'mmx' is not usable here"):
        machine.use_isa("mmx")


def test_every_instruction_set_binds_the_competitors():
    if platform.machine() == "x86_64":
        assert machine.environment_of("avx2", 1)["ATEN_CPU_CAPABILITY"] == "avx2"
        assert "X86_V4" in machine.environment_of("avx2", 1)["NPY_DISABLE_CPU_FEATURES"]
        assert "NPY_DISABLE_CPU_FEATURES" not in machine.environment_of("avx512", 1)
    assert machine.environment_of("avx2", 3)["OMP_NUM_THREADS"] == "3"


# --------------------------------------------------------------------------------------------- rows


def _run(**facts):
    facts = {"run": "r1", "isa": "avx512", "threads": 1, "clock_ghz": 2.0, **facts}
    example = {
        "kind": "run", "date": "2026-01-01T00:00:00+00:00", "selection": "standard",
        "cpu": "A processor", "cpu_family_model": "1/2", "cpu_flags": ["avx2"], "l2_cache": None,
        "logical_cores": 2, "memory_gib": 8.0, "system": "Linux x86_64", "governor": None,
        "copy_gb_per_s": 20.0, "cores": [1], "isas": ["baseline", "avx512"], "variables": {},
        "python": "3.12.0", "libraries": {"torch": "2.13.0", "scipy": None}, "rankreg_ext": "0.1",
        "compiler": "g++", "flags": "-O3", "build": None, "commit": "c" * 40, "dirty": False,
    }  # fmt: skip
    return {**example, **facts}


def _row(case, provider=OURS, ns_per_element=1.0, **facts):
    ns = ns_per_element * case.elements
    row = {
        "kind": "row", "run": "r1", "isa": "avx512", "threads": 1, "case": case.name,
        "op": case.op, "batch": case.batch, "n": case.n, "dtype": case.dtype,
        "values": case.values, "positives": case.positives, "provider": provider,
        "ns_p10": 0.9 * ns, "ns_p50": ns, "ns_p90": 1.2 * ns, "samples": 40,
        "calls_per_sample": 1, "cpu_share": 1.0, "inputs_rotated": 3,
        "floor_bytes": ops.floor_bytes(case),
        "peak_bytes": None, "output_bytes": None, "gate": "equal", "note": "", "clock_ghz": 2.0,
    }  # fmt: skip
    return {**row, **facts}


def test_schema_names_every_field_and_its_type():
    row, run = _row(Case("rank", 1, 64)), _run()
    assert rows.validate(row) is row and rows.validate(run) is run
    wrong = [
        ({"ns_p50": "fast"}, "ns_p50 must be"),
        ({"n": 1.5}, "n must be"),
        ({"n": True}, "n must be"),
        ({"surprise": 1}, r"missing or unknown: \['surprise'\]"),
        ({"kind": "cow"}, "kind must be one of row, run, cuda_row, cuda_run; got 'cow'"),
    ]
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            rows.validate({**row, **change})
    del run["commit"]
    with pytest.raises(ValueError, match=r"\['commit'\]"):
        rows.validate(run)


def test_measured_rows_follow_the_schema():
    measured = harness.measure(Case("rank", 2, 40), (OURS, "argsort_scatter"), seconds=0.01)
    assert [row["provider"] for row in measured] == [OURS, "argsort_scatter"]
    for row in measured:
        facts = {"kind": "row", "run": "r", "isa": "avx2", "threads": 1, "clock_ghz": None}
        rows.validate({**facts, **row})
        assert 0 < row["ns_p10"] <= row["ns_p50"] <= row["ns_p90"]
    rows.validate(
        {"kind": "run", "run": "r", "date": "d", "selection": "quick", **machine.record(1, [0])}
    )


def test_files_survive_a_crash_in_the_middle_of_a_line(tmp_path):
    path = tmp_path / "deep" / "results.jsonl"
    row = _row(Case("rank", 1, 64))
    rows.append(path, [_run(), row])
    rows.append(path, [row])
    assert rows.read(path) == ([_run()], [row, row])
    text = path.read_text()
    path.write_text(text[:-20])
    assert rows.read(path) == ([_run()], [row])
    path.write_text(text[:-20] + "\n" + text)
    with pytest.raises(ValueError, match="line 3: not JSON"):
        rows.read(path)
    with pytest.raises(ValueError, match="ns_p50"):
        rows.append(path, [row, {**row, "ns_p50": None}])


# ------------------------------------------------------------------------------------------- report


def _results(selection, isas=("avx512",), providers=("argsort_scatter", "double_argsort")):
    found = []
    for isa in isas:
        for case in selection:
            slow = 2.0 if isa == "avx2" else 1.0
            memory = {"peak_bytes": 12 * case.elements, "output_bytes": 4 * case.elements}
            found.append(_row(case, OURS, slow, isa=isa, **memory))
            if case.op in ("rank", "rankreg_loss"):
                found.append(_row(case, OURS_NUMPY, slow, isa=isa))
            found += [_row(case, name, 20.0, isa=isa) for name in providers]
            if case.op == "training_step":
                found[-1]["provider"], found[-2]["provider"] = "plain_argsort", "no_rank_loss"
                found[-2]["ns_p50"] = 0.5 * case.elements
    return found


@pytest.fixture(scope="module")
def full_report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    isas = ("avx512", "avx2")
    runs = [_run(run=isa, isa=isa) for isa in isas]
    found = [{**row, "run": row["isa"]} for row in _results(cases.full(), isas)]
    rows.append(folder / "results.jsonl", [*runs, *found])
    report.write_report([folder], folder)
    return folder


def test_report_draws_every_picture_small(full_report):
    for name in plots.PICTURES:
        picture = (full_report / name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert 5_000 < len(picture) < 150_000, name
        assert f"]({name})" in (full_report / "report.md").read_text()


def test_report_answers_every_target_for_every_instruction_set(full_report):
    text = (full_report / "report.md").read_text()
    table = text[text.index("## Targets") : text.index("## avx512")]
    for target in cases.TARGETS:
        lines = [line for line in table.splitlines() if line.startswith(f"| {target.name} |")]
        assert lines, target.name
        assert not any("not measured" in line for line in lines)
    # 1 ns on avx512 and 2 ns on avx2 at 2 GHz, against 1.8 and 2.5; then against 0.1
    assert (
        "| rank, n <= 128 | 64x128 | ns/element | 1.8 / 2.5 | 1.00 met | 2.00 met | 2.00 / 4.00 |"
        in table
    )
    assert "| 1.00 **10x** | 2.00 **20x** |" in table
    assert "| 64x1024 | x forward | 1.15 | 1.00 met | 1.00 met |  |" in table
    assert "| scratch memory, rank, n = 1e6 | 1x1e6 | B/element | 16 | 8.00 met |" in table


def test_report_shows_losses_and_shares(tmp_path):
    lost, won = Case("rank", 64, 1024), Case("rank", 64, 128)
    training = Case("training_step", 1, 1024, values="mlp", positives=16)
    found = [
        _row(lost), _row(lost, "packed_sort", 0.5), _row(won), _row(won, "packed_sort", 3.0),
        _row(won, "torch.sort", 0.1, note="the sort alone, no ranks made"),
        _row(won, "torchsort", 0.1, gate="not compared"),
        _row(training, OURS, 2.0), _row(training, "no_rank_loss", 1.5, gate="not compared"),
        _row(training, "plain_argsort", 6.0),
    ]  # fmt: skip
    rows.append(tmp_path / "results.jsonl", [_run(), *found])
    report.write_report([tmp_path], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"- `{lost.name}`: packed_sort is 2.00x faster" in text
    assert text.count("x faster") == 1
    assert "**0.500x** | packed_sort |" in text
    assert "| 3.00x | packed_sort |" in text
    assert "disturbed" not in text
    assert "75.0 %" in text and "25.0 %" in text
    assert "| `rank` | 2 |  |  | 1.22x (0.500 - 3.00) | 1 |" in text  # sqrt(0.5 * 3)
    assert not (tmp_path / "out" / "growth.png").exists()


def test_report_of_all_cores_tells_the_gain_over_one(tmp_path):
    case = Case("rank", 64, 1024)
    found = [_row(case, ns_per_element=3.0), _row(case, threads=2, ns_per_element=1.6, run="r2")]
    runs = [_run(), _run(run="r2", threads=2, cores=[0, 1])]
    rows.append(tmp_path / "results.jsonl", [*runs, *found])
    report.write_report([tmp_path], tmp_path)
    text = (tmp_path / "report.md").read_text()
    one, both = text.index("## avx512, 1 thread\n"), text.index("## avx512, 2 threads\n")
    assert text.index("| 1.88x |") > both > one


def test_report_says_when_the_machine_was_busy(tmp_path):
    quiet, busy = Case("rank", 64, 1024), Case("rank", 64, 128)
    rows.append(tmp_path / "results.jsonl", [_run(), _row(quiet), _row(busy, cpu_share=0.6)])
    report.write_report([tmp_path], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "1 of 2 rows were disturbed" in text


def test_the_latest_of_repeated_rows_counts():
    case = Case("rank", 64, 128)
    results = report.Results([_run()], [_row(case), _row(case, ns_per_element=3.0)])
    assert len(results.rows) == 1
    assert report.per_element(results.get(case, "avx512", 1)) == 3.0


def test_report_without_rows_says_so(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "no results at" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- command line

TINY = ["--quick", "--match", "^rank/64x128/|^rankdata/"]


def _command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks", *map(str, arguments)],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
    )  # fmt: skip


def test_run_resume_and_report(tmp_path):
    out = tmp_path / "out"
    who = ["--provider", f"{OURS},argsort_scatter,bottleneck"]
    done = _command("run", *TINY, "--out", out, *who)
    assert done.returncode == 0, done.stderr
    path = out / "results.jsonl"
    runs, found = rows.read(path)
    assert len(runs) == 1
    assert runs[0]["isa"] == machine.isas()[-1]
    assert len({rows.key(row) for row in found}) == len(found) >= 3
    assert all(row["gate"].startswith("equal") for row in found)

    # An interruption: the last line is lost, and it alone is measured again.
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    setting = ["--isa", runs[0]["isa"], "--threads", "1"]
    done = _command("run", *TINY, "--out", out, "--resume", *setting, *who, **{cli.IN_WORKER: "1"})
    assert done.returncode == 0, done.stderr
    kept, again = path.read_text().splitlines(keepends=True), rows.read(path)[1]
    assert kept[: len(lines) - 1] == lines[:-1]
    assert [rows.key(row) for row in again] == [rows.key(row) for row in found]

    assert cli.main(["report", str(out)]) == 0
    assert "rank/64x128/float32/normal" in (out / "report.md").read_text()


def test_results_of_other_code_are_not_mixed_in(tmp_path):
    path = tmp_path / "results.jsonl"
    rows.append(path, [_run()])
    facts = {"commit": "d" * 40, "dirty": False, "cpu": "A processor"}
    with pytest.raises(ValueError, match=r"commit is .* use another --out"):
        cli._already(path, facts)
    rows.append(path, [_row(Case("rank", 1, 64))])
    done = cli._already(path, {**facts, "commit": "c" * 40})
    assert done == {("rank/1x64/float32/normal", OURS, "avx512", 1)}


def test_older_results_are_kept_under_another_name(tmp_path, monkeypatch):
    commands = []

    def process(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", process)
    path = tmp_path / "results.jsonl"
    rows.append(path, [_run()])
    arguments = ["run", *TINY, "--out", str(tmp_path), "--isa", machine.isas()[0]]
    assert cli.main([*arguments, "--threads", "1,2", "--resume"]) == 0
    assert path.exists()
    assert [command[-4:] for command in commands] == [
        ["--isa", machine.isas()[0], "--threads", threads] for threads in "12"
    ]
    assert cli.main(arguments) == 0
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("results.2") and rows.read(kept) == ([_run()], [])


def test_misspelt_arguments_are_refused_before_anything_runs(tmp_path, capsys):
    assert cli.main(["run", "--op", "rnak", "--out", str(tmp_path)]) == 2
    assert "no case has op ['rnak']" in capsys.readouterr().err
    assert cli.main(["run", "--isa", "mmx", "--out", str(tmp_path)]) == 2
    assert "'mmx'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_list(capsys):
    assert cli.main(["run", "--list", "--op", "rank", "--shape", "1x64"]) == 0
    assert capsys.readouterr().out == "rank/1x64/float32/normal\n"


# ------------------------------------------------------------------------------------------ compare


def test_ratio_is_that_of_paired_samples():
    ratio = compare.Ratio.of([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    assert (ratio.low, ratio.median, ratio.high) == (2.0, 2.0, 2.0)
    assert compare.geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        ((1.02, 1.10, 1.20), "slower"),
        ((0.98, 1.10, 1.20), "same"),  # not nine pairs in ten
        ((1.01, 1.04, 1.20), "same"),  # below the threshold
        ((0.80, 0.90, 0.99), "faster"),
        ((0.80, 0.90, 1.01), "same"),
    ],
)
def test_verdict(ratio, verdict):
    assert compare.Ratio(*ratio).verdict(1.05) == verdict


def test_printed_ratios_decide_the_status(capsys):
    class Options:
        threads, threshold = 1, 1.05

    case = Case("rank", 64, 128)
    fast, slow = [1e-6, 1.1e-6, 0.9e-6], [2e-6, 2.2e-6, 1.8e-6]
    assert compare.print_ratios(("x", "y"), "avx2", Options, {case: (fast, slow)}) == 1
    assert "| 1.00 | 2.00 | 2.000 | 2.000 - 2.000 | slower |" in capsys.readouterr().out
    assert compare.print_ratios(("x", "y"), "avx2", Options, {case: (slow, fast)}) == 0
    assert "geometric mean 0.500; 0 slower of 1" in capsys.readouterr().out


def test_compare_refuses_what_is_no_commit(capsys):
    assert cli.main(["compare", "no-such-commit", "."]) == 2
    assert "'no-such-commit' is not a commit" in capsys.readouterr().err


def test_compare_measures_the_packages_it_was_told_to(capsys, tmp_path, monkeypatch):
    """Two copies of this build stand in for two commits; the second is slowed down."""
    monkeypatch.setattr(compare, "CACHE", tmp_path)
    trees = {}
    for name in ("quick", "slow"):
        trees[name] = tmp_path / name
        package = trees[name] / "rankreg_ext"
        package.mkdir(parents=True)
        for item in (ROOT / "rankreg_ext").iterdir():
            if item.name != "__init__.py":
                (package / item.name).symlink_to(item)
        text = (ROOT / "rankreg_ext" / "__init__.py").read_text()
        if name == "slow":
            text += (
                "\nimport time as _time\n_rank = rank\n"
                "def rank(*a, **k):\n    _time.sleep(0.002)\n    return _rank(*a, **k)\n"
            )
        (package / "__init__.py").write_text(text)
    monkeypatch.setattr(compare, "tree_of", trees.__getitem__)
    options = ["--quick", "--op", "rank", "--shape", "64x128", "--processes", "1", "--rounds", "4"]
    assert cli.main(["compare", "quick", "slow", *options]) == 1
    assert "slower |" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quick", "slow"]


def test_json_lines_hold_no_infinity():
    assert math.isinf(json.loads("Infinity"))  # what a reader in another language would refuse
    with pytest.raises(ValueError, match="not JSON compliant"):
        rows.append(Path(os.devnull), [_row(Case("rank", 1, 64), ns_p50=math.inf)])
