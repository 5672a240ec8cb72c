"""Dermoscopy images in the layout of the SIIM-ISIC 2020 challenge: benign against malignant.

A folder holds ``train.csv`` and ``jpeg/train/<image_name>.jpg``. The original is
https://challenge2020.isic-archive.com (also "SIIM-ISIC Melanoma Classification" on Kaggle); other
dermoscopy sets can be brought into the same layout.
"""

from __future__ import annotations

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import PARTIAL, fingerprint
from .augmentation import Augmentation
from .common import Data, DataError, MissingDataError, Split, first_few, integer, shuffled

NAMES = ("benign", "malignant")
SPLITS = ("train", "validation", "test")
CACHE = Path("runs/data")
DECODER = 1  # counts changes of how images are decoded: part of a cache's key

# Of ImageNet, as is usual for these images (LibAUC, LCT).
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

REMEDY = (
    "the SIIM-ISIC 2020 training images and their table are at "
    "https://challenge2020.isic-archive.com (JPEG images, not DICOM); put them into one folder as "
    "train.csv and jpeg/train/<image_name>.jpg"
)


@dataclass(frozen=True)
class Table:
    """``train.csv``, checked.

    Attributes:
        images: names of the images, unique.
        patients: whose image each one is.
        malignant: ``(n,)`` bool.
        splits: "train", "validation" or "test" of each image; None if the table does not say.
    """

    images: tuple[str, ...]
    patients: tuple[str, ...]
    malignant: Tensor
    splits: tuple[str, ...] | None


def dermoscopy(
    folder: Path,
    *,
    size: int = 64,
    ratio: int | None = 170,
    seed: int = 0,
    validation: float = 0.1,
    test: float = 0.2,
    split_seed: int = 0,
    cache: Path | None = CACHE,
) -> Data:
    """Benign against rare malignant images, no patient in two splits.

    A column ``split`` of the table decides where an image belongs, if there is one. Otherwise the
    share ``test`` of the patients is drawn for the test split; and of what is left for training,
    unless the column names validation images, the share ``validation`` of the patients. Patients
    with a malignant image and those without are divided separately, so that the shares of malignant
    images are alike. Then all benign training images stay, and so many of the malignant ones that
    there is one for ``ratio`` benign ones; validation and test keep theirs. The split behind the
    1 : 170 of RankReg's authors is not public: this is our choice.

    For a seed, the malignant images of a larger ratio are among those of a smaller one.

    Args:
        folder: holds ``train.csv``, or has one subfolder that does.
        size: height and width of the images: the largest central square, scaled.
        ratio: benign training images per malignant one; None: all malignant ones stay.
        seed: chooses the malignant training images.
        validation, test: shares of the patients, in [0, 1).
        split_seed: chooses the validation and test patients.
        cache: folder for the decoded images, in one file for each size and list of images; None:
            decode every time.

    Raises:
        TypeError, ValueError: for arguments that are not as described.
        DataError: if the table or images are missing (:class:`MissingDataError`) or damaged, a
            patient is in two splits of the table, or malignant images are too few for ``ratio``.
        ImportError: if images are to be decoded and Pillow is not installed.
    """
    integer("dermoscopy", "size", size, 1)
    if ratio is not None:
        integer("dermoscopy", "ratio", ratio, 1)
    for name, share in (("validation", validation), ("test", test)):
        if not 0 <= share < 1:
            raise ValueError(f"dermoscopy: {name} must lie in [0, 1), got {share}")
    folder = _find(Path(folder))
    table = read_table(folder / "train.csv")
    rows = divide(table, validation=validation, test=test, seed=split_seed)

    benign = rows["train"][~table.malignant[rows["train"]]]
    malignant = shuffled(rows["train"][table.malignant[rows["train"]]], "malignant", seed)
    if ratio is not None:
        wanted = len(benign) // ratio
        if not 0 < wanted <= len(malignant):
            raise DataError(
                f"{folder}: {ratio} : 1 needs {wanted} malignant images for {len(benign):,} benign "
                f"training images, got {len(malignant)}; choose another ratio"
            )
        malignant = malignant[:wanted]
    rows["train"] = torch.cat([benign, malignant])

    images = decode(folder, table.images, size, cache)

    def split(name: str) -> Split:
        targets = table.malignant[rows[name]]
        return Split(images[rows[name]], targets, NAMES, rows[name])

    return Data(
        f"{folder.resolve().name}: benign against malignant, {size} px"
        + (f", {ratio} : 1" if ratio else ", all images"),
        *map(split, SPLITS),
        MEAN,
        STD,
        Augmentation(pad=size // 8, flip=True),
    )


def divide(
    table: Table, *, validation: float = 0.1, test: float = 0.2, seed: int = 0
) -> dict[str, Tensor]:
    """The rows of each split in ascending order, no patient in two; see :func:`dermoscopy`."""
    rows_of = defaultdict(list)
    for row, patient in enumerate(table.patients):
        rows_of[patient].append(row)
    malignant = {p: bool(table.malignant[rows].any()) for p, rows in rows_of.items()}
    split_of = dict.fromkeys(rows_of, "train")
    if table.splits:
        split_of |= dict(zip(table.patients, table.splits, strict=True))

    def hold_out(name: str, share: float) -> None:
        for kind in (False, True):
            left = [p for p in rows_of if split_of[p] == "train" and malignant[p] == kind]
            order = shuffled(torch.arange(len(left)), f"{name} {NAMES[kind]}", seed).tolist()
            split_of.update((left[i], name) for i in order[: round(share * len(left))])

    if not table.splits:
        hold_out("test", test)
    if not table.splits or "validation" not in table.splits:
        hold_out("validation", validation)
    return {
        name: torch.tensor(
            sorted(row for p, rows in rows_of.items() if split_of[p] == name for row in rows),
            dtype=torch.int64,
        )
        for name in SPLITS
    }


def read_table(path: Path) -> Table:
    """The table of the images, whose columns are found by name and may stand in any order.

    ``image_name``, ``patient_id`` and ``target`` (0 benign, 1 malignant) are needed,
    ``benign_malignant`` and ``split`` are optional.

    Raises:
        DataError: if the table is missing, lacks a column or value, names an image twice,
            contradicts itself, or has a patient in two splits.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or []
    except FileNotFoundError as error:
        raise MissingDataError(f"{path} is missing; {REMEDY}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    lacking = [c for c in ("image_name", "patient_id", "target") if c not in columns]
    if lacking:
        raise DataError(f"{path}: column {first_few(lacking)} is missing, got {columns}")
    if not rows:
        raise DataError(f"{path}: holds no images")

    def require(ok: bool, number: int, text: str) -> None:
        if not ok:
            raise DataError(f"{path}: {text} in row {number}")

    for number, row in enumerate(rows, 1):
        require(None not in row.values() and None not in row, number, "too few or many values")
        name, target = row["image_name"], row["target"]
        plain = name not in ("", ".", "..") and not set(name) & set("/\\\0")
        require(plain, number, f"image_name must be a file's name without folder, got {name!r}")
        require(row["patient_id"] != "", number, "patient_id is empty")
        require(target in ("0", "1"), number, f"target must be 0 or 1, got {target!r}")
        said = row.get("benign_malignant", NAMES[int(target)])
        require(
            said == NAMES[int(target)],
            number,
            f"benign_malignant must be {NAMES[int(target)]} where target is {target}, got {said!r}",
        )
        split = row.get("split", "train")
        require(split in SPLITS, number, f"split must be one of {SPLITS}, got {split!r}")
    twice = [name for name, n in Counter(row["image_name"] for row in rows).items() if n > 1]
    if twice:
        raise DataError(f"{path}: images listed more than once: {first_few(twice)}")
    splits = None
    if "split" in columns:
        splits = tuple(row["split"] for row in rows)
        splits_of = defaultdict(set)
        for row in rows:
            splits_of[row["patient_id"]].add(row["split"])
        torn = [patient for patient, found in splits_of.items() if len(found) > 1]
        if torn:
            raise DataError(f"{path}: patients in more than one split: {first_few(torn)}")
    return Table(
        tuple(row["image_name"] for row in rows),
        tuple(row["patient_id"] for row in rows),
        torch.tensor([row["target"] == "1" for row in rows]),
        splits,
    )


def decode(folder: Path, names: Sequence[str], size: int, cache: Path | None = CACHE) -> Tensor:
    """``(n, 3, size, size)`` uint8: the images of ``folder``, decoded once.

    With a cache, the tensor is a private map of the file in it: pages are read when used, and
    writing to the tensor leaves the file alone. The file's name holds a digest of the size, the
    names and the lengths of all images; a file that is cut off is made anew.

    Raises:
        DataError: if images are missing or damaged.
        ImportError: if they are to be decoded and Pillow is not installed.
    """
    paths = [folder / "jpeg" / "train" / f"{name}.jpg" for name in names]
    lengths = []
    missing = []
    for path in paths:
        try:
            lengths.append(path.stat().st_size)
        except OSError:
            missing.append(path.name)
    if missing:
        raise MissingDataError(
            f"{len(missing):,} of {len(paths):,} images of train.csv are missing in "
            f"{folder / 'jpeg' / 'train'}: {first_few(missing)}; {REMEDY}"
        )
    shape = (len(paths), 3, size, size)
    if cache is None:
        return torch.from_numpy(np.concatenate([*_decoded(paths, size)]))

    key = fingerprint({"decoder": DECODER, "size": size, "names": list(names), "lengths": lengths})
    target = Path(cache) / f"{folder.resolve().name}-{size}px-{key[:16]}.npy"
    images = _cached(target, shape)
    if images is None:
        _write(target, shape, _decoded(paths, size))
        images = _cached(target, shape)
    return torch.from_numpy(images)


def _cached(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array in the file, or None if it is not there or not whole."""
    try:
        images = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


def _write(path: Path, shape: tuple[int, ...], parts: Iterator[np.ndarray]) -> None:
    """Replace ``path`` by an array that comes in parts, and need not fit into memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    head = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": shape}
    try:
        with open(partial, "wb") as file:
            np.lib.format.write_array_header_1_0(file, head)
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _decoded(paths: list[Path], size: int) -> Iterator[np.ndarray]:
    """The images in order, ``(at most 512, 3, size, size)`` uint8 at a time."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("decoding JPEG images needs Pillow: pip install pillow") from error

    def one(path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                # The decoder's own reduction, to twice the size at least: much less to decode.
                shortest = min(image.size)
                image.draft("RGB", tuple(2 * size * side // shortest for side in image.size))
                shortest = min(image.size)
                left, top = ((side - shortest) // 2 for side in image.size)
                square = (left, top, left + shortest, top + shortest)
                image = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, square)
        except Exception as error:  # whatever a damaged file makes Pillow raise
            raise DataError(f"{path}: damaged or no image: {error}") from error
        return np.asarray(image).transpose(2, 0, 1)

    # Pillow decodes outside of the interpreter's lock.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for start in range(0, len(paths), 512):
            images = [*pool.map(one, paths[start : start + 512])]
            yield np.ascontiguousarray(np.stack(images))  # stack keeps the order of its inputs


def _find(folder: Path) -> Path:
    if (folder / "train.csv").is_file():
        return folder
    found = sorted(path.parent for path in folder.glob("*/train.csv"))
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{folder} holds more than one data set with a train.csv, name one of them: "
            f"{first_few([path.name for path in found])}"
        )
    raise MissingDataError(f"no train.csv in {folder} or a folder in it; {REMEDY}")
