"""Regenerate ``data/fashion_mnist_subset.npy.xz`` from the original Fashion-MNIST files.

    python -m benchmarks.experiments.make_subset --source /usr/share/datasets/fashion-mnist

``--source`` holds the four original IDX files (``train-images-idx3-ubyte.gz`` and so on), as in
Debian's package ``dataset-fashion-mnist`` or at https://github.com/zalandoresearch/fashion-mnist.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import lzma
from pathlib import Path

import numpy as np

from .dataset import IMAGES_SHA256, SUBSET, SUBSET_SHA256

TSHIRT, SHIRT = 0, 6
SHIRTS_KEPT = 500


def read_idx(path: Path) -> np.ndarray:
    """The array in a gzip-compressed IDX file of unsigned bytes."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def subset(source: Path) -> np.ndarray:
    """All T-shirts and the first 500 shirts to train with, then all of both to test with."""
    parts = []
    for name, shirts in (("train", SHIRTS_KEPT), ("t10k", None)):
        images = read_idx(source / f"{name}-images-idx3-ubyte.gz")
        labels = read_idx(source / f"{name}-labels-idx1-ubyte.gz")
        parts += [images[labels == TSHIRT], images[labels == SHIRT][:shirts]]
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of the IDX files")
    parser.add_argument("--out", type=Path, default=SUBSET, help="file to write")
    args = parser.parse_args()

    images = subset(args.source)
    npy = io.BytesIO()
    np.save(npy, images)
    packed = lzma.compress(npy.getvalue(), preset=9 | lzma.PRESET_EXTREME)
    args.out.write_bytes(packed)

    # Another liblzma may pack the same images into other bytes: the images are what counts.
    for what, data, expected in (
        ("images", images.tobytes(), IMAGES_SHA256),
        ("file", packed, SUBSET_SHA256),
    ):
        found = hashlib.sha256(data).hexdigest()
        verdict = "as committed" if found == expected else f"DIFFERS from the committed {expected}"
        print(f"{what}: {len(data):,} bytes, SHA-256 {found} ({verdict})")


if __name__ == "__main__":
    main()
