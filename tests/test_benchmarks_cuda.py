"""The benchmarks of a CUDA device, without one: a clock of our own, and results made up."""

import os
import stat
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from benchmarks import __main__ as cli
from benchmarks import cases, cuda, harness, machine, ops, providers, report, report_cuda, rows
from benchmarks.cases import Case
from benchmarks.providers import (
    COMPILED,
    CUDA_LIMIT,
    OURS,
    OURS_TRITON,
    PROVIDERS,
    Provider,
    is_ours,
    providers_of,
)
from rankreg_ext import _backend

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"


class Clock:
    """A device that is this process: work is done when it is enqueued, and a graph is a list."""

    def __init__(self):
        self.log = []
        self.wait_in = ()  # names of functions that would make the host wait

    def scope(self):
        return nullcontext()

    def flush(self):
        self.log.append("flush")

    def busy(self):
        self.log.append("busy")

    def wait(self):
        self.log.append("wait")

    def start(self):
        self.log.append("start")
        self.begin = time.perf_counter()

    def stop(self):
        self.log.append("stop")
        return time.perf_counter() - self.begin

    def waits(self, call):
        call()
        return "".join(self.wait_in)

    def capture(self, work):
        outputs = work()
        tensors = tree_leaves(outputs)
        fresh = [tensor.clone() for tensor in tensors]
        for tensor in tensors:  # as nothing has run yet
            tensor.fill_(-1)

        def replay():
            self.log.append("replay")
            for tensor, value in zip(tensors, fresh, strict=True):
                tensor.copy_(value)

        return replay, outputs

    def peak_memory(self, call):
        call()
        return 1000


@pytest.fixture
def device():
    return cuda.Cuda(Clock(), place="cpu", l2_bytes=10**6)


# ------------------------------------------------------------------------------------------- cases


def test_every_op_is_declared_for_the_device():
    used = {case.op for select in cases.SELECTIONS["cuda"].values() for case in select()}
    assert used == set(ops.OPS) - {"rankdata", "training_step"}
    quick, standard, full = (set(select()) for select in cases.SELECTIONS["cuda"].values())
    assert quick < standard < full
    for case in full:
        found = providers_of(case, (), "cuda")
        assert found[0].name == OURS
        assert len(found) > 1, case.name


def test_numpy_stays_on_the_cpu_and_compilation_off_it():
    case = Case("rank", 64, 1024)
    here = {p.name for p in providers_of(case)}
    there = {p.name for p in providers_of(case, (), "cuda")}
    assert here - there >= {"numpy.argsort", "packed_sort", "scipy", "rankreg_ext.arrays"}
    assert there - here == {"double_argsort+compile", "argsort_scatter+compile"}
    names = [p.name for p in providers_of(Case("rankreg_loss", 1, 99, positives=3), (), "cuda")]
    assert names == [OURS, "searchsorted", "double_argsort", "argsort_scatter"]
    limited = Provider("p", None, limit=10)
    assert limited.takes(Case("rank", 1, CUDA_LIMIT), "cuda")
    assert not limited.takes(Case("rank", 1, CUDA_LIMIT), "cpu")
    assert not limited.takes(Case("rank", 2, CUDA_LIMIT), "cuda")


def test_targets_speak_of_cases_that_are_measured():
    quick, full = (set(cases.SELECTIONS["cuda"][name]()) for name in ("quick", "full"))
    names = [target.name for target in cases.CUDA_TARGETS]
    assert len(set(names)) == len(names)
    for target in cases.CUDA_TARGETS:
        assert target.unit in cases.CUDA_UNITS
        assert target.cases and set(target.cases) <= full, target.name
        assert set(target.cases) & quick, target.name
        if target.unit == "of forward":
            assert {Case("rank", c.batch, c.n, c.dtype) for c in target.cases} <= quick


def test_targets_name_every_figure_to_reach():
    found = {}
    for target in cases.CUDA_TARGETS:
        found.setdefault(target.unit, set()).add((target.limit, target.eager))
    assert found == {
        "of copy": {(0.7, False), (0.8, False), (0.5, False)},
        "Gelem/s": {(40, False), (30, False)},
        "us": {(60, False), (10, False), (25, True), (6, False)},
        "of forward": {(0.8, False)},
    }
    at_most, at_least = (cases.CudaTarget("t", (), unit, 10) for unit in ("us", "Gelem/s"))
    assert [at_most.met(v) for v in (9, 10, 11)] == [True, True, False]
    assert [at_least.met(v) for v in (9, 10, 11)] == [False, True, True]


def test_floors_of_the_targets_cases():
    """Bytes per score: what DESIGN's shares of a copy are shares of."""
    per_score = {
        Case("rank", 65_536, 128): 8,
        Case("rank", 65_536, 128, "bfloat16"): 6,
        Case("blackbox_backward", 4096, 4096): 16,
        Case("rankreg_loss", 1, cases.HUGE, positives=8): 5,
        Case("rankreg_loss_backward", 1, cases.HUGE, positives=8): 9,
        Case("positive_ranks", 1, cases.HUGE, positives=8): 9,
    }
    for case, floor in per_score.items():
        assert ops.floor_bytes(case) == floor * case.elements


# ----------------------------------------------------------------------------------------- harness


@pytest.mark.parametrize(
    "case",
    [
        Case("rank", 3, 40),
        Case("blackbox_backward", 3, 40),
        Case("blackbox_step", 2, 50, "bfloat16"),
        *(
            Case(op, 2, 64, "float32", "separated", 5)
            for op in ("positive_ranks", "positive_ranks_backward", "rankreg_loss")
        ),
        *(Case(f"rankreg_loss{s}", 1, 256, positives=8) for s in ("_backward", "_step")),
    ],
    ids=lambda case: case.name,
)
def test_providers_of_the_device_pass_their_gates(case, device, monkeypatch):
    monkeypatch.setattr("benchmarks.providers._compiled", lambda function, fullgraph: function)
    runners = harness.prepare(case, device=device)
    names = [p.name for p in providers_of(case, (), "cuda")]
    assert [(r.provider.name, r.mode) for r in runners] == [
        (name, mode) for name in names for mode in ("call", "graph")
    ]
    assert all(runner.gate != "not compared" for runner in runners)


def test_kernels_in_triton_are_measured_beside_the_others(device, monkeypatch):
    """Whatever the op: chosen for the call and for what prepares it, and never a competitor."""
    monkeypatch.setitem(_backend._reasons, "triton", None)
    chosen = []
    monkeypatch.setattr(
        providers, "use_backend", lambda name: (chosen.append(name), nullcontext())[1]
    )
    for name in set(ops.OPS) - {"rankdata", "training_step"}:
        case = Case(name, 1, 64, positives=5)
        found = providers_of(case, (), "cuda")
        assert OURS_TRITON in [p.name for p in found]
        assert name.endswith("_step") == (OURS_TRITON + COMPILED in [p.name for p in found])
        assert OURS_TRITON not in [p.name for p in providers_of(case)]
    chosen.clear()
    (call, _) = harness.prepare(Case("blackbox_backward", 1, 64), (OURS_TRITON,), device=device)
    assert call.gate == "equal"
    assert set(chosen) == {"triton"}
    assert all(map(is_ours, (OURS, OURS_TRITON, OURS + COMPILED, OURS_TRITON + COMPILED)))


@pytest.mark.slow
def test_baselines_and_ours_can_be_compiled(device):
    argsorts = ("double_argsort+compile", "argsort_scatter+compile")
    for case, names in (
        (Case("rank", 3, 40), argsorts),
        (Case("blackbox_backward", 3, 300), argsorts),
        (Case("blackbox_step", 3, 40), (OURS + COMPILED,)),
        (Case("rankreg_loss_step", 2, 40, positives=3), (OURS + COMPILED,)),
    ):
        for name in names:
            call, _ = harness.prepare(case, (name,), device=device)
            assert call.gate == "equal"


def test_a_wrong_replay_is_never_timed(device, monkeypatch):
    monkeypatch.setattr(device.clock, "capture", lambda work: (lambda: None, [-x for x in work()]))
    with pytest.raises(harness.GateError):
        harness.prepare(Case("rank", 2, 20), (OURS,), device=device)


def test_what_makes_the_host_wait_is_not_captured(device):
    device.clock.wait_in = ("called a synchronizing CUDA operation",)
    (call,) = harness.measure(Case("rank", 2, 20), (OURS,), 0.01, device)
    assert call["mode"] == "call"
    assert call["why_no_graph"] == "called a synchronizing CUDA operation"


def test_a_competitor_that_fails_is_left_out_and_ours_is_not(device, monkeypatch, capsys):
    def fail(x):
        raise RuntimeError("no compiler\nat all")

    def declare(name):
        good = Provider("good", lambda x: ops.OPS["rank"].answer(Case("rank", 2, 20), x).value)
        monkeypatch.setitem(PROVIDERS, "rank", lambda: [Provider(name, fail), good])

    declare("bad")
    found = harness.prepare(Case("rank", 2, 20), device=device)
    assert {runner.provider.name for runner in found} == {"good"}
    assert "bad on rank/2x20/float32/normal fails: RuntimeError: no compiler" in (
        capsys.readouterr().out
    )
    declare(OURS)
    with pytest.raises(RuntimeError, match="no compiler"):
        harness.prepare(Case("rank", 2, 20), device=device)


def test_inputs_exceed_the_cache_twice(device):
    l2 = device.l2_bytes
    assert device.copies_of(4 * l2) == 2
    assert device.copies_of(l2 // 5) == 10
    assert device.copies_of(l2 // 5 - 1) == 11
    assert device.copies_of(64) == cuda.MOST_COPIES
    inputs = device.inputs(Case("rank", 1, l2 // 20))  # a fifth of the cache each
    assert len(inputs) == 10
    assert len({x[0, :9].numpy().tobytes() for (x,) in inputs}) == 10


def test_order_of_a_sample(device):
    calls, graph = harness.prepare(Case("rank", 1, 64), (OURS,), device=device)
    for runner in (calls, graph):
        assert runner.calls == len(runner.arguments) == cuda.MOST_COPIES
    device.clock.log.clear()
    seconds = calls.sample()
    assert device.clock.log == ["flush", "wait", "start", "stop"]  # begins with an idle device
    assert 0 < calls.host[-1] <= seconds
    device.clock.log.clear()
    graph.sample()
    assert device.clock.log == ["flush", "busy", "start", "replay", "stop"]  # launched meanwhile


def test_samples_of_the_warm_up_do_not_count(device):
    (runner, _) = harness.prepare(Case("rank", 1, 64), (OURS,), device=device)
    harness.time_rounds([runner], 0.05)
    assert len(runner.host) == len(runner.samples) >= harness.FEWEST_SAMPLES


def test_measured_rows_follow_the_schema(device):
    found = harness.measure(Case("rank", 2, 40), (OURS, "argsort_scatter"), 0.01, device)
    assert [(row["provider"], row["mode"]) for row in found] == [
        (name, mode) for name in (OURS, "argsort_scatter") for mode in ("call", "graph")
    ]
    for row in found:
        rows.validate({"kind": "cuda_row", "run": "r", "device": "D", **row})
        assert (row["peak_bytes"], row["output_bytes"]) == (
            (1000, 320) if row["mode"] == "call" else (None, None)
        )


def test_copy_bandwidth_counts_both_directions():
    class Steady(Clock):
        def stop(self):
            return 0.5

    assert cuda.copy_bandwidth(Steady(), "cpu", 10**6) == pytest.approx(2 * 10**6 / 0.5 / 1e9)


def test_record_follows_the_schema(device, monkeypatch):
    found = {
        "device": "D", "capability": "9.0", "multiprocessors": 132, "l2_bytes": 2**25,
        "memory_gib": 80.0, "uuid": "GPU-1",
    }  # fmt: skip
    monkeypatch.setattr(cuda, "properties", lambda: dict(found))
    monkeypatch.setattr(cuda, "copy_bandwidth", lambda clock, place: 3000.0)
    reading = dict.fromkeys(cuda.SMI, "1")
    for answer, driver in ((reading, "1"), ({}, None)):
        monkeypatch.setattr(cuda, "smi", lambda uuid, answer=answer: dict(answer))
        facts = {"kind": "cuda_run", "run": "r", "date": "d", "selection": "quick"}
        record = rows.validate({**facts, **device.record()})
        assert record["driver"] == driver


def test_nvidia_smi_that_is_missing_or_broken_says_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cuda.smi("GPU-1") == {}
    for text, expected in (("exit 9", {}), (f"echo {', '.join(cuda.SMI)}", cuda.SMI)):
        fake = tmp_path / "nvidia-smi"
        fake.write_text(f"#!/bin/sh\n{text}\n")
        fake.chmod(0o755)
        assert tuple(cuda.smi("GPU-1").values()) == tuple(expected)


def test_commit_of_a_copy_without_history(monkeypatch):
    monkeypatch.setattr(machine, "_git", lambda *command: None)
    monkeypatch.setenv("RANKREG_COMMIT", "abc")
    assert machine.commit() == ("abc", False)


# ------------------------------------------------------------------------------------ command line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_run_without_a_device_says_so(tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    assert cli.main(["run", "--device", "cuda", "--quick", *out]) == 2
    assert "finds no CUDA device" in capsys.readouterr().err
    assert cli.main(["profile", "--quick"]) == 2
    assert not list(tmp_path.iterdir())


def test_list_is_that_of_the_device(capsys):
    assert cli.main(["run", "--device", "cuda", "--list", "--shape", "65536x128"]) == 0
    assert "rank/65536x128/float32/bfloat16" not in capsys.readouterr().out
    assert cli.main(["run", "--list", "--shape", "65536x128"]) == 2


def _run_on(device, monkeypatch, *arguments):
    given = ("kind", "run", "date", "selection")
    facts = {key: value for key, value in _run().items() if key not in given}
    monkeypatch.setattr(cuda, "usable", lambda: None)
    monkeypatch.setattr(cuda, "Cuda", lambda: device)
    monkeypatch.setattr(device, "record", lambda: facts)
    return cli.main(["run", "--device", "cuda", *arguments])


TINY = ["--match", "^(blackbox_step/1x256|rankreg_loss_step/1x256)/", "--quick"]


def test_run_resume_and_report(device, monkeypatch, tmp_path, capsys):
    out = ["--out", str(tmp_path), "--provider", f"{OURS},argsort_scatter"]
    assert _run_on(device, monkeypatch, *TINY, *out) == 0
    runs, found = rows.read(tmp_path / "results.jsonl")
    assert len(runs) == 1 and len(found) == 2 * 2 * 2
    assert len({rows.key(row) for row in found}) == len(found)
    assert _run_on(device, monkeypatch, *TINY, *out, "--resume") == 0
    assert rows.read(tmp_path / "results.jsonl") == (runs, found)
    assert cli.main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert "| one call, n = 256, loss forward and backward, eager | 1x256 P=8 | us |" in text


def test_run_ends_when_its_time_is_over(device, monkeypatch, tmp_path, capsys):
    arguments = [*TINY, "--out", str(tmp_path), "--seconds", "-1"]
    assert _run_on(device, monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    assert "not measured, since -1 s were over: rankreg_loss_step/1x256/float32/n" in said
    assert not (tmp_path / "results.jsonl").exists()


def test_run_goes_on_after_a_case_that_fails(device, monkeypatch, tmp_path, capsys):
    measure = harness.measure

    def fail_once(case, *args, **kwargs):
        if case.op == "rankreg_loss_step":
            raise RuntimeError("an illegal memory access was encountered")
        return measure(case, *args, **kwargs)

    monkeypatch.setattr(harness, "measure", fail_once)
    arguments = [*TINY, "--out", str(tmp_path), "--provider", OURS]
    assert _run_on(device, monkeypatch, *arguments) == 1
    assert "\nFAILED: an illegal memory access" in capsys.readouterr().out
    assert {row["op"] for row in rows.read(tmp_path / "results.jsonl")[1]} == {"blackbox_step"}


# ------------------------------------------------------------------------------------------ report


def _run(**facts):
    example = {
        "kind": "cuda_run", "run": "r1", "date": "2026-01-01T00:00:00+00:00", "selection": "quick",
        "device": "D", "capability": "9.0", "multiprocessors": 132, "l2_bytes": 50 * 2**20,
        "memory_gib": 79.2, "driver": "580", "cuda": "13.0", "reading": {"clocks.sm": "345 MHz"},
        "copy_gb_per_s": 2000.0, "backend": "auto", "cpu": "A processor", "system": "Linux",
        "python": "3.12.0", "libraries": {"torch": "2.13.0", "triton": None}, "rankreg_ext": "0.1",
        "compiler": "nvcc", "flags": "-O3", "commit": "c" * 40, "dirty": False,
    }  # fmt: skip
    return {**example, **facts}


def _row(case, provider=OURS, us=10.0, mode="graph", **facts):
    ns = 1e3 * us
    row = {
        "kind": "cuda_row", "run": "r1", "device": "D", "mode": mode, "case": case.name,
        "op": case.op, "batch": case.batch, "n": case.n, "dtype": case.dtype,
        "values": case.values, "positives": case.positives, "provider": provider,
        "ns_p10": 0.9 * ns, "ns_p50": ns, "ns_p90": 1.2 * ns, "samples": 40,
        "calls_per_sample": 32, "host_ns_p50": ns / 2, "why_no_graph": "", "inputs_rotated": 32,
        "floor_bytes": ops.floor_bytes(case), "peak_bytes": None, "output_bytes": None,
        "gate": "equal", "note": "",
    }  # fmt: skip
    return {**row, **facts}


def _target(unit, **facts):
    return next(
        target
        for target in cases.CUDA_TARGETS
        if target.unit == unit and all(getattr(target, k) == v for k, v in facts.items())
    )


def _measured(target, *found):
    results = report.Results([_run()], found)
    return [value for _, value, _ in report_cuda.measured(target, results, "D")]


def test_what_targets_measure():
    case = Case("rank", 16_384, 1024)
    assert _measured(_target("Gelem/s", limit=40), _row(case, us=419.4304)) == [pytest.approx(40)]
    # 8 bytes a score at 2000 GB/s would take 67.1 us
    small = Case("rank", 65_536, 128)
    copy = 8 * small.elements / 2000 / 1e3
    assert _measured(_target("of copy", limit=0.7), _row(small, us=copy / 0.7)) == [
        pytest.approx(0.7)
    ]
    backward = Case("blackbox_backward", 16_384, 1024)
    found = [_row(backward, us=500.0), _row(case, us=400.0), _row(backward, us=1.0, mode="call")]
    assert _measured(_target("of forward"), *found) == [pytest.approx(0.8)]
    assert _measured(_target("of forward"), *found[:1]) == []


def test_targets_take_the_graph_or_the_eager_calls_as_they_say():
    case = Case("rankreg_loss_step", 1, 256, positives=8)
    eager, graph = _row(case, us=20.0, mode="call"), _row(case, us=5.0)
    assert _measured(_target("us", eager=True), eager, graph) == [20.0]
    assert _measured(_target("us", limit=6), eager, graph) == [5.0]
    assert _measured(_target("us", limit=6), eager) == [20.0]  # the best that is known
    assert _measured(_target("us", eager=True), graph) == []


@pytest.fixture(scope="module")
def full_report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    found, others = [], ("argsort_scatter", "double_argsort")
    for case in cases.cuda_full():
        for mode in ("call", "graph"):
            found.append(_row(case, us=10.0, mode=mode, peak_bytes=12 * case.elements,
                              output_bytes=4 * case.elements))  # fmt: skip
            found += [_row(case, name, 20.0, mode) for name in others]
        why = "called a synchronizing CUDA operation"
        if case.positives:
            found.append(_row(case, "searchsorted", 30.0, "call", why_no_graph=why))
    rows.append(folder / "results.jsonl", [_run(), *found])
    report.write_report([folder], folder)
    return (folder / "report.md").read_text()


def test_report_answers_every_target(full_report):
    table = full_report[full_report.index("### Targets") : full_report.index("### Device time")]
    for target in cases.CUDA_TARGETS:
        lines = [line for line in table.splitlines() if line.startswith(f"| {target.name} |")]
        assert len(lines) == len(target.cases), target.name
        assert not any("not measured" in line for line in lines)
    # 10 us throughout: 1678 scores per ns, and 8 bytes each of 2000 GB/s
    assert "n = 1024, large batch | 16384x1024 | Gelem/s | >= 40 | 1,678 | met | 671% |" in table
    assert "| rank, one list of 1e6 | 1x1e6 | us | <= 60 | 10.00 | met | 40% | graph |" in table
    assert "eager | 1x256 P=8 | us | <= 25 | 10.00 | met | 0% | call |" in table
    assert "in a graph | 1x256 P=8 | us | <= 6 | 10.00 | **missed** | 0% | graph |" in table


def test_report_tells_device_and_eager_time_apart(full_report):
    assert "| 2.00x | 2.00x |  | 3.00x* |" in full_report  # no graph of searchsorted
    assert "| 10.00 | 5.00 | 8.00 | 2.00x | 2.00x |" in full_report  # host, scratch
    assert "- searchsorted, rankreg_loss: called a synchronizing CUDA operation" in full_report
    assert "copy within device memory reads and writes 2,000 GB/s" in full_report
    assert "nvidia-smi at the start: clocks.sm 345 MHz" in full_report


def test_report_shows_what_was_lost_and_what_was_not_measured(tmp_path):
    case = Case("rank", 1, 256)
    compiled = "argsort_scatter+compile"
    found = [_row(case), _row(case, "double_argsort", 20.0), _row(case, compiled, 5.0)]
    rows.append(tmp_path / "results.jsonl", [_run(), *found])
    report.write_report([tmp_path], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert f"| 2.00x |  | **0.500x** |  | **0.500x** | {compiled} |" in text
    assert "| rank, one list of 1e6 | not measured | us | <= 60 |" in text
    assert "| `rank` | 2.00x (2.00 - 2.00) |" in text


def test_report_sets_both_forms_of_our_kernels_side_by_side(tmp_path, full_report):
    assert "### CUDA C++ and Triton" not in full_report
    step, rank = Case("blackbox_step", 1, 256), Case("rank", 64, 128)
    found = [
        _row(step, us=4.0), _row(step, OURS_TRITON, 5.0),
        _row(step, us=20.0, mode="call"), _row(step, OURS_TRITON, 60.0, "call"),
        _row(step, OURS + COMPILED, 30.0, "call"), _row(step, OURS_TRITON + COMPILED, 25.0, "call"),
        _row(rank, us=4.0), _row(rank, OURS_TRITON, 3.0),
    ]  # fmt: skip
    rows.append(tmp_path / "results.jsonl", [_run(), *found])
    report.write_report([tmp_path], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert (
        f"| `{step.name}` | 4.00 | 5.00 | 1.25x | 20.00 | 60.00 | 10.00 | 30.00 | 30.00 | 25.00 |"
        in text
    )
    assert f"| `{rank.name}` | 4.00 | 3.00 | **0.750x** |  |  |  |  |  |  |" in text


def test_results_of_both_devices_are_not_mixed(tmp_path, capsys):
    cpu = {"kind": "row", "run": "r", "isa": "avx2", "threads": 1, "cpu_share": 1.0}
    row = _row(Case("rank", 1, 256))
    cpu = {k: cpu.get(k, row.get(k)) for k in rows.ROW}
    rows.append(tmp_path / "results.jsonl", [_run(), row, cpu])
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "of the CPU and of CUDA are reported apart" in capsys.readouterr().err
    with pytest.raises(ValueError, match="device is"):
        cli._already(tmp_path / "results.jsonl", {"commit": "c" * 40, "dirty": False,
                                                  "cpu": "A processor"})  # fmt: skip


# ------------------------------------------------------------------------------------ gpu_check.sh

# Stands in for the interpreter: answers as one on a machine with a device would.
FAKE_PYTHON = """#!/bin/bash
echo "$*" | head -n 1 >>"$FAKE_LOG"
case "$*" in
  *is_available*) echo 9.0 ;;
  *'usable("triton")'*) echo "${FAKE_NO_TRITON:-}" ;;
  *usable*) [[ -z ${FAKE_UNUSABLE:-} ]] || { echo "$FAKE_UNUSABLE" >&2; exit 1; } ;;
  *"import xdist"*) exit 1 ;;
  *"setup.py"*) exit 1 ;;
  *"-k stream or"*) echo "1 failed, 2 passed in 3s"; exit 1 ;;
  *"-m pytest"*) echo "5 passed in 1s" ;;
  *"benchmarks run"*) [[ -z ${FAKE_SLOW:-} ]] || sleep 60 ;;
  *"benchmarks report"*)
    printf '### Targets\\n| x | met |\\n### Device time, by op\\n' >"$OUT/report.md" ;;
esac
"""


@pytest.fixture
def check(tmp_path):
    """Runs the script with a stand-in for the interpreter and no tool of the CUDA toolkit."""
    fake = tmp_path / "python"
    fake.write_text(FAKE_PYTHON)
    fake.chmod(fake.stat().st_mode | stat.S_IEXEC)
    log = tmp_path / "calls"

    def run(*arguments, **variables):
        log.write_text("")
        environment = {k: v for k, v in os.environ.items() if k not in ("OUT", "CUDA_HOME")}
        environment |= {"PYTHON": str(fake), "FAKE_LOG": str(log), "PATH": "/usr/bin:/bin"}
        environment |= {"CUDA_HOME": str(tmp_path), **variables}
        done = subprocess.run(
            [SCRIPT, *map(str, arguments)], env=environment, capture_output=True, text=True
        )
        done.calls = log.read_text()
        done.table = dict(
            line.split(maxsplit=1) for line in done.stdout.rpartition("\n\n")[2].splitlines()
        )
        return done

    return run


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_check_without_a_device_says_so_and_fails(tmp_path):
    done = subprocess.run(
        [SCRIPT, "--out", tmp_path], env={**os.environ, "PYTHON": sys.executable},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    message = (
        f"gpu_check: torch {torch.__version__} of {sys.executable} finds no CUDA device; "
        "nothing was checked\n"
    )
    assert done.stderr == message
    assert (tmp_path / "summary.txt").read_text() == message


def test_check_refuses_an_unknown_stage(check, tmp_path):
    done = check("tests", "nope", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "there is no stage nope; there are environment build tests" in done.stderr
    assert not (tmp_path / "out").exists()
    assert done.calls == ""


def test_check_goes_on_after_a_failure_and_reports_it_last(check, tmp_path):
    done = check("--out", tmp_path / "out")
    assert done.returncode == 1, done.stdout
    words = {name: line.split()[0] for name, line in done.table.items()}
    assert words == {
        "stage": "result", "environment": "ok", "build": "ok", "tests": "ok", "streams": "FAILED",
        "triton": "FAILED", "bench": "ok", "memcheck": "unavailable", "racecheck": "unavailable", "ncu": "unavailable",
        "report": "ok",
    }  # fmt: skip
    assert done.table["tests"].endswith("5 passed in 1s")
    assert done.table["streams"].endswith("1 failed, 2 passed in 3s")
    assert done.table["triton"].endswith("5 passed in 1s; 1 failed, 2 passed in 3s")
    assert done.table["report"].rstrip().endswith("1 met, 0 missed")
    assert done.table["build"].rstrip().endswith("was usable as it was")
    assert "setup.py" not in done.calls
    assert "run --device cuda --seconds" in done.calls
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert done.stdout.endswith(summary)
    assert "5 passed" in (tmp_path / "out" / "gpu_check.log").read_text()


def test_check_says_why_triton_was_not_tested(check, tmp_path):
    done = check("triton", "--out", tmp_path / "out", FAKE_NO_TRITON="there is no C compiler")
    assert done.returncode == 0
    assert done.table["triton"].startswith("unavailable")
    assert done.table["triton"].endswith("there is no C compiler")


def test_check_runs_single_stages(check, tmp_path):
    done = check("report", "tests", OUT=str(tmp_path / "elsewhere"))
    assert done.returncode == 0
    assert list(done.table) == ["stage", "report", "tests"]
    assert "benchmarks run" not in done.calls
    assert (tmp_path / "elsewhere" / "summary.txt").exists()


def test_check_builds_what_is_missing_and_measures_nothing_else(check, tmp_path):
    why = "cuda: not built: nvcc was not found"
    done = check("build", "tests", "bench", "report", "--out", tmp_path, FAKE_UNUSABLE=why)
    assert done.returncode == 1
    assert "setup.py --quiet build_ext --inplace" in done.calls
    assert done.table["build"].startswith("FAILED (1)")
    for stage in ("tests", "bench"):
        assert done.table[stage].startswith("NOT RUN")
        assert done.table[stage].endswith(f"no usable kernels: {why}")
    assert done.table["report"].startswith("ok")
    assert "-m pytest" not in done.calls and "benchmarks run" not in done.calls


def test_check_stops_a_stage_that_takes_too_long(check, tmp_path):
    began = time.monotonic()
    slow = {"FAKE_SLOW": "1", "GPU_CHECK_SECONDS": "35"}
    done = check("bench", "tests", "report", "--out", tmp_path, **slow)
    assert time.monotonic() - began < 30
    assert done.returncode == 1
    assert done.table["bench"].startswith("TIMED OUT")
    assert done.table["tests"].endswith("no time was left")
    assert done.table["report"].startswith("ok")
