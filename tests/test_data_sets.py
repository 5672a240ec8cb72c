"""The experiments' data sets: files of every layout, draws, damage, augmentation."""

import csv
import doctest
import os
import pickle
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.experiments import dataset, datasets  # noqa: E402
from benchmarks.experiments.datasets import (  # noqa: E402
    Augmentation,
    DataError,
    MissingDataError,
    Source,
    augmentation,
    binary,
    cifar,
    cifar10,
    cifar100,
    dermoscopy,
    isic,
    long_tail_counts,
    long_tailed,
)

CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]
SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("module", [augmentation, cifar])
def test_examples(module):
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.failed == 0 < result.attempted


# ----------------------------------------------------------------------------------- CIFAR's files


def records(n, classes, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
    return images, rng.integers(0, classes, n)


def write_binary(folder, kind):
    """Files of different lengths; all images and labels in their order, training ones first."""
    ten = kind == 10
    folder = folder / ("cifar-10-batches-bin" if ten else "cifar-100-binary")
    folder.mkdir()
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if ten else ["train.bin"]
    parts = []
    for k, name in enumerate([*names, "test_batch.bin" if ten else "test.bin"]):
        images, labels = records(3 + k, kind, k)
        with open(folder / name, "wb") as file:
            for image, label in zip(images, labels, strict=True):
                coarse = b"" if ten else bytes([label % 20])
                file.write(coarse + bytes([label]) + image.tobytes())
        parts.append((images, labels))
    return folder, parts


def python2_pickle(content):
    """Protocol 2 as Python 2 wrote it: all text, raw array contents too, as byte strings."""

    def string(value):
        if len(value) < 256:
            return b"U" + bytes([len(value)]) + value
        return b"T" + struct.pack("<i", len(value)) + value

    def number(value):
        return b"J" + struct.pack("<i", value)

    out = b"\x80\x02}("
    for key, value in content.items():
        out += string(key)
        if isinstance(value, np.ndarray):
            out += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85"
            out += string(b"b") + b"\x87R("
            out += number(1) + number(value.shape[0]) + number(value.shape[1]) + b"\x86"
            out += b"cnumpy\ndtype\n" + string(b"u1") + number(0) + number(1) + b"\x87R("
            out += number(3) + string(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
            out += b"\x89" + string(value.tobytes()) + b"tb"
        elif isinstance(value, list):
            out += b"](" + b"".join(map(number, value)) + b"e"
        else:
            out += string(value)
    return out + b"u."


def write_python(folder, kind, pickled):
    ten = kind == 10
    folder = folder / ("cifar-10-batches-py" if ten else "cifar-100-python")
    folder.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)] if ten else ["train"]
    parts = []
    for k, name in enumerate([*names, "test_batch" if ten else "test"]):
        images, labels = records(3 + k, kind, k)
        content = {b"batch_label": b"some text", b"data": images}
        if ten:
            content[b"labels"] = labels.tolist()
        else:
            content |= {b"fine_labels": labels.tolist(), b"coarse_labels": (labels % 20).tolist()}
        (folder / name).write_bytes(pickled(content))
        parts.append((images, labels))
    return folder, parts


def python3_pickle(protocol, fortran=False):
    def pickled(content):
        content = {key.decode(): value for key, value in content.items()}
        if fortran:
            content["data"] = np.asfortranarray(content["data"])
        return pickle.dumps(content, protocol)

    return pickled


LAYOUTS = {
    "binary": write_binary,
    "python2": lambda folder, kind: write_python(folder, kind, python2_pickle),
    **{
        f"protocol{p}": lambda folder, kind, p=p: write_python(folder, kind, python3_pickle(p))
        for p in (2, 4, 5)
    },
    "fortran": lambda folder, kind: write_python(folder, kind, python3_pickle(4, True)),
}


def test_the_official_pickles_are_what_python_reads():
    content = {b"data": records(3, 10, 0)[0], b"labels": [1, 2, 3], b"batch_label": b"x" * 300}
    read = pickle.loads(python2_pickle(content), encoding="bytes")
    assert read.keys() == content.keys() and read[b"labels"] == [1, 2, 3]
    assert np.array_equal(read[b"data"], content[b"data"])


@pytest.mark.parametrize("kind", [10, 100])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("inside", [True, False])
def test_every_layout_gives_its_images(tmp_path, kind, layout, inside):
    folder, parts = LAYOUTS[layout](tmp_path, kind)
    source = {10: cifar10, 100: cifar100}[kind](folder if inside else tmp_path)
    assert source.name == f"CIFAR-{kind}" and len(source.classes) == kind
    train = [np.concatenate(arrays) for arrays in zip(*parts[:-1], strict=True)]
    for images, labels, expected in (
        (source.images, source.labels, train),
        (source.test_images, source.test_labels, parts[-1]),
    ):
        n = len(expected[1])
        assert images.dtype == torch.uint8 and images.shape == (n, 3, 32, 32)
        assert labels.dtype == torch.int64 and labels.tolist() == expected[1].tolist()
        assert np.array_equal(images.numpy(), expected[0].reshape(n, 3, 32, 32))
        images.zero_()  # the tensor is one's own, and writable


def test_red_comes_first_and_rows_before_columns(tmp_path):
    folder, _ = write_binary(tmp_path, 10)
    image = np.zeros(3072, np.uint8)
    image[1 * 1024 + 5 * 32 + 7] = 200
    (folder / "test_batch.bin").write_bytes(bytes([4]) + image.tobytes())
    source = cifar10(folder)
    assert source.test_labels.tolist() == [4]
    assert source.test_images.nonzero().tolist() == [[0, 1, 5, 7]]


def test_class_names_are_the_official_ones():
    # Alphabetical in both data sets; the places of the classes of the ALM protocol.
    for names, n in ((cifar.CIFAR10, 10), (cifar.CIFAR100, 100)):
        assert len(set(names)) == n
    assert list(cifar.CIFAR100) == sorted(cifar.CIFAR100)
    sea = {72: "seal", 4: "beaver", 95: "whale", 30: "dolphin", 55: "otter", 73: "shark"}
    assert {c: cifar.CIFAR100[c] for c in sea} == sea
    assert (cifar.CIFAR10[0], cifar.CIFAR10[1], cifar.CIFAR10[9]) == (
        "airplane",
        "automobile",
        "truck",
    )


# ------------------------------------------------------------------------------- damage to CIFAR's


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda raw: raw[:-1], r"data_batch_3\.bin: .*3073 .*got 4 and 3072 bytes more: truncated"),
        (lambda raw: raw[:100], r"data_batch_3\.bin: .*got 0 and 100 bytes more: truncated"),
        (lambda raw: b"", r"data_batch_3\.bin: empty"),
        (lambda raw: bytes(2 * 3074), r"data_batch_3\.bin: .*whole records of 3074 .*other CIFAR"),
        (
            lambda raw: raw[:3073] + b"\x0a" + raw[3074:],
            r"data_batch_3\.bin: labels must lie in \[0, 9\], got 10 in record 1",
        ),
    ],
)
def test_damaged_binary_files_are_named(tmp_path, damage, message):
    folder, _ = write_binary(tmp_path, 10)
    path = folder / "data_batch_3.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        cifar10(folder)


@pytest.mark.parametrize("byte, message", [(0, r"coarse labels .*\[0, 19\], got 200"), (1, "200")])
def test_labels_of_cifar100_are_checked(tmp_path, byte, message):
    folder, _ = write_binary(tmp_path, 100)
    raw = bytearray((folder / "train.bin").read_bytes())
    raw[2 * 3074 + byte] = 200
    (folder / "train.bin").write_bytes(raw)
    with pytest.raises(DataError, match=rf"train\.bin: .*{message}.*record 2"):
        cifar100(folder)


@pytest.mark.parametrize("read, name", [(cifar10, "CIFAR-10"), (cifar100, "CIFAR-100")])
def test_missing_files_say_where_to_get_them(tmp_path, read, name):
    message = rf"(?s)no {name} .*download.*cs\.toronto\.edu/~kriz/cifar\.html.*unpack it in "
    with pytest.raises(MissingDataError, match=message):
        read(tmp_path)
    with pytest.raises(MissingDataError, match=message):
        read(tmp_path / "nowhere")


def test_a_missing_part_is_named(tmp_path):
    folder, _ = write_binary(tmp_path, 10)
    (folder / "data_batch_2.bin").unlink()
    (folder / "test_batch.bin").unlink()
    with pytest.raises(
        MissingDataError,
        match=r"incomplete: data_batch_2\.bin, test_batch\.bin missing .*kriz/cifar\.html",
    ):
        cifar10(tmp_path)


class Evil:
    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    "content, message",
    [
        (Evil(os.system, "false"), r"asks for (posix|nt)\.system"),
        (Evil(eval, "1"), r"asks for (builtins|__builtin__)\.eval"),
        ({"data": Evil(np.arange, 3)}, r"asks for numpy\.arange"),
        ({"data": np.zeros((1, 3072)), "labels": [1]}, "dtype 'f8'"),
        ({"data": np.zeros((1, 3072), object), "labels": [1]}, "dtype 'O8'"),
        ([1, 2], "holds a list"),
        ({"labels": [1]}, "must hold an array 'data' and a list 'labels'"),
        ({"data": np.zeros((1, 3072), np.uint8)}, "must hold an array 'data' and a list 'labels'"),
        ({"data": [1], "labels": [1]}, "must hold an array 'data'"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, r"\(2, 3072\) and 1 labels"),
        ({"data": np.zeros((1, 3000), np.uint8), "labels": [1]}, r"\(1, 3000\) and 1 labels"),
        (
            {"data": np.zeros((0, 3072), np.uint8), "labels": []},
            "(above 0|asks for __builtin__.bytes)",
        ),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, r"labels .*got 10 in record 0"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [-1]}, r"labels .*got -1 in record 0"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": ["1"]}, "integers alone"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [2**70]}, "integers alone"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_pickles_that_are_no_cifar_are_refused(tmp_path, content, message, protocol):
    folder, _ = LAYOUTS["protocol4"](tmp_path, 10)
    (folder / "data_batch_4").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(DataError, match=rf"data_batch_4: .*{message}"):
        cifar10(folder)


def test_a_pickle_can_call_nothing(tmp_path):
    folder, _ = LAYOUTS["protocol4"](tmp_path, 10)
    made = tmp_path / "made"
    (folder / "test_batch").write_bytes(pickle.dumps(Evil(os.mkdir, str(made))))
    with pytest.raises(DataError, match="mkdir"):
        cifar10(folder)
    assert not made.exists()
    pickle.loads((folder / "test_batch").read_bytes())
    assert made.exists()  # the plain way does it


@pytest.mark.parametrize("left", [0, 1, 100, -1])
def test_truncated_pickles_are_named(tmp_path, left):
    folder, _ = LAYOUTS["python2"](tmp_path, 100)
    raw = (folder / "test").read_bytes()
    (folder / "test").write_bytes(raw[:left])
    with pytest.raises(DataError, match=r"test: truncated, damaged or no pickled CIFAR file"):
        cifar100(folder)


def test_an_array_must_have_as_many_bytes_as_its_shape_says(tmp_path):
    folder, _ = LAYOUTS["python2"](tmp_path, 100)
    raw = (folder / "test").read_bytes()
    wide, wider = (b"J" + struct.pack("<i", n) + b"\x86" for n in (3072, 3073))
    assert raw.count(wide) == 1
    (folder / "test").write_bytes(raw.replace(wide, wider))
    with pytest.raises(DataError, match="size does not fit its shape"):
        cifar100(folder)


# ----------------------------------------------------------------------------------- CIFAR's draws


def source_of(kind, per_class=None, test_per_class=None):
    """A data set of full size whose images hold nothing but their own place, in four bytes."""
    per_class = per_class or 50_000 // kind
    test_per_class = test_per_class or 10_000 // kind
    parts = []
    for n, sign in ((per_class, 0), (test_per_class, 1)):
        labels = torch.arange(kind).repeat(n)
        place = torch.arange(n * kind, dtype=torch.int32) + sign * 2**24
        parts += [place.view(torch.uint8).view(-1, 1, 2, 2), labels]
    of = {10: cifar._TEN, 100: cifar._HUNDRED}[kind]
    return Source(of.name, of.classes, *parts, of.negatives, of.positives, of.validation_per_class)


def places(split):
    return split.images.contiguous().view(len(split), 4).view(torch.int32).flatten().tolist()


@pytest.fixture(scope="module")
def sources():
    return {10: source_of(10), 100: source_of(100)}


@pytest.mark.parametrize(
    "kind, ratio, train, validation, test",
    [
        (10, 100, (4410, 44), (100, 100), (1000, 1000)),
        (10, 200, (4410, 22), (100, 100), (1000, 1000)),
        (100, 100, (2025, 20), (250, 50), (500, 100)),
        (100, 200, (2025, 10), (250, 50), (500, 100)),
    ],
)
def test_binary_sets_have_the_sizes_of_the_protocol(sources, kind, ratio, train, validation, test):
    source = sources[kind]
    data = binary(source, ratio=ratio)
    assert (data.train.counts, data.validation.counts, data.test.counts) == (
        train,
        validation,
        test,
    )
    negatives = {10: {1}, 100: {72, 4, 95, 30, 55}}[kind]
    positives = {10: {9}, 100: {73}}[kind]
    for name in SPLITS:
        split = getattr(data, name)
        assert split.targets.dtype == torch.bool and len(split) == len(split.images)
        labels = (source.test_labels if name == "test" else source.labels)[split.source]
        assert set(labels[~split.targets].tolist()) == negatives
        assert set(labels[split.targets].tolist()) == positives
        shift = 2**24 * (name == "test")
        assert places(split) == (split.source + shift).tolist()
    labels = source.labels[data.train.source]
    assert all((labels == c).sum() == train[0] // len(negatives) for c in negatives)
    assert data.train.names[1] == {10: "truck", 100: "shark"}[kind]
    assert f"{train[0]:,}" in data.describe()


@pytest.mark.parametrize("make", [binary, long_tailed])
@pytest.mark.parametrize("kind", [10, 100])
def test_no_image_is_in_two_splits_or_twice_in_one(sources, make, kind):
    for seed in range(3):
        data = make(sources[kind], seed=seed)
        every = [place for name in SPLITS for place in places(getattr(data, name))]
        assert len(every) == len(set(every))


@pytest.mark.parametrize("make", [binary, long_tailed])
def test_draws_depend_on_their_seeds_alone(sources, make):
    source = sources[10]
    first = make(source, seed=3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = make(source, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    other = make(source, seed=4)
    moved = make(source, seed=3, split_seed=1)
    for name in SPLITS:
        assert places(getattr(first, name)) == places(getattr(again, name))
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert places(first.train) != places(other.train)
    assert places(first.validation) == places(other.validation) != places(moved.validation)
    assert places(first.test) == places(other.test) == places(moved.test)


def test_a_draw_is_uniform_over_what_is_left():
    # 20 images a class, 10 held out, 9 of the others drawn: over 200 seeds, each equally often.
    source = source_of(10, per_class=20)
    uses = torch.zeros(200)
    held_out = torch.zeros(200)
    for seed in range(200):
        data = binary(source, ratio=1, validation_per_class=10, seed=seed, split_seed=seed)
        uses[data.train.source] += 1
        held_out[data.validation.source] += 1
    of = torch.arange(200) % 10
    for c in (1, 9):
        # Binomial standard deviations: sqrt(200 * .45 * .55) and sqrt(200 / 4), about 7.
        assert (uses[of == c] - 90).abs().max() < 32
        assert (held_out[of == c] - 100).abs().max() < 32
    assert uses[(of != 1) & (of != 9)].sum() == 0


def test_ratios_share_negatives_and_positives(sources):
    few, many = (binary(sources[100], ratio=ratio, seed=5).train for ratio in (200, 100))
    assert torch.equal(few.source[~few.targets], many.source[~many.targets])
    assert torch.equal(few.source[few.targets], many.source[many.targets][:10])


def test_any_classes_by_name_or_index(sources):
    source = sources[10]
    data = binary(source, ("airplane", 1), (9, "ship", "cat"), ratio=100)
    assert data.train.names == ("airplane+automobile", "truck+ship+cat")
    assert data.train.counts == (8820, 88)
    labels = source.labels[data.train.source[data.train.targets]]
    assert [int((labels == c).sum()) for c in (9, 8, 3)] == [30, 29, 29]
    plane = binary(source, positives=["airplane"])
    car = binary(source)
    assert plane.train.counts == car.train.counts
    negatives = [split.source[~split.targets] for split in (plane.train, car.train)]
    assert torch.equal(*negatives)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"negatives": "automobile"}, TypeError, "negatives must be a sequence"),
        ({"negatives": ["car"]}, ValueError, "negatives must hold names or indices .*got 'car'"),
        ({"positives": [10]}, ValueError, r"positives .*\(0 to 9\).*got 10"),
        ({"positives": [-1]}, ValueError, "positives .*got -1"),
        ({"positives": [True]}, ValueError, "positives .*got True"),
        ({"positives": []}, ValueError, "at least one class"),
        ({"positives": [9, "truck"]}, ValueError, "each once"),
        ({"positives": ["automobile"]}, ValueError, "must differ, got .'automobile'. in both"),
        ({"ratio": 0}, ValueError, "ratio must be an integer of at least 1, got 0"),
        ({"ratio": 1.5}, TypeError, "ratio must be an integer of at least 1, got 1.5"),
        ({"ratio": 4411}, ValueError, "ratio must leave a positive, got 4411 for 4410"),
        ({"validation_per_class": -1}, ValueError, "validation_per_class .*got -1"),
        ({"validation_per_class": 5000}, DataError, r"5,001 .*class 1 \(automobile\).*hold 5,000"),
        ({"negatives": [0, 1, 2], "ratio": 1}, DataError, r"class 9 \(truck\).*hold 5,000"),
    ],
)
def test_binary_sets_check_their_arguments(sources, arguments, error, message):
    with pytest.raises(error, match=message):
        binary(sources[10], **arguments)


@pytest.mark.parametrize(
    "largest, classes, imbalance, expected",
    [
        (5000, 10, 100, [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]),
        (5000, 10, 200, [5000, 2775, 1540, 854, 474, 263, 146, 81, 45, 25]),
        (500, 100, 100, 10_847),
        (500, 100, 200, 9_502),
        (7, 3, 1, [7, 7, 7]),
    ],
)
def test_long_tails_have_the_published_counts(largest, classes, imbalance, expected):
    counts = list(long_tail_counts(largest, classes, imbalance))
    assert (counts if isinstance(expected, list) else sum(counts)) == expected
    assert counts[0] == largest and counts[-1] == largest // imbalance
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("arguments", [(5000, 10, 0.5), (50, 10, 51), (50, 10, float("nan"))])
def test_long_tails_check_their_arguments(arguments):
    with pytest.raises(ValueError, match="imbalance must lie in"):
        long_tail_counts(*arguments)


@pytest.mark.parametrize("imbalance", [100, 200])
@pytest.mark.parametrize("kind", [10, 100])
def test_long_tailed_sets(sources, kind, imbalance):
    source, v = sources[kind], {10: 100, 100: 50}[kind]
    largest = 50_000 // kind
    published = long_tail_counts(largest, kind, imbalance)
    whole = long_tailed(source, imbalance, validation_per_class=0)
    assert whole.train.counts == published and len(whole.validation) == 0
    data = long_tailed(source, imbalance)
    assert data.train.counts == tuple(min(n, largest - v) for n in published)
    assert data.validation.counts == (v,) * kind
    assert data.test.counts == (10_000 // kind,) * kind
    assert data.train.targets.dtype == torch.int64
    assert torch.equal(source.labels[data.train.source], data.train.targets)
    assert data.train.names == source.classes
    if imbalance == 200:
        more = set(places(long_tailed(source, 100).train))
        assert set(places(data.train)) < more
    assert (kind, sum(published)) in {(10, 12_406), (10, 11_203), (100, 10_847), (100, 9_502)}


def test_a_part_of_the_data_set_will_do_for_a_long_tail(sources):
    # As many images of each class as the tail and 100 for validation need, and one fewer.
    source = sources[10]
    needed = [5000, 3097, 1896, 1177, 745, 487, 332, 239, 183, 150]
    kept = torch.cat([(source.labels == c).nonzero()[:n, 0] for c, n in enumerate(needed)])
    enough = Source(
        **{**vars(source), "images": source.images[kept], "labels": source.labels[kept]}
    )
    expected = (4900, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
    assert long_tailed(enough).train.counts == expected
    short = Source(**{**vars(enough), "images": enough.images[:-1], "labels": enough.labels[:-1]})
    with pytest.raises(DataError, match=r"150 .*class 9 \(truck\).*hold 149"):
        long_tailed(short)


# -------------------------------------------------------------------------------------- dermoscopy


HEAD = ["image_name", "patient_id", "benign_malignant", "target"]


def write_isic(folder, rows, extra=(), pixels=None, size=(24, 24)):
    """``rows``: image, patient, 0 or 1, then values of the ``extra`` columns."""
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    (folder / "jpeg" / "train").mkdir(parents=True)
    with open(folder / "train.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*HEAD, *extra])
        for name, patient, target, *more in rows:
            writer.writerow([name, patient, ("benign", "malignant")[target], target, *more])
    for k, (name, *_) in enumerate(rows):
        colour = pixels(k) if pixels else (k % 256, 100, 200)
        image_module.new("RGB", size, colour).save(folder / "jpeg" / "train" / f"{name}.jpg")
    return folder


def patients(n=40, malignant=10):
    """Three images each; of a malignant patient, the second one is malignant."""
    return [
        (f"ISIC_{3 * p + k:07d}", f"IP_{p:03d}", int(p < malignant and k == 1))
        for p in range(n)
        for k in range(3)
    ]


def test_no_patient_is_in_two_splits(tmp_path):
    folder = write_isic(tmp_path / "set", patients())
    table = isic.read_table(folder / "train.csv")
    seen = set()
    for seed in range(5):
        data = dermoscopy(folder, size=8, ratio=None, split_seed=seed, test=0.2, cache=None)
        of = {
            name: {table.patients[row] for row in getattr(data, name).source.tolist()}
            for name in SPLITS
        }
        assert [len(of[name]) for name in SPLITS] == [29, 3, 8]  # 8 of 40; 2 of 24 and 1 of 8
        assert len(set.union(*of.values())) == 40
        rows = [row for name in SPLITS for row in getattr(data, name).source.tolist()]
        assert sorted(rows) == list(range(120))
        assert [getattr(data, name).counts for name in SPLITS] == [(80, 7), (8, 1), (22, 2)]
        for name in SPLITS:
            split = getattr(data, name)
            assert torch.equal(split.targets, table.malignant[split.source])
        seen.add(str(sorted(of["test"])))
    assert len(seen) == 5


def test_all_benign_images_stay_and_malignant_ones_meet_the_ratio(tmp_path):
    folder = write_isic(tmp_path / "set", patients())
    make = {"size": 8, "test": 0, "validation": 0, "cache": None}
    whole = dermoscopy(folder, ratio=None, **make).train
    assert whole.counts == (110, 10)
    at = {ratio: dermoscopy(folder, ratio=ratio, **make).train for ratio in (12, 40, 110)}
    assert [split.counts for split in at.values()] == [(110, 9), (110, 2), (110, 1)]
    for split in at.values():
        assert torch.equal(split.source[:110], whole.source[:110])
    malignant = [set(split.source[split.targets].tolist()) for split in at.values()]
    assert malignant[2] < malignant[1] < malignant[0]
    others = {
        str(dermoscopy(folder, ratio=40, seed=seed, **make).train.source[110:].tolist())
        for seed in range(6)
    }
    assert len(others) > 1
    for ratio in (10, 111):
        with pytest.raises(DataError, match=f"{ratio} : 1 needs {110 // ratio} malignant .*got 10"):
            dermoscopy(folder, ratio=ratio, **make)


def test_a_column_of_splits_is_kept_to(tmp_path):
    rows = [(*row, "test" if int(row[1][-3:]) % 4 == 0 else "train") for row in patients()]
    folder = write_isic(tmp_path / "one", rows, ["split"])
    data = dermoscopy(folder, size=8, ratio=None, test=0.9, cache=None)
    in_test = [k for k, row in enumerate(rows) if row[-1] == "test"]
    assert data.test.source.tolist() == in_test
    # 30 patients are left, 7 of them malignant: round(2.3) and round(.7) for validation.
    assert data.validation.counts == (8, 1) and data.train.counts == (75, 6)

    named = [(*row[:-1], "validation" if row[1] == "IP_001" else row[-1]) for row in rows]
    folder = write_isic(tmp_path / "two", named, ["split"])
    data = dermoscopy(folder, size=8, ratio=None, cache=None)
    assert data.validation.source.tolist() == [3, 4, 5] and data.test.source.tolist() == in_test


def test_images_are_central_squares_scaled(tmp_path):
    rows = [(f"ISIC_{k}", f"IP_{k}", k % 2) for k in range(4)]
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250), (120, 130, 140)]
    folder = write_isic(tmp_path / "set", rows, pixels=colours.__getitem__, size=(90, 60))
    from PIL import Image

    # A wide image, whose sides lie outside of its central square.
    wide = np.zeros((60, 180, 3), np.uint8)
    wide[:, 60:120] = (200, 200, 200)
    wide[:30, 60:120] = (80, 80, 80)
    Image.fromarray(wide).save(folder / "jpeg" / "train" / "ISIC_3.jpg", quality=95)
    for size in (4, 16, 64, 100):
        images = isic.decode(folder, [row[0] for row in rows], size, None)
        assert images.shape == (4, 3, size, size) and images.dtype == torch.uint8
        for image, colour in zip(images[:3], colours, strict=False):
            assert (image.float() - torch.tensor(colour)[:, None, None]).abs().max() <= 4
        # Dark above, bright below, and away from the edges nothing of the black sides.
        inner = images[3].float()[:, :, size // 4 : size - size // 4]
        assert (inner[:, : size // 4] - 80).abs().max() < 12
        assert (inner[:, -(size // 4) :] - 200).abs().max() < 12
        assert images[3].float().mean() > 130  # of (80 + 200) / 2: no side has come in


def test_images_are_decoded_once(tmp_path, monkeypatch):
    folder = write_isic(tmp_path / "set", patients(4, 2))
    names = isic.read_table(folder / "train.csv").images
    cache = tmp_path / "cache"
    plain = isic.decode(folder, names, 8, None)
    first = isic.decode(folder, names, 8, cache)
    (path,) = cache.iterdir()
    assert path.name.startswith("set-8px-") and torch.equal(first, plain)
    first.zero_()  # a private map: the file stays as it is

    def refuse(*_):
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(isic, "_decoded", refuse)
        assert torch.equal(isic.decode(folder, names, 8, cache), plain)
        patch.setitem(sys.modules, "PIL", None)  # what is decoded needs no decoder
        assert torch.equal(isic.decode(folder, names, 8, cache), plain)
        for others in ((names, 9), (names[:-1], 8), (names[::-1], 8)):
            with pytest.raises(AssertionError, match="again"):
                isic.decode(folder, *others, cache)

    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:50], b"", b"nonsense" * 100):
        path.write_bytes(damaged)
        assert torch.equal(isic.decode(folder, names, 8, cache), plain)
        assert path.read_bytes() == whole

    with open(folder / "jpeg" / "train" / f"{names[0]}.jpg", "ab") as file:
        file.write(b"more")
    isic.decode(folder, names, 8, cache)
    assert len(list(cache.iterdir())) == 2


def test_an_interrupted_decoding_leaves_nothing(tmp_path):
    folder = write_isic(tmp_path / "set", patients(4, 2))
    names = isic.read_table(folder / "train.csv").images
    path = folder / "jpeg" / "train" / f"{names[5]}.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=rf"{names[5]}\.jpg: damaged or no image: .*[Tt]runcated"):
        isic.decode(folder, names, 8, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    path.write_bytes(b"no image at all")
    with pytest.raises(DataError, match=rf"{names[5]}\.jpg: damaged or no image"):
        isic.decode(folder, names, 8, None)


def test_many_images_are_decoded_in_parts(tmp_path):
    rows = [(f"ISIC_{k}", f"IP_{k}", 0) for k in range(520)]
    folder = write_isic(
        tmp_path / "set", rows, pixels=lambda k: (k // 4, k // 4, k // 4), size=(8, 8)
    )
    names = [row[0] for row in rows]
    images = isic.decode(folder, names, 4, tmp_path / "cache").float()
    expected = (torch.arange(520) // 4)[:, None, None, None]
    assert images.shape == (520, 3, 4, 4) and (images - expected).abs().max() <= 1


def test_without_pillow_the_error_says_so(tmp_path, monkeypatch):
    folder = write_isic(tmp_path / "set", patients(4, 2))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="needs Pillow: pip install pillow"):
        dermoscopy(folder, size=8, ratio=None, cache=None)


def test_missing_images_are_named(tmp_path):
    folder = write_isic(tmp_path / "set", patients(4, 2))
    (folder / "jpeg" / "train" / "ISIC_0000004.jpg").unlink()
    with pytest.raises(
        MissingDataError, match=r"1 of 12 images .*ISIC_0000004\.jpg; .*isic-archive\.com"
    ):
        dermoscopy(folder, size=8, ratio=5, cache=None)


def test_the_folder_is_found_or_said_to_be_missing(tmp_path):
    with pytest.raises(MissingDataError, match=r"no train\.csv .*isic-archive\.com"):
        dermoscopy(tmp_path)
    write_isic(tmp_path / "one", patients(4, 2))
    make = {"size": 8, "ratio": None, "validation": 0, "test": 0, "cache": None}
    assert dermoscopy(tmp_path, **make).train.counts == (10, 2)
    write_isic(tmp_path / "two", patients(4, 2))
    with pytest.raises(DataError, match=r"more than one .*one, two"):
        dermoscopy(tmp_path, **make)
    with pytest.raises(MissingDataError, match=r"train\.csv is missing; .*isic-archive"):
        isic.read_table(tmp_path / "train.csv")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "column image_name, patient_id, target is missing"),
        ("image_name,target\na,0\n", "column patient_id is missing"),
        ("image_name,patient_id,target\n", "holds no images"),
        ("image_name,patient_id,target\na,p\n", "too few or many values in row 1"),
        ("image_name,patient_id,target\na,p,0,1\n", "too few or many values in row 1"),
        ("image_name,patient_id,target\na,p,0\nb,p,2\n", "target must be 0 or 1, got '2' in row 2"),
        ("image_name,patient_id,target\na,,0\n", "patient_id is empty in row 1"),
        ("image_name,patient_id,target\n../a,p,0\n", "without folder, got '../a' in row 1"),
        ("image_name,patient_id,target\n..,p,0\n", r"without folder, got '\.\.' in row 1"),
        ("image_name,patient_id,target\na,p,0\nb,p,1\na,q,1\n", "more than once: a$"),
        (
            "image_name,patient_id,target,benign_malignant\na,p,1,benign\n",
            "must be malignant where target is 1, got 'benign' in row 1",
        ),
        ("image_name,patient_id,target,split\na,p,1,dev\n", "split must be one of .*got 'dev'"),
        (
            "image_name,patient_id,target,split\na,p,1,train\nb,q,0,test\nc,p,0,test\n",
            "patients in more than one split: p$",
        ),
    ],
)
def test_a_bad_table_is_an_error(tmp_path, text, message):
    path = tmp_path / "train.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"train\.csv.*{message}"):
        isic.read_table(path)


def test_a_table_that_cannot_be_read_is_an_error(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"image_name,patient_id,target\n\xff\xfe,p,0\n")
    with pytest.raises(DataError, match="cannot read"):
        isic.read_table(tmp_path / "train.csv")


def test_columns_may_stand_in_any_order(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("\ufefftarget,age,image_name,patient_id\n1,,a,p\n0,50,b,q\n", encoding="utf-8")
    table = isic.read_table(path)
    assert (table.images, table.patients, table.splits) == (("a", "b"), ("p", "q"), None)
    assert table.malignant.tolist() == [True, False]


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"size": 0}, ValueError, "size must be an integer of at least 1, got 0"),
        ({"ratio": 0.5}, TypeError, "ratio must be an integer of at least 1, got 0.5"),
        ({"test": 1.0}, ValueError, r"test must lie in \[0, 1\), got 1.0"),
        ({"validation": float("nan")}, ValueError, "validation must lie in .*got nan"),
    ],
)
def test_dermoscopy_checks_its_arguments(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        dermoscopy(tmp_path, **arguments)


# ----------------------------------------------------------------------------------- Fashion-MNIST


def test_fashion_mnist_is_the_embedded_one():
    data, expected = datasets.fashion(), dataset.load()
    for name in SPLITS:
        split, theirs = getattr(data, name), getattr(expected, name)
        assert split.images.dtype == torch.uint8
        assert torch.equal(split.targets, theirs.positives)
        torch.testing.assert_close(data.normalise(split.images), theirs.images)
    assert data.train.counts == (5000, 50) and data.validation.counts == (1000, 450)
    every = [i for name in SPLITS for i in getattr(data, name).source.tolist()]
    assert sorted(every) == list(range(8500))
    images = torch.from_numpy(dataset.load_images())
    assert torch.equal(images[data.validation.source][:, None], data.validation.images)


def test_damaged_fashion_mnist_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"none\.npy\.xz.*NOTICE"):
        datasets.fashion(tmp_path / "none.npy.xz")


# ---------------------------------------------------------------------- preparation on the device


def one_by_one(images, numbers, pad):
    """The specification: one image at a time, by padding, cutting out and turning."""
    out = []
    for image, (top, left, mirrored, flipped) in zip(
        images.cpu().numpy(), numbers.tolist(), strict=True
    ):
        height, width = image.shape[1:]
        image = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
        image = image[:, top : top + height, left : left + width]
        if mirrored:
            image = image[:, :, ::-1]
        if flipped:
            image = image[:, ::-1]
        out.append(torch.from_numpy(image.copy()))
    return torch.stack(out)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(50, 3, 32, 32), (50, 3, 8, 8), (40, 1, 7, 5), (1, 3, 4, 4)])
@pytest.mark.parametrize(
    "augment",
    [Augmentation(4), Augmentation(2, flip=True), Augmentation(0), Augmentation(1, mirror=False)],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_a_batch_is_augmented_as_each_image_alone(device, shape, augment, dtype):
    generator = torch.Generator().manual_seed(shape[0])
    images = torch.randint(1, 256, shape, generator=generator).to(dtype)
    numbers = augment.draw(len(images), generator)
    result = augment(images.to(device), numbers)
    assert result.device.type == device and result.dtype == dtype
    assert torch.equal(result.cpu(), one_by_one(images, numbers, augment.pad))
    layout = images.to(device).contiguous(memory_format=torch.channels_last)
    assert torch.equal(augment(layout, numbers.to(device)), result)


def test_every_crop_and_turn_occurs_equally_often():
    n = 20_000
    numbers = Augmentation(4, flip=True).draw(n, torch.Generator().manual_seed(0))
    assert numbers.shape == (n, 4) and numbers.dtype == torch.int64
    for column, values in zip(numbers.T, (9, 9, 2, 2), strict=True):
        expected = n / values
        counts = torch.bincount(column, minlength=values)
        assert len(counts) == values
        assert (counts - expected).abs().max() < 4.5 * expected**0.5
    # Independent of one another: all 324 combinations.
    assert len(numbers.unique(dim=0)) == 9 * 9 * 2 * 2


def test_what_is_off_is_not_done_and_takes_the_same_numbers():
    drawn = []
    for settings in ((True, True), (True, False), (False, False)):
        generator = torch.Generator().manual_seed(7)
        drawn.append(Augmentation(3, *settings).draw(100, generator))
        drawn.append(generator.get_state())
    assert torch.equal(drawn[0][:, :3], drawn[2][:, :3]) and drawn[0][:, 3].any()
    assert not drawn[2][:, 3].any() and not drawn[4][:, 2:].any()
    assert torch.equal(drawn[0][:, :2], drawn[4][:, :2])
    assert torch.equal(drawn[1], drawn[3]) and torch.equal(drawn[1], drawn[5])


def test_augmenting_changes_no_input_and_checks_shapes():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    before = images.clone()
    augment = Augmentation()
    numbers = augment.draw(4, torch.Generator())
    augment(images, numbers).zero_()
    assert torch.equal(images, before)
    for bad in ((images[0], numbers), (images, numbers[:3]), (images, numbers[:, :3])):
        with pytest.raises(ValueError, match="Augmentation: images must have shape"):
            augment(*bad)


def test_preparation_compiles_to_one_graph(sources):
    augment, normalise = Augmentation(2, flip=True), binary(sources[10]).normalise
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    numbers = augment.draw(4, torch.Generator())

    def prepare(images, numbers):
        return normalise(augment(images, numbers))

    compiled = torch.compile(prepare, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        assert torch.equal(compiled(images, numbers), prepare(images, numbers))


@pytest.mark.parametrize("device", DEVICES)
def test_normalised_values(sources, device):
    data = binary(sources[10])
    levels = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    result = data.normalise(levels.to(device))
    assert result.dtype == torch.float32 and result.device.type == device
    exact = levels.double() / 255
    exact = (exact - torch.tensor(data.mean, dtype=torch.float64).view(3, 1, 1)) / torch.tensor(
        data.std, dtype=torch.float64
    ).view(3, 1, 1)
    torch.testing.assert_close(result.cpu().double(), exact, rtol=1e-6, atol=1e-6)
    assert torch.equal(result.cpu(), data.normalise(levels))  # equal bits
    assert data.normalise(levels, torch.float16).dtype == torch.float16
    assert torch.equal(data.normalise(levels, torch.float16), data.normalise(levels).half())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_splits_move_to_a_cuda_device(sources):
    data = binary(sources[10]).to("cuda")
    assert data.train.images.is_cuda and data.train.targets.is_cuda
    assert data.fingerprint() == binary(sources[10]).fingerprint()
    assert data.train.counts == (4410, 44)


# --------------------------------------------------------------------------------------- real data


def test_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKREG_DATA", str(tmp_path))
    assert datasets.data_folder() == tmp_path
    monkeypatch.setenv("RANKREG_DATA", str(tmp_path / "none"))
    with pytest.raises(MissingDataError, match=r"RANKREG_DATA=.*none is no folder"):
        datasets.data_folder()
    monkeypatch.delenv("RANKREG_DATA")
    monkeypatch.setattr(datasets.common, "ROOT", tmp_path / "repository")
    with pytest.raises(MissingDataError, match="RANKREG_DATA"):
        datasets.data_folder()
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert datasets.data_folder() == tmp_path / "shared" / "data"


@pytest.fixture(scope="module")
def real():
    def load(read, **arguments):
        try:
            return read(datasets.data_folder(), **arguments)
        except MissingDataError as error:
            pytest.skip(f"real images are not here: {error}")

    return load


@pytest.fixture(scope="module")
def real_cifar10(real):
    return real(cifar10)


def test_real_cifar10_binary(real_cifar10):
    for ratio, positives in ((100, 44), (200, 22)):
        for rare in ("truck", "airplane"):
            data = binary(real_cifar10, positives=[rare], ratio=ratio)
            assert data.train.counts == (4410, positives)
            assert data.test.counts == (1000, 1000)
    pixels = [{image.numpy().tobytes() for image in getattr(data, s).images} for s in SPLITS]
    assert [len(found) for found in pixels] == [4432, 200, 2000]
    assert not (pixels[0] & pixels[1] or pixels[0] & pixels[2] or pixels[1] & pixels[2])


def test_real_cifar10_looks_as_it_should(real_cifar10):
    # The usual constants describe it; skies are bluer than roads: channels stand in their order.
    data = binary(real_cifar10, [1], [0], ratio=1)
    every = data.normalise(real_cifar10.test_images)
    assert every.mean((0, 2, 3)).abs().max() < 0.05
    blue = data.train.images[:, 2].float().mean((1, 2)) - data.train.images[:, 0].float().mean(
        (1, 2)
    )
    assert blue[data.train.targets].mean() > 20 + blue[~data.train.targets].mean()
    # Neighbouring rows are alike, rows of different channels less so: rows lie as they should.
    pixels = real_cifar10.test_images[:500].float()
    assert (pixels[:, :, 1:] - pixels[:, :, :-1]).abs().mean() < 20


@pytest.mark.parametrize("imbalance", [100, 200])
def test_real_long_tailed_cifar10(real_cifar10, imbalance):
    data = long_tailed(real_cifar10, imbalance)
    assert data.train.counts == (4900, *long_tail_counts(5000, 10, imbalance)[1:])
    assert data.validation.counts == (100,) * 10


def test_real_dermoscopy(real, tmp_path):
    data = real(dermoscopy, size=16, cache=tmp_path)
    assert data.test.counts[0] > 100 < data.test.counts[1]
    assert data.train.counts[1] == data.train.counts[0] // 170
    assert data.train.images.float().std() > 10
    # Lesions lie in the middle and are darker than the skin around them.
    pixels = data.test.images.float().mean(1)
    assert pixels[:, 6:10, 6:10].mean() < pixels[:, 3:13, 3:13].mean()
