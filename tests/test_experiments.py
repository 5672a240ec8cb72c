"""The main job: its images, its training runs, interruptions, its pictures, what is committed."""

import hashlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.experiments import dataset, demo, landscape, make_subset  # noqa: E402
from benchmarks.experiments.checkpoint import (  # noqa: E402
    BusyError,
    Checkpoint,
    clear,
    exclusive,
    fingerprint,
    write_atomically,
)
from benchmarks.experiments.progress import Progress  # noqa: E402
from benchmarks.experiments.train import Job, Settings, TrainingRun, augment  # noqa: E402

RESULTS = ROOT / "benchmarks" / "experiments" / "results"
TINY = Settings(epochs=3, width=2, limit=25, batch_size=64)


@pytest.fixture(scope="module")
def tiny_data():
    return dataset.load(limit=TINY.limit)


# ------------------------------------------------------------------------------------------- images


def test_images_are_the_stated_ones():
    images = dataset.load_images()
    assert images.shape == (8500, 28, 28) and images.dtype == "uint8"
    assert hashlib.sha256(images.tobytes()).hexdigest() == dataset.IMAGES_SHA256
    notice = (dataset.SUBSET.parent / "NOTICE").read_text(encoding="utf-8")
    assert dataset.SUBSET_SHA256 in notice and dataset.IMAGES_SHA256 in notice
    assert "MIT License" in notice and "2017 Zalando SE" in notice
    assert dataset.SUBSET.stat().st_size <= 5e6


def test_splits_have_the_stated_sizes_and_ratio():
    data = dataset.load()
    for split, negatives, positives in (
        (data.train, 5000, 50),
        (data.validation, 1000, 450),
        (data.test, 1000, 1000),
    ):
        assert split.images.shape == (negatives + positives, 1, 28, 28)
        assert split.images.dtype == torch.float32
        assert split.positives.tolist() == [False] * negatives + [True] * positives
    assert data.train.images.mean().abs() < 1e-4
    assert (data.train.images.std() - 1).abs() < 1e-4
    assert data.train.images.min() == torch.tensor(data.black, dtype=torch.float32)


def test_splits_are_disjoint():
    data = dataset.load()
    seen = {
        name: {image.numpy().tobytes() for image in split.images}
        for name, split in (("train", data.train), ("val", data.validation), ("test", data.test))
    }
    for one, other in itertools.combinations(seen, 2):
        assert not seen[one] & seen[other], (one, other)


def test_classes_look_as_they_should():
    # Shirts have long sleeves: more ink in the lower outer columns than T-shirts.
    images, positives = dataset.load_images(), dataset.load().test.positives.numpy()
    sleeves = images[6500:][:, 14:, [3, 4, 5, 22, 23, 24]].mean((1, 2))
    assert sleeves[positives].mean() > 1.5 * sleeves[~positives].mean()


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "missing"])
def test_corrupt_images_are_an_error(tmp_path, damage):
    packed = bytearray(dataset.SUBSET.read_bytes())
    path = tmp_path / "images.npy.xz"
    if damage == "flipped":
        packed[len(packed) // 2] ^= 1
    elif damage == "truncated":
        del packed[-100:]
    elif damage == "empty":
        packed.clear()
    if damage != "missing":
        path.write_bytes(packed)
    with pytest.raises(dataset.CorruptDataError, match=r"images\.npy\.xz.*NOTICE"):
        dataset.load(path)


def test_subset_is_made_from_idx_files(tmp_path):
    import gzip

    import numpy as np

    rng = np.random.default_rng(0)
    expected = []
    for name, n in (("train", 2000), ("t10k", 100)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = rng.choice(np.array([0, 1, 6], np.uint8), n, p=[0.3, 0.3, 0.4])
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            path = tmp_path / f"{name}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(head + array.tobytes()))
        expected += [image for image, label in zip(images, labels, strict=True) if label == 0]
        shirts = [image for image, label in zip(images, labels, strict=True) if label == 6]
        assert name == "t10k" or len(shirts) > 500
        expected += shirts[:500] if name == "train" else shirts
    assert np.array_equal(make_subset.subset(tmp_path), np.stack(expected))


# ----------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    "settings",
    [
        TINY,
        replace(TINY, alpha=1.0, lam=3.0),
        replace(TINY, alpha=1.0, remembered=100, rankreg_from=0.5),
        replace(TINY, alpha=1.0, positives_per_batch=0),
    ],
    ids=["bce", "rankreg", "memory", "shuffled"],
)
def test_training_resumes_bit_for_bit(settings, tiny_data):
    straight = TrainingRun(settings, 1, tiny_data)
    while not straight.finished:
        straight.train_epoch()

    run = TrainingRun(settings, 1, tiny_data)
    while not run.finished:
        run.train_epoch()
        torch.manual_seed(run.epoch)  # the global generator must not matter
        saved = io.BytesIO()
        torch.save(run.state_dict(), saved)
        saved.seek(0)
        run = TrainingRun(settings, 1, tiny_data)
        run.load_state_dict(torch.load(saved, weights_only=True))

    for split in (tiny_data.validation, tiny_data.test):
        assert torch.equal(straight.scores(split), run.scores(split))
    assert not torch.equal(
        straight.scores(tiny_data.test), TrainingRun(settings, 1, tiny_data).scores(tiny_data.test)
    )


def test_the_two_losses_differ_in_the_loss_alone(tiny_data, monkeypatch):
    runs = [
        TrainingRun(settings, 3, tiny_data)
        for settings in (TINY, replace(TINY, alpha=1.0, lam=3.0, power=1))
    ]
    before = [run.scores(tiny_data.test) for run in runs]
    assert torch.equal(*before)

    from benchmarks.experiments import train

    seen = []

    def record(images, *args):
        seen[-1].append(augment(images, *args))
        return seen[-1][-1]

    monkeypatch.setattr(train, "augment", record)
    for run in runs:
        seen.append([])
        run.train_epoch()
    assert all(map(torch.equal, *seen)) and len(seen[0]) == len(seen[1]) > 1
    assert not torch.equal(runs[0].scores(tiny_data.test), runs[1].scores(tiny_data.test))


def test_rankreg_starts_when_it_is_told_to(tiny_data):
    base, late = (
        TrainingRun(settings, 0, tiny_data)
        for settings in (TINY, replace(TINY, alpha=1.0, rankreg_from=0.5))
    )
    equal = []
    for _ in range(3):
        base.train_epoch()
        late.train_epoch()
        equal.append(torch.equal(base.scores(tiny_data.test), late.scores(tiny_data.test)))
    assert equal == [True, True, False]  # from half of three epochs on: the third


def test_augmentation_mirrors_and_moves():
    image = torch.zeros(1, 1, 28, 28)
    image[0, 0, 10, 5] = 1
    moved = augment(image.expand(2000, -1, -1, -1), -7.0, torch.Generator().manual_seed(0))
    assert moved.shape == (2000, 1, 28, 28)
    spots = {tuple(spot) for spot in (moved == 1).nonzero()[:, 2:].tolist()}
    rows, columns = range(8, 13), [*range(3, 8), *range(20, 25)]
    assert spots == set(itertools.product(rows, columns))
    assert ((moved == 1).sum((1, 2, 3)) == 1).all()
    assert set(moved.unique().tolist()) == {-7.0, 0.0, 1.0}


# -------------------------------------------------------------------------------------- checkpoints


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file"
    write_atomically(path, b"old")
    for stage in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, stage, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                write_atomically(path, b"new and longer")
        assert path.read_bytes() == b"old"
    assert len(list(path.parent.iterdir())) == 2
    clear(path.parent, only_partial=True)
    assert [p.name for p in path.parent.iterdir()] == ["file"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_checkpoints_are_bound_to_their_settings(tmp_path):
    messages = []
    one = Checkpoint(tmp_path / "run.pt", fingerprint({"lam": 1.0}), messages.append)
    other = Checkpoint(tmp_path / "run.pt", fingerprint({"lam": 2.0}), messages.append)
    assert one.load() is None and not messages
    one.save({"epoch": 2, "weights": torch.tensor([1.0])})
    assert one.load() == {"epoch": 2, "weights": torch.tensor([1.0])} and not messages
    assert other.load() is None
    assert "other settings" in messages.pop()

    whole = one.path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"x" * 100):
        one.path.write_bytes(damaged)
        assert one.load() is None
        assert "unreadable" in messages.pop()
    clear(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_fingerprint_covers_all_that_matters(monkeypatch):
    job = Job("name", TINY, 0, "cpu")
    others = [
        replace(job, seed=1),
        replace(job, backend="reference"),
        *(
            replace(job, settings=replace(TINY, **{field: value + 1}))
            for field, value in asdict(TINY).items()
        ),
    ]
    prints = {job.fingerprint(), *(other.fingerprint() for other in others)}
    assert len(prints) == 1 + len(others)
    assert replace(job, name="renamed").fingerprint() == job.fingerprint()
    monkeypatch.setattr(torch, "__version__", "0")
    assert job.fingerprint() not in prints


def test_a_folder_has_one_writer(tmp_path):
    pytest.importorskip("fcntl")
    with exclusive(tmp_path), pytest.raises(BusyError, match="another run"), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


# ----------------------------------------------------------------------------------------- the demo


def start_demo(out, *arguments, **environment):
    command = [sys.executable, "-m", "benchmarks.experiments.demo", "--out", str(out)]
    command += ["--seeds=2", "--epochs=4", "--limit=20", "--width=2", *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=120)
    return output


def epochs_done(out):
    """Epochs in the checkpoints of ``out``; they are replaced while this reads them."""
    done = 0
    for path in (out / "checkpoints").glob("*.pt"):
        done += torch.load(path, weights_only=True)["state"]["epoch"]
    return done


def children(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def reached_or_ended(out, moment, process):
    return epochs_done(out) >= moment or process.poll() is not None


def all_gone(pids):
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def without_circumstances(out):
    results = json.loads((out / "results.json").read_text())
    assert results.pop("environment")["backend"] and results.pop("timing")
    return results


def printed_table(output):
    return [line for line in output.splitlines() if line.startswith("|")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its folder and its table."""
    folder = tmp_path_factory.mktemp("whole")
    output = finish(start_demo(folder, "--workers=2", "--no-plots"))
    table = printed_table(output)
    assert len(table) == 7, output
    assert "16/16" in output and "ranks by: " in output and "resuming" not in output
    assert (folder / "table.md").read_text().splitlines() == table
    return folder, table


@pytest.mark.slow
def test_killed_and_resumed_ends_with_the_same_table(whole, tmp_path):
    (whole, table), torn = whole, tmp_path
    reached = 0
    for moment, signal_number in ((1, signal.SIGKILL), (6, signal.SIGKILL), (11, signal.SIGINT)):
        process = start_demo(torn, "--workers=1", "--no-plots")
        wait_until(partial(reached_or_ended, torn, moment, process))
        workers = children(process.pid) if sys.platform == "linux" else []
        process.send_signal(signal_number)
        output = finish(process)
        if signal_number == signal.SIGINT:
            assert process.returncode == 130 and "same command goes on" in output
        else:
            assert process.returncode == -signal.SIGKILL
        if sys.platform == "linux":
            assert workers
            wait_until(
                lambda workers=workers: not any(Path(f"/proc/{p}").exists() for p in workers)
            )
        assert not (torn / "results.json").exists()
        assert ("resuming" in output) == (reached > 0), output
        if reached:
            assert f"resuming: {reached} of 16 epochs" in output
        reached = epochs_done(torn)
        assert moment <= reached < 16

    process = start_demo(torn, "--workers=2")
    output = finish(process)
    assert process.returncode == 0 and f"resuming: {reached} of 16 epochs" in output
    assert printed_table(output) == table
    assert (torn / "table.md").read_bytes() == (whole / "table.md").read_bytes()
    assert without_circumstances(torn) == without_circumstances(whole)
    for name in ("roc.png", "landscape.png") if find_spec("matplotlib") else ():
        assert (torn / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert (torn / name).stat().st_size > 10_000


@pytest.mark.slow
def test_another_back_end_starts_anew_and_agrees(whole, tmp_path):
    folder, table = whole
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    process = start_demo(tmp_path, "--workers=2", "--no-plots", RANKREG_BACKEND="reference")
    output = finish(process)
    assert process.returncode == 0 and "resuming" not in output
    assert output.count("made with other settings") == 4
    assert "ranks by: reference" in output and printed_table(output) == table
    assert without_circumstances(tmp_path) == without_circumstances(folder)


def test_bad_requests_are_refused_in_one_line(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        demo.main(["--seeds", "0"])
    assert stop.value.code == 2 and "--seeds must be at least 1" in capsys.readouterr().err

    monkeypatch.setenv("RANKREG_BACKEND", "nonsense")
    assert demo.main(["--out", str(tmp_path)]) == 1
    assert re.fullmatch(r"error: RANKREG_BACKEND=nonsense: .*\n", capsys.readouterr().err)

    monkeypatch.delenv("RANKREG_BACKEND")
    monkeypatch.setattr(dataset.load_images, "__defaults__", (tmp_path / "gone",))
    monkeypatch.setattr(dataset.load, "__defaults__", (tmp_path / "gone",))
    assert demo.main(["--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: cannot read the images")


# ---------------------------------------------------------------------------------------- the table


def test_summary_and_table():
    names = ("FPR@98", "FPR@95", "FPR@92", "FPR@90", "AUC")
    rows = {
        "bce": [dict.fromkeys(names, 10.0), dict.fromkeys(names, 20.0), dict.fromkeys(names, 60.0)],
        "rankreg": [dict.fromkeys(names, v) for v in (9.0, 22.0, 50.0)],
    }
    summary = demo.summarise(rows)
    assert summary["bce"]["AUC"]["mean"] == 30
    assert summary["bce"]["AUC"]["std"] == pytest.approx(700**0.5)
    assert [d["FPR@98"] for d in summary["difference_per_seed"]] == [-1, 2, -10]
    assert summary["difference"]["FPR@98"]["mean"] == -3
    assert summary["difference"]["FPR@98"]["standard_error"] == pytest.approx((39 / 3) ** 0.5)
    lines = demo.table(summary, [0, 1, 2]).splitlines()
    assert len({len(line) for line in lines}) == 1 and len(lines) == 2 + 2 + 3 + 1
    assert lines[2].split("|")[2].strip() == "30.0 ± 26.5"
    assert lines[-1].split("|")[2].strip() == "-3.0 ± 3.6"
    assert [line.split("|")[5].strip() for line in lines[4:7]] == ["-1.0", "+2.0", "-10.0"]


def test_metrics_of_a_known_list():
    scores = torch.arange(20.0)
    positives = torch.tensor([i in (19, 17, 4) for i in range(20)])
    found = demo.metrics(scores, positives)
    # All three positives are needed: 13 of the 17 negatives lie above 4.
    assert found["FPR@98"] == found["FPR@90"] == pytest.approx(100 * 13 / 17)
    assert found["AUC"] == pytest.approx(100 * (17 + 16 + 4) / 51)


def test_progress_rewrites_one_line_on_a_terminal_only():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, newlines in ((Terminal(), 1), (io.StringIO(), 2)):
        progress = Progress(10, done=4, stream=stream)
        for k in range(6):
            progress.advance(1, f"run {k}")
        progress.close()
        text = stream.getvalue()
        assert text.count("\n") == newlines
        assert "5/10" in text and "10/10" in text and "00:00 left  run 5" in text


# ---------------------------------------------------------------------------------------- landscape


@pytest.mark.parametrize("lam", [0.05, 0.7, 3.0, 50.0])
def test_interpolation_is_the_literal_minimum_over_permutations(lam):
    n = 5
    positives = torch.tensor([True, False, False, True, False])
    permutations = torch.tensor(list(itertools.permutations(range(1, n + 1)))).double()
    scores = torch.randn(200, n, generator=torch.Generator().manual_seed(1)).double()
    loss, interpolated, gradient = landscape.interpolation(scores, positives, lam)

    f = (permutations * positives).sum(-1) / 2
    cost = scores @ permutations.T
    literal = ((cost + lam * f).min(-1).values - cost.min(-1).values) / lam
    assert torch.allclose(interpolated, literal, rtol=0, atol=1e-12 + 1e-14 / lam)
    assert torch.equal(loss, f[cost.argmin(-1)])
    moved = permutations[(cost + lam * f).argmin(-1)] - permutations[cost.argmin(-1)]
    assert torch.allclose(gradient, moved / lam)


def test_interpolation_is_continuous_and_its_slope_is_the_ops_gradient():
    scorer = landscape.LinearScorer()
    line = torch.linspace(-4, 4, 20001, dtype=torch.float64)
    w = torch.stack([line, torch.full_like(line, 0.6)], -1)
    step = line[1] - line[0]
    for lam in (0.8, 4.0):
        loss, interpolated, gradient = landscape.interpolation(
            scorer.scores(w), scorer.positives, lam
        )
        slope = gradient @ scorer.features[:, 0]
        change = interpolated.diff()
        # f jumps; f_lambda never moves by more than its steepest slope.
        assert loss.diff().abs().max() > 0.3
        assert change.abs().max() <= slope.abs().max() * step + 1e-12
        # Affine wherever the gradient is the same at both ends: nearly everywhere.
        same = (gradient[1:] == gradient[:-1]).all(-1)
        assert same.double().mean() > 0.99
        assert torch.allclose(change[same], slope[1:][same] * step, rtol=0, atol=1e-11)
        assert (interpolated <= loss + 1e-12).all()
        assert len(slope.unique()) > 5


def test_interpolation_tends_to_the_loss():
    scorer = landscape.LinearScorer()
    w = 4 * torch.randn(5000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = scorer.scores(w)
    shares = []
    for lam in (4.0, 0.4, 0.04, 0.004):
        loss, interpolated, gradient = landscape.interpolation(scores, scorer.positives, lam)
        still = (gradient == 0).all(-1)
        assert torch.equal(loss[still], interpolated[still])
        shares.append(still.double().mean().item())
    assert shares == sorted(shares) and shares[0] < 0.5 and shares[-1] > 0.97


# -------------------------------------------------------------------------------- what is committed


def test_the_demo_uses_what_tuning_chose():
    tuning = json.loads((RESULTS / "tuning.json").read_text())
    chosen = {}
    for stage in tuning["stages"]:
        rows = [row for row in stage["rows"] if row["candidate"]]
        best = min(rows, key=lambda row: row["objective"])
        assert [row for row in stage["rows"] if row["chosen"]] == [best]
        for row in stage["rows"]:
            assert len(row["per_seed"]) == len(tuning["seeds"])
            fpr = [(seed["FPR@98"] + seed["FPR@95"]) / 2 for seed in row["per_seed"]]
            assert row["objective"] == pytest.approx(sum(fpr) / len(fpr))
        chosen["rankreg" if best["settings"]["alpha"] else "bce"] = best["settings"]
    assert chosen["bce"] == asdict(demo.BASE)
    assert chosen["rankreg"] == asdict(demo.RANKREG)
    assert not set(tuning["seeds"]) & set(range(100))


def test_committed_results_are_of_the_present_settings():
    results = json.loads((RESULTS / "demo_results.json").read_text())
    assert results["settings"] == {"bce": asdict(demo.BASE), "rankreg": asdict(demo.RANKREG)}
    assert results["images_sha256"] == dataset.SUBSET_SHA256
    assert results["summary"] == demo.summarise(results["per_seed"]["test"])
    table = demo.table(results["summary"], results["seeds"])
    assert (RESULTS / "demo_table.md").read_text() == table + "\n"
    # The README quotes the table as it is.
    assert table in (ROOT / "benchmarks" / "experiments" / "README.md").read_text()
