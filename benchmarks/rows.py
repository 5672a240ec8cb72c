"""Result files: JSON lines, one environment record per run, then one row per measurement.

Every line is written at once and flushed, so that an interrupted run loses nothing but the case it
was in. The schema is below: ``RUN`` and ``ROW``, and for a CUDA device ``CUDA_RUN`` and
``CUDA_ROW``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TEXT, WHOLE, REAL = (str,), (int,), (int, float)
NONE = (type(None),)

# Field: types, meaning. What rows of both devices hold:
_MEASURED: dict[str, tuple[tuple[type, ...], str]] = {
    "run": (TEXT, "the id of the environment record it belongs to"),
    "case": (TEXT, "op/batch x n/dtype/values[/P positives]; the next columns take it apart"),
    "op": (TEXT, "what is computed, see benchmarks/ops.py"),
    "batch": (WHOLE, "number of lists"),
    "n": (WHOLE, "scores in each list"),
    "dtype": (TEXT, "of the scores"),
    "values": (TEXT, "kind of scores; of a training step the network"),
    "positives": (WHOLE, "positives in each list, 0 where the op knows none"),
    "provider": (TEXT, "who computed it"),
    "ns_p10": (REAL, "nanoseconds per call: the 10th percentile over samples"),
    "ns_p50": (REAL, "the median"),
    "ns_p90": (REAL, "the 90th percentile"),
    "samples": (WHOLE, "number of samples"),
    "calls_per_sample": (WHOLE, "calls that one sample is the mean of"),
    "inputs_rotated": (WHOLE, "different inputs that the calls went through"),
    "floor_bytes": (WHOLE, "bytes that any method must read and write in a call"),
    "peak_bytes": (WHOLE + NONE, "growth of the memory in use in a call, outputs included"),
    "output_bytes": (WHOLE + NONE, "bytes of the outputs"),
    "gate": (TEXT, "how its output compared with the specification before it was timed"),
    "note": (TEXT, "where it does more, less or something else"),
}

ROW = {
    "kind": (TEXT, "'row'"),
    **_MEASURED,
    "isa": (TEXT, "instruction set that all providers were held to"),
    "threads": (WHOLE, "threads, each on a core of its own"),
    "cpu_share": (REAL, "processor time over wall time: well below 1 per thread is disturbed"),
    "clock_ghz": (REAL + NONE, "clock of the core, measured just before"),
}

CUDA_ROW = {
    "kind": (TEXT, "'cuda_row'"),
    **_MEASURED,
    "device": (TEXT, "name of the device"),
    "mode": (TEXT, "'call': eager calls one after another; 'graph': replayed, the device alone"),
    "host_ns_p50": (REAL, "nanoseconds per call until the host is free again, the median"),
    "why_no_graph": (TEXT, "where the host waits for the device, so that no graph can be made"),
}

# What environment records of both devices hold:
_ANY_RUN: dict[str, tuple[tuple[type, ...], str]] = {
    "run": (TEXT, "an id"),
    "date": (TEXT, "start, UTC"),
    "selection": (TEXT, "the cases that were asked for"),
    "cpu": (TEXT + NONE, "model name"),
    "system": (TEXT, "system and architecture"),
    "python": (TEXT, "version"),
    "libraries": ((dict,), "version by name, null where not installed"),
    "rankreg_ext": (TEXT, "version"),
    "compiler": (TEXT + NONE, "of the native library"),
    "flags": (TEXT + NONE, "it was compiled with"),
    "commit": (TEXT + NONE, "of the working tree"),
    "dirty": ((bool,), "whether the working tree differed from it"),
}

RUN = {
    "kind": (TEXT, "'run'"),
    **_ANY_RUN,
    "cpu_family_model": (TEXT, "what tells the microarchitecture where the name does not"),
    "cpu_flags": ((list,), "instruction sets of the processor, of interest here"),
    "l2_cache": (TEXT + NONE, "as the system reports it"),
    "logical_cores": (WHOLE, "of the machine"),
    "memory_gib": (REAL + NONE, "of the machine"),
    "governor": (TEXT + NONE, "of the clock, if the system tells"),
    "clock_ghz": (REAL + NONE, "of the core at the start, from a chain of dependent products"),
    "copy_gb_per_s": (
        REAL,
        "bytes read and written per second by the best of seven copies of 256 MiB",
    ),
    "threads": (WHOLE, "as in a row"),
    "cores": ((list,), "the cores that the process was bound to"),
    "isa": (TEXT, "as in a row"),
    "isas": ((list,), "those that could be chosen"),
    "variables": ((dict,), "environment variables that bind the libraries"),
    "build": ((dict, type(None)), "what the native library says of itself"),
}

CUDA_RUN = {
    "kind": (TEXT, "'cuda_run'"),
    **_ANY_RUN,
    "device": (TEXT, "as in a row"),
    "capability": (TEXT, "compute capability"),
    "multiprocessors": (WHOLE, "of the device"),
    "l2_bytes": (WHOLE, "its second-level cache"),
    "memory_gib": (REAL, "of the device"),
    "driver": (TEXT + NONE, "version"),
    "cuda": (TEXT + NONE, "version that torch was built with"),
    "reading": ((dict,), "what nvidia-smi read at the start: clocks, temperature, power"),
    "copy_gb_per_s": (
        REAL,
        "bytes read and written per second by the median of twenty copies of 1 GiB on the device",
    ),
    "backend": (TEXT, "the one asked for"),
}

SCHEMAS = {"row": ROW, "run": RUN, "cuda_row": CUDA_ROW, "cuda_run": CUDA_RUN}


def validate(record: dict[str, Any]) -> dict[str, Any]:
    """The record itself.

    Raises:
        ValueError: if it does not follow the schema.
    """
    kind = record.get("kind")
    schema = SCHEMAS.get(kind) if isinstance(kind, str) else None
    if schema is None:
        raise ValueError(f"kind must be one of {', '.join(SCHEMAS)}; got {kind!r}")
    if difference := set(schema) ^ set(record):
        raise ValueError(f"{kind}: missing or unknown: {sorted(difference)}")
    for name, (types, _) in schema.items():
        value = record[name]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"{kind}: {name} must be {types}, got {value!r}")
    return record


def append(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """All records or none: one write, then a flush to the disk."""
    text = "".join(json.dumps(validate(record), allow_nan=False) + "\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The runs and the rows of a file. A last line cut short by a crash is left out."""
    runs, rows = [], []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):
                break
            raise ValueError(f"{path.name}, line {number}: not JSON") from None
        (runs if validate(record)["kind"].endswith("run") else rows).append(record)
    return runs, rows


def key(row: dict[str, Any]) -> tuple:
    """What makes two rows measurements of the same thing."""
    how = ("isa", "threads") if row["kind"] == "row" else ("device", "mode")
    return row["case"], row["provider"], *(row[name] for name in how)
