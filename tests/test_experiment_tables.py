"""Tables and pictures of finished runs, against sums done by hand; published figures; damage."""

import json
import re
import struct
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.experiments import finished, published, summary, tables  # noqa: E402
from benchmarks.experiments.checkpoint import write_json  # noqa: E402
from benchmarks.experiments.config import CRITICAL, configure  # noqa: E402
from benchmarks.experiments.finished import RunError  # noqa: E402

CONFIG = asdict(configure("cifar10-100", "bce", "base", preset="cpu"))
# 100 positives at five heights, so that 90, 92, 95, 98 and 100 % of them are at or above these.
POSITIVES = [8.0] * 90 + [6.0] * 2 + [4.0] * 3 + [2.0] * 3 + [0.0] * 2
TARGETS = torch.tensor([True] * 100 + [False] * 10)


def logits(negatives, shift=0.0):
    """Scores of the positives above and of 10 negatives; the shift is another for every item."""
    scores = torch.tensor(POSITIVES + negatives)
    return scores + shift * torch.arange(len(scores)) / 128


# None of the negatives is found with 90 % of the positives, 1 with 92, 2 with 95, 4 with 98.
GOOD = [7.0, 5.0, 3.0, 3.0, 1.0, -1.0, -1.0, -1.0, -1.0, -1.0]
# 0, 2, 3, 6.
WORSE = [7.0, 7.0, 5.0, 3.0, 3.0, 3.0, 1.0, -1.0, -1.0, -1.0]


def write_run(folder, loss="bce", method="base", seed=1, **changes):
    """A run's two files; its name."""
    test = dict(zip(finished.BINARY, (60.0, 50.0, 40.0, 30.0, 80.0), strict=True))
    test |= changes.pop("test", {})
    scores = changes.pop("scores", logits(GOOD))
    targets = changes.pop("targets", TARGETS)
    config = {**CONFIG, "seed": seed, **changes.pop("config", {})}
    ranks = {"best": 0.0, "q25": 0.1, "median": 0.2, "q75": 0.3, "worst": 0.9}
    run = {
        "format": 1,
        "setting": "cifar10-100",
        "loss": loss,
        "method": method,
        "seed": seed,
        "config": config,
        "fingerprint": "0",
        "environment": {},
        "epochs": [{"epoch": k, "validation": test, "ranks": ranks} for k in (1, 2, 3)],
        "best_epoch": 2,
        "validation": test,
        "test": test,
        "test_last": test,
        "seconds": 1.0,
        **changes,
    }
    name = f"{run['setting']}-{loss}-{method}-{seed}"
    (folder / f"{name}.json").write_text(json.dumps(run))
    both = {"test": scores, "validation": scores}
    both |= {"test_targets": targets, "validation_targets": targets}
    torch.save(both, folder / f"{name}.logits.pt")
    return name


def write_long_tailed(folder, method, scores, **changes):
    test = {"Error@80": 30.0, "Error@90": 40.0, "accuracy": 70.0}
    targets = torch.tensor([0, 0, 9, 9])
    changes |= {"setting": "lt-cifar10-100", "scores": scores, "targets": targets}
    return write_run(folder, "ce", method, test=test, validation=test, **changes)


def parsed(text):
    """The tables of a text: the rows, each as a dict of the last cell under each head."""
    found, head = [], None
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            head = None
        elif head is None:
            head = cells
            found.append([])
        elif not set(line) <= set("|-: "):
            # What stands beside a metric is its published figure.
            names = [f"{head[k - 1]} publ." if h == "publ." else h for k, h in enumerate(head)]
            found[-1].append(dict(zip(names, cells, strict=True)))
    return found


def rows(table, **where):
    return [row for row in table if all(row[key] == value for key, value in where.items())]


# ---------------------------------------------------------------------------------------- published


@pytest.mark.parametrize(
    "setting, other, expected",
    [
        ("cifar10-100", "alm", {"FPR@98": -6.01, "FPR@95": -9.69, "FPR@92": -2.84}),
        ("cifar10-100", "base", {"FPR@98": -13.14, "FPR@95": -15.69, "FPR@92": -8.46}),
        ("melanoma-170", "alm", {"FPR@98": 1.60, "FPR@95": -2.99, "FPR@92": -3.37}),
        ("melanoma-170", "alm", {"FPR@90": -3.67, "AUC": None}),
        ("lt-cifar10-200", "alm", {"Error@80": 0.6, "Error@90": -2.1, "accuracy": -0.1}),
    ],
)
def test_published_means_are_those_of_the_slides(setting, other, expected):
    for metric, value in expected.items():
        found = published.mean_difference(setting, metric, "rankreg", other)
        assert found == (None if value is None else pytest.approx(value, abs=0.006))


def test_published_figures():
    assert published.figure("cifar10-100", "ldam", "rankreg", "FPR@98") == 42.8
    assert published.figure("melanoma-170", "ldam", "base", "AUC") is None
    for missing in (
        ("cifar10-200", "bce", "base", "AUC"),
        ("cifar10-100", "bce", "sampler", "AUC"),
    ):
        assert published.figure(*missing) is None
    for setting, losses in published.FIGURES.items():
        for row in losses.values():
            assert set(row) <= set(finished.metrics_of(setting))
            assert all(len(values) == 3 for values in row.values())
    # What is called suspect is what it is suspected to be a copy of.
    assert len(published.SUSPECT) == 8
    for _, loss, method, metric in published.SUSPECT:
        pair = [published.figure(s, loss, method, metric) for s in ("cifar10-100", "melanoma-170")]
        assert pair[0] == pair[1] is not None


# ---------------------------------------------------------------------------- means and differences


def test_means_stand_beside_the_published_figures(tmp_path):
    write_run(tmp_path, seed=1, test={"FPR@98": 60.0})
    write_run(tmp_path, seed=2, test={"FPR@98": 64.0})
    write_run(tmp_path, "made-up", "sampler")
    means = parsed(tables.table(finished.load(tmp_path)))[0]
    (row,) = rows(means, loss="BCE", method="base loss", seeds="2")
    assert row["FPR@98"] == "62.0 ± 2.8"  # the deviations are 2, and 2 ** 2 + 2 ** 2 = 8
    assert row["FPR@98 publ."] == "56.0" and row["AUC publ."] == "91.2"
    assert "FPR@90 publ." not in row
    (row,) = rows(means, loss="made-up", method="+ sampler", seeds="1")
    assert row["FPR@98"] == "60.0" and row["FPR@98 publ."] == ""


def test_differences_are_over_the_common_seeds(tmp_path):
    for seed, fpr, auc in ((1, 90.0, 50.0), (2, 60.0, 80.0), (3, 62.0, 81.0)):
        write_run(tmp_path, "bce", "base", seed, test={"FPR@98": fpr, "AUC": auc})
    for seed, fpr, auc in ((2, 56.0, 81.0), (3, 60.0, 80.0), (4, 10.0, 99.0)):
        write_run(tmp_path, "bce", "rankreg", seed, test={"FPR@98": fpr, "AUC": auc})
    differences = parsed(tables.table(finished.load(tmp_path)))[1]
    (row,) = differences
    assert row["difference"] == "RankReg - base loss" and row["seeds"] == "2"
    assert row["FPR@98"] == "-3.0 ± 1.0 (2/0)"  # -4 and -2
    assert row["AUC"] == "+0.0 ± 1.0 (1/1)"  # +1 and -1: more is better
    assert row["FPR@95"] == "+0.0 ± 0.0 (0/0)"


def test_averages_over_losses_are_paired_by_seed(tmp_path):
    values = {("bce", "alm"): (50.0, 54.0), ("bce", "rankreg"): (44.0, 52.0)}  # -6, -2
    values |= {("ldam", "alm"): (60.0, 60.0), ("ldam", "rankreg"): (62.0, 58.0)}  # +2, -2
    for (loss, method), fprs in values.items():
        for seed, fpr in enumerate(fprs):
            write_run(tmp_path, loss, method, seed, test={"FPR@95": fpr})
    write_run(tmp_path, "ldam", "alm", 2)  # in one loss alone
    write_run(tmp_path, "ldam", "rankreg", 2)
    differences = parsed(tables.table(finished.load(tmp_path), resamples=2))[1]
    assert rows(differences, loss="BCE")[0]["FPR@95"] == "-4.0 ± 2.0 (2/0)"
    (row,) = rows(differences, loss="average of 2", seeds="2")
    assert row["FPR@95"] == "-2.0 ± 0.0 (2/0)"  # (-6 + 2) / 2 and (-2 - 2) / 2
    (row,) = rows(differences, loss="published, same")
    assert row["FPR@95"] == f"{((26.2 - 34.0) + (25.6 - 42.0)) / 2:+.1f}"
    assert row["AUC"] == ""
    assert rows(differences, loss="published, all")[0]["FPR@95"] == "-9.7"


def test_a_control_is_compared_with_both(tmp_path):
    for method, fpr in (("base", 60.0), ("sampler", 55.0), ("rankreg", 52.0)):
        write_run(tmp_path, "bce", method, test={"FPR@98": fpr})
    differences = parsed(tables.table(finished.load(tmp_path)))[1]
    found = {row["difference"]: row["FPR@98"] for row in differences}
    assert found == {
        "RankReg - base loss": "-8.0 (1/0)",
        "sampler - base loss": "-5.0 (1/0)",
        "RankReg - sampler": "-3.0 (1/0)",
    }


# ---------------------------------------------------------------------------------------- ensembles


def test_ensembles_are_curves_of_mean_logits(tmp_path):
    # The seeds' own curves are far off; their mean is what the lists above say.
    for loss, alm in (("bce", WORSE), ("ldam", GOOD)):
        for seed, shift in ((1, 40.0), (2, -40.0)):
            write_run(tmp_path, loss, "alm", seed, scores=logits(alm, shift))
            write_run(tmp_path, loss, "rankreg", seed, scores=logits(GOOD, shift))
    write_run(tmp_path, "bce", "alm", 3, scores=logits(WORSE))
    runs = finished.load(tmp_path)
    _, _, ensembles, differences = parsed(tables.table(runs, resamples=200))

    names = ("FPR@98", "FPR@95", "FPR@92", "FPR@90", "AUC")
    # The negatives below each positive: 90 * 10 + 2 * 9 + 3 * 8 + 3 * 6 + 2 * 5 pairs of 1000.
    (row,) = rows(ensembles, loss="BCE", method="+ RankReg", seeds="2")
    assert [row[name] for name in names] == ["40.0", "20.0", "10.0", "0.0", "97.0"]
    # 90 * 10 + 2 * 8 + 3 * 7 + 3 * 4 + 2 * 3
    (row,) = rows(ensembles, loss="BCE", method="+ ALM", seeds="3")
    assert [row[name] for name in names] == ["60.0", "30.0", "20.0", "0.0", "95.5"]
    assert row["FPR@98 publ."] == "52.0"

    bce, ldam, average = differences
    assert (bce["loss"], ldam["loss"], average["loss"]) == ("BCE", "LDAM", "average of 2")
    assert bce["seeds"] == "2"
    assert [bce[name].split(" ")[0] for name in names] == [
        "-20.0",
        "-10.0",
        "-10.0",
        "+0.0",
        "+1.5",
    ]
    assert [ldam[name] for name in names] == ["+0.0 [+0.0, +0.0]"] * 5
    for row in (bce, average):
        for name in names[:3]:
            estimate, low, high = (float(x) for x in re.findall(r"[-+][\d.]+", row[name]))
            assert low < estimate < high <= 0
    assert average["FPR@98"].startswith("-10.0 [") and average["AUC"].startswith("+0.8 [")


def test_the_rounding_rule_is_that_of_alm(tmp_path):
    # 2 of 3 positives, 67 %, and then all: no point near 98 %, where that rule says 0.
    scores, targets = torch.tensor([3.0, 2.0, 0.0, 1.0]), torch.tensor([True, True, True, False])
    write_run(tmp_path, scores=scores, targets=targets)
    (row,) = parsed(tables.table(finished.load(tmp_path)))[1]
    assert row["FPR@98"] == "0.0" and row["AUC"] == "66.7"


def test_long_tailed_ensembles(tmp_path):
    # Two classes have scores; the last of ten is critical. To catch both of its items, one item of
    # class 0 goes with them.
    scores = torch.full((4, 10), -9.0)
    scores[:, [0, 9]] = torch.tensor([[3.0, 0.0], [1.0, -2.0], [2.0, 1.0], [1.0, -1.0]])
    write_long_tailed(tmp_path, "base", scores)
    write_long_tailed(tmp_path, "rankreg", scores)
    text = tables.table(finished.load(tmp_path))
    means, differences, ensembles = parsed(text)
    assert means[0]["Error@80"] == "30.0" and means[0]["Error@80 publ."] == "29.8"
    assert differences[0]["accuracy"] == "+0.0 (0/0)"
    row = rows(ensembles, method="base loss")[0]
    assert (row["Error@80"], row["Error@90"], row["accuracy"]) == ("25.0", "25.0", "50.0")
    assert CRITICAL["lt-cifar10-100"] == (9,) and "by our choice: class 9" in text


# -------------------------------------------------------------------------------------------- notes


def test_small_runs_are_called_small(tmp_path):
    write_run(tmp_path)
    text = tables.table(finished.load(tmp_path))
    assert "width 16, stem stride 2, up to 40 epochs, batches of 64" in text
    assert "replicate nothing" in text
    paper = asdict(configure("cifar10-100", "bce", "base"))
    write_run(tmp_path, config=paper)
    text = tables.table(finished.load(tmp_path))
    assert "width 64, stem stride 1, up to 100 epochs" in text and "replicate nothing" not in text
    for small in ({"width": 32}, {"epochs": 40}, {"stem_stride": 2}):
        write_run(tmp_path, config={**paper, **small})
        assert "replicate nothing" in tables.table(finished.load(tmp_path))


def test_what_is_published_is_said_for_each_setting(tmp_path):
    texts = {}
    for setting in ("melanoma-170", "cifar10-200", "fashion-100"):
        (tmp_path / setting).mkdir()
        write_run(tmp_path / setting, "w-bce", setting=setting)
        texts[setting] = tables.table(finished.load(tmp_path / setting))
    row = parsed(texts["melanoma-170"])[0][0]
    assert row["FPR@98 publ."] == "69.0?" and row["FPR@90 publ."] == "32.1"
    assert "probably a slip" in texts["melanoma-170"]
    assert "64.9" in texts["cifar10-200"] and "publ." not in texts["cifar10-200"]
    assert "Nothing is published" in texts["fashion-100"]


# ------------------------------------------------------------------------------- damaged and mixed


def test_runs_come_in_the_order_of_the_tables(tmp_path):
    for loss, method, seed in (("ldam", "base", 0), ("bce", "x", 0), ("bce", "alm", 10)):
        write_run(tmp_path, loss, method, seed)
    write_run(tmp_path, "bce", "alm", 9)
    (tmp_path / "a.json.12.partial").write_text("{")
    (tmp_path / "unfinished.logits.pt").write_bytes(b"")
    found = [(run.loss, run.method, run.seed) for run in finished.load(str(tmp_path))]
    assert found == [("bce", "alm", 9), ("bce", "alm", 10), ("bce", "x", 0), ("ldam", "base", 0)]


def without(key):
    def change(path):
        run = json.loads(path.read_text())
        del run[key]
        path.write_text(json.dumps(run))

    return change


@pytest.mark.parametrize(
    "change, suffix, message",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), ".json", "damaged"),
        (lambda path: path.write_bytes(b"\xff\x00"), ".json", "damaged"),
        (lambda path: path.write_text("[]"), ".json", "not a run of format 1"),
        (lambda path: path.write_text('{"format": 2}'), ".json", "not a run of format 1"),
        (without("best_epoch"), ".json", "no 'best_epoch'"),
        (lambda path: path.unlink(), ".logits.pt", "missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), ".logits.pt", "damaged"),
        (lambda path: torch.save({"test": TARGETS}, path), ".logits.pt", "no 'test_targets'"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, change, suffix, message):
    write_run(tmp_path, seed=1)
    name = write_run(tmp_path, seed=2)
    change(tmp_path / f"{name}{suffix}")
    with pytest.raises(RunError, match=message) as caught:
        finished.load(tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"test": {"AUC": None}}, "damaged"),
        ({"setting": None}, "no such setting: None"),
        ({"validation": {}}, "no 'FPR@98'"),
        ({"scores": logits(GOOD)[:-1]}, r"got \(109,\) and \(110,\)"),
        ({"scores": torch.zeros(110, 2)}, r"must be \(n,\)"),
        ({"setting": "lt-cifar10-100", "validation": {}}, "no 'Error@80'"),
    ],
)
def test_a_run_that_cannot_be_is_refused(tmp_path, changes, message):
    write_run(tmp_path, **changes)
    with pytest.raises(RunError, match=message):
        finished.load(tmp_path)


def test_no_run_is_taken_twice(tmp_path):
    name = write_run(tmp_path)
    with pytest.raises(RunError, match="no such folder"):
        finished.load(tmp_path / "nowhere")
    runs = finished.load(tmp_path)
    with pytest.raises(RunError, match="the same run"):
        tables.table([*runs, *runs])
    for suffix in (".json", ".logits.pt"):
        (tmp_path / f"copy{suffix}").write_bytes((tmp_path / f"{name}{suffix}").read_bytes())
    with pytest.raises(RunError, match="the same run") as caught:
        finished.load(tmp_path)
    assert name in str(caught.value) and "copy.json" in str(caught.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"setting": "cifar10-200"}, "one setting"),
        ({"config": {"width": 64}, "method": "alm"}, "width is 64, but 16"),
        ({"config": {"learning_rate": 0.2}}, "learning_rate is 0.2, but 0.01"),
        ({"config": {"more": 1}}, "more is 1, but None"),
        ({"targets": ~TARGETS}, "other test items"),
    ],
)
def test_what_does_not_belong_together_is_not_averaged(tmp_path, changes, message):
    write_run(tmp_path, seed=1)
    write_run(tmp_path, seed=2, **changes)
    with pytest.raises(RunError, match=message):
        tables.table(finished.load(tmp_path))


def test_methods_may_differ_in_what_is_no_size(tmp_path):
    write_run(tmp_path)
    write_run(tmp_path, method="rankreg", config={"learning_rate": 0.2, "alpha": 0.1})
    assert "RankReg - base loss" in tables.table(finished.load(tmp_path))
    with pytest.raises(RunError, match="no run"):
        tables.table([])


# -------------------------------------------------------------------------------- sweeps, summaries


def sweep():
    """Rows as a sweep writes them, the base loss first; its lam and alpha mean nothing."""
    settings = [("base", 0.1, 10.0, 0), ("rankreg", 0.1, 1.0, 0), ("rankreg", 1.0, 1.0, 0)]
    settings += [("rankreg", 0.1, 10.0, 4)]
    return [
        {
            "settings": {
                **CONFIG,
                "method": method,
                "alpha": alpha,
                "lam": lam,
                "extra_positives": extra,
            },
            "objective": 50 + 10 * alpha - lam,
            "mean": {"FPR@98": 60.0, "AUC": 90.0},
            "std": {"FPR@98": 1.5, "AUC": 0.25},
        }
        for method, alpha, lam, extra in settings
    ]


def test_sweep_table(tmp_path):
    found = sweep()
    found[0]["objective"] = 52.0
    write_json(tmp_path / "s.json", {"question": "lam?", "seeds": [1, 2], "rows": found})
    text = tables.of_folder(tmp_path)
    assert "## s: lam?" in text and "2 seeds" in text
    (found,) = parsed(text)
    names = ["method", "alpha", "lam", "extra_positives", "objective", "FPR@98", "AUC", "chosen"]
    assert sorted(found[0]) == sorted(names)
    assert [row["method"] for row in found] == ["base", *["rankreg"] * 3]
    assert [row["lam"] for row in found] == ["-", "1", "1", "10"]
    assert [row["objective"] for row in found] == ["52.00", "50.00", "59.00", "41.00"]
    assert [row["chosen"] for row in found] == ["", "", "", "yes"]
    assert found[0]["FPR@98"] == "60.0 ± 1.5"


def test_a_sweep_does_not_choose_what_diverged():
    found = sweep()
    found[0]["objective"] = found[3]["objective"] = float("nan")
    (found,) = parsed(tables.sweep_table(found))
    assert [row["chosen"] for row in found] == ["", "yes", "", ""]


def test_a_folder_may_hold_runs_and_sweeps(tmp_path):
    with pytest.raises(RunError, match="no finished run and no sweep"):
        tables.of_folder(tmp_path)
    write_run(tmp_path)
    write_run(tmp_path, setting="fashion-100")
    write_json(tmp_path / "s.json", {"question": "lam?", "seeds": [1], "rows": sweep()})
    text = tables.of_folder(tmp_path)
    assert [line[:5] for line in text.splitlines() if line.startswith("## ")] == [
        "## CI",
        "## Fa",
        "## s:",
    ]


def test_tables_of_the_committed_sweep():
    results = ROOT / "benchmarks" / "experiments" / "results"
    text = (results / "tuning.md").read_text()
    for stage in json.loads((results / "tuning.json").read_text())["stages"]:
        assert tables.sweep_table(stage["rows"]) in text


def test_summary():
    assert summary.mean([1.0, 2.0, 6.0]) == 3
    assert summary.std([1.0, 2.0, 6.0]) == 7**0.5  # (4 + 1 + 9) / 2
    assert summary.standard_error([1.0, 3.0]) == 1
    assert summary.std([1.0]) != summary.std([1.0])
    assert summary.align([["a", "bb"], ["ccc", "d"]]) == "| a   | bb |\n| --- | -: |\n| ccc |  d |"


# ----------------------------------------------------------------------------------------- pictures


def size_of(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and png[-8:-4] == b"IEND"
    return struct.unpack(">II", png[16:24])


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.experiments import figures

    for seed in (1, 2):
        for method in ("base", "rankreg", "sampler"):
            write_run(tmp_path, "bce", method, seed, scores=logits(WORSE, 0.1 * seed))
    write_run(tmp_path, "ldam", "alm")
    runs = finished.load(tmp_path)
    write_json(tmp_path / "s.json", {"question": "", "seeds": [1], "rows": sweep()})
    pictures = figures.of_folder(tmp_path)
    names = ["cifar10-100-dots", "cifar10-100-ranks", "cifar10-100-roc", "s-sensitivity"]
    assert sorted(pictures) == names
    for picture in pictures.values():
        width, height = size_of(picture)
        assert 500 <= width <= 2000 and 250 <= height <= 2000 and len(picture) > 10_000

    with pytest.raises(ValueError, match="metric must be one of"):
        figures.dots(runs, "FPR@97")
    with pytest.raises(ValueError, match=r"two rows with lam 10 and alpha 0\.1"):
        figures.sensitivity([*sweep(), sweep()[-1]])
    with pytest.raises(ValueError, match="base loss"):
        figures.sensitivity(sweep()[1:])
    with pytest.raises(ValueError, match="base loss"):
        figures.sensitivity(sweep()[:1])
    diverged = [{**row, "objective": float("nan")} for row in sweep()]
    size_of(figures.sensitivity([*sweep()[:2], *diverged[2:]]))
    with pytest.raises(ValueError, match="base loss"):
        figures.sensitivity([*diverged[:1], *sweep()[1:]])
    del runs[0].epochs[1]["ranks"]
    with pytest.raises(RunError, match="no ranks of the positives in epoch 2"):
        figures.rank_trajectories(runs)
    (tmp_path / "lt").mkdir()
    write_long_tailed(tmp_path / "lt", "base", torch.eye(10)[:4])
    with pytest.raises(RunError, match="no ROC curve"):
        figures.roc_corners(finished.load(tmp_path / "lt"))
