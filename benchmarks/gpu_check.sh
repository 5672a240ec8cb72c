#!/usr/bin/env bash
# Everything that needs a GPU, in one command: tests, sanitizers, benchmarks. Under nine minutes,
# without a network, and without changing any setting of the card.
#
#   benchmarks/gpu_check.sh [--out DIR] [STAGE...]      all stages without a name
#
#   environment  what the machine is
#   build        _C and _C_cuda in place, unless they are there and usable
#   tests        pytest -m gpu
#   streams      streams, CUDA graphs, waiting and memory, in one process
#   triton       the tests of both kinds on the kernels in Triton
#   bench        benchmarks, quick selection
#   memcheck     compute-sanitizer on small inputs
#   racecheck    likewise
#   ncu          Nsight Compute's figures of three kernels
#   report       tables from what bench measured
#
# A stage that fails or runs out of time does not keep the others from running. A table of all comes
# last; the exit status is 1 if any of them failed, 2 if none could begin. Results are written to
# DIR, else $OUT, else runs/gpu-check: summary.txt, gpu_check.log, environment.txt, results.jsonl,
# report.md, ncu.csv.
#
# PYTHON             the interpreter, default python3
# BENCH_ARGS         selection of the benchmarks, default --quick
# GPU_CHECK_SECONDS  for everything, default 530
# RANKREG_COMMIT     commit to record where git cannot tell
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

STAGES=(environment build tests streams triton bench memcheck racecheck ncu report)
declare -A LIMIT=([environment]=40 [build]=300 [tests]=200 [streams]=75 [triton]=120 [bench]=180 [memcheck]=70
                  [racecheck]=70 [ncu]=50 [report]=30)

PYTHON=${PYTHON:-python3}
OUT=${OUT:-runs/gpu-check}
BENCH_ARGS=${BENCH_ARGS:---quick}
chosen=()
while (($#)); do
  case $1 in
    --out) OUT=${2:?gpu_check: --out needs a folder} && shift ;;
    -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" && exit 0 ;;
    *)
      if [[ -z ${LIMIT[$1]:-} ]]; then
        echo "gpu_check: there is no stage $1; there are ${STAGES[*]}" >&2
        exit 2
      fi
      chosen+=("$1")
      ;;
  esac
  shift
done
((${#chosen[@]})) || chosen=("${STAGES[@]}")

mkdir -p "$OUT" || exit 2
LOG=$OUT/gpu_check.log
NOTE=$(mktemp)
SCREEN=$(mktemp)
trap 'rm -f "$NOTE" "$SCREEN"' EXIT
export PYTHON OUT BENCH_ARGS NOTE SCREEN PYTHONUNBUFFERED=1
# Tests that measure memory or rely on the device being theirs alone.
export IN_ONE_PROCESS="stream or graph_of or memory_"

# Prints the device's compute capability, or why there is none.
probe='
import sys
try:
    import torch
except ImportError as error:
    sys.exit(f"{sys.executable} cannot import torch: {error}")
if not torch.cuda.is_available():
    sys.exit(f"torch {torch.__version__} of {sys.executable} finds no CUDA device")
print("%d.%d" % torch.cuda.get_device_capability())
'
if ! CAPABILITY=$("$PYTHON" -c "$probe" 2>"$NOTE"); then
  echo "gpu_check: $(tail -n 1 "$NOTE"); nothing was checked" | tee "$OUT/summary.txt" >&2
  exit 2
fi
export CAPABILITY

# ------------------------------------------------------------------------------------------ stages
# Each in a shell of its own, under a time limit. A status of 77: what it needs is not to be had.

# Why the native libraries are not usable; nothing if they are.
unusable() {
  "$PYTHON" -c '
import sys
from rankreg_ext import _backend
reasons = [f"{name}: {_backend.usable(name)}" for name in ("cpu", "cuda") if _backend.usable(name)]
sys.exit("; ".join(reasons) or 0)
' 2>&1 | tail -n 1
}

note() { echo "$*" >"$NOTE"; }

# A tool of the CUDA toolkit.
tool() {
  command -v "$1" || ls "${CUDA_HOME:-/usr/local/cuda}/bin/$1" 2>/dev/null
}

stage_environment() {
  {
    git describe --always --dirty --abbrev=40 2>/dev/null || echo "${RANKREG_COMMIT:-no commit}"
    uname -srm
    nvidia-smi
    nvidia-smi -q -d CLOCK,PERFORMANCE,ECC
    "$(tool nvcc || echo nvcc)" --version
    "$PYTHON" -c '
import importlib.metadata as metadata, sys
import torch, rankreg_ext
print(sys.version)
for name in ("torch", "triton", "numpy", "scipy", "pytest", "hypothesis", "pytest-xdist", "ninja"):
    try:
        print(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        print(name, "absent")
print("CUDA of torch", torch.version.cuda)
print(torch.cuda.get_device_properties(0))
print(rankreg_ext.show_config())
' || return
  } 2>&1 | tee "$OUT/environment.txt"
}

stage_build() {
  local reason
  reason=$(unusable)
  if [[ -z $reason ]]; then
    note "was usable as it was"
    return
  fi
  echo "to be built, since $reason"
  RANKREG_NATIVE=1 RANKREG_CUDA=1 TORCH_CUDA_ARCH_LIST=$CAPABILITY \
    "$PYTHON" setup.py --quiet build_ext --inplace || return
  reason=$(unusable)
  note "${reason:-built for $CAPABILITY}"
  [[ -z $reason ]]
}

# pytest on the arguments; its last line becomes the note.
run_pytest() {
  "$@" -q -m gpu -p no:cacheprovider 2>&1 | tee "$SCREEN"
  local status=${PIPESTATUS[0]}
  note "$(grep -E '(passed|failed|error|skipped|no tests ran)' "$SCREEN" | tail -n 1)"
  return "$status"
}

stage_tests() {
  # Only files that have such tests: others may import what is not installed.
  local files jobs=()
  mapfile -t files < <(grep -lE 'mark\.gpu|BACKENDS|import .*CUDA' tests/test_*.py)
  mapfile -t jobs < <(jobs_of_pytest)
  OMP_NUM_THREADS=2 run_pytest "$PYTHON" -m pytest "${jobs[@]}" --durations=5 \
    -k "not triton and not (test_gpu and ($IN_ONE_PROCESS))" "${files[@]}"
}

# Arguments for several processes, where pytest can.
jobs_of_pytest() {
  if "$PYTHON" -c 'import xdist' 2>/dev/null; then
    printf '%s\n' -n "$(($(nproc) < 6 ? $(nproc) : 6))"
  fi
}

stage_triton() {
  local reason jobs notes
  reason=$("$PYTHON" -c 'from rankreg_ext import _backend as b; print(b.usable("triton") or "")')
  [[ -z $reason ]] || { note "$reason" && return 77; }
  # In several processes first: that fills the cache of compiled kernels, too.
  mapfile -t jobs < <(jobs_of_pytest)
  run_pytest "$PYTHON" -m pytest "${jobs[@]}" --durations=5 -k "triton and not ($IN_ONE_PROCESS)" \
    tests/test_gpu_triton.py tests/test_backends_agree.py tests/test_registration.py || return
  notes=$(cat "$NOTE")
  run_pytest "$PYTHON" -m pytest -k "$IN_ONE_PROCESS" tests/test_gpu_triton.py
  local status=$?
  note "$notes; $(cat "$NOTE")"
  return "$status"
}

stage_streams() {
  run_pytest "$PYTHON" -m pytest -k "$IN_ONE_PROCESS" tests/test_gpu.py
}

# The tests named first under the tool that the other arguments tell. Every tensor has an allocation
# of its own, so that an access beyond its end is noticed.
sanitize() {
  local sanitizer tests=$1
  sanitizer=$(tool compute-sanitizer) || { note "compute-sanitizer is not installed" && return 77; }
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 run_pytest "$sanitizer" --tool "${@:2}" --error-exitcode 9 \
    --target-processes all --print-limit 20 "$PYTHON" -m pytest -k "$tests" tests/test_gpu.py
  local status=$?
  if grep -qiE 'device not supported|not supported on this (device|platform)' "$SCREEN"; then
    note "compute-sanitizer does not work on this machine" && return 77
  fi
  note "$(grep -oE '(ERROR|RACECHECK) SUMMARY.*' "$SCREEN" | tail -n 1); $(cat "$NOTE")"
  return "$status"
}

# Errors of the runtime are left to the tests: torch provokes some when it looks around.
stage_memcheck() { sanitize smoke memcheck --report-api-errors no; }

stage_racecheck() { sanitize "smoke and float32" racecheck; }

stage_bench() {
  # shellcheck disable=SC2086  # a list of arguments
  "$PYTHON" -m benchmarks run --device cuda --seconds "$((ALLOWED - 30))" --out "$OUT" $BENCH_ARGS \
    2>&1 | tee "$SCREEN"
  local status=${PIPESTATUS[0]}
  note "$(grep -c '^FAILED' "$SCREEN") failed" \
    "$(grep -o 'not measured, since .* were over' "$SCREEN")"
  return "$status"
}

stage_ncu() {
  local ncu metrics
  ncu=$(tool ncu) || { note "ncu is not installed" && return 77; }
  metrics=gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum
  metrics+=,dram__throughput.avg.pct_of_peak_sustained_elapsed
  metrics+=,sm__throughput.avg.pct_of_peak_sustained_elapsed
  metrics+=,sm__warps_active.avg.pct_of_peak_sustained_active
  metrics+=,smsp__inst_executed.sum,smsp__issue_active.avg.pct_of_peak_sustained_active
  metrics+=,l1tex__data_bank_conflicts_pipe_lsu.sum,launch__registers_per_thread
  metrics+=,launch__shared_mem_per_block,launch__grid_size,launch__block_size
  "$ncu" --clock-control none --profile-from-start off --csv --metrics "$metrics" \
    "$PYTHON" -m benchmarks profile --quick \
    --match '^rank/16384x1024/|^blackbox_backward/16384x1024/|^rankreg_loss/1x100000000/.*P32$' \
    2>&1 | tee "$SCREEN"
  local status=${PIPESTATUS[0]}
  if grep -qE 'ERR_NVGPUCTRPERM|Failed to initialize the profiler|not supported' "$SCREEN"; then
    note "ncu cannot read the counters on this machine" && return 77
  fi
  grep '^"' "$SCREEN" >"$OUT/ncu.csv" || { note "ncu saw no kernel" && return 1; }
  note "$(cut -d, -f1 "$OUT/ncu.csv" | sort -u | grep -vc ID) kernels"
  return "$status"
}

stage_report() {
  local report=$OUT/report.md
  "$PYTHON" -m benchmarks report "$OUT" || return
  sed -n '/^### Targets/,/^### Device time, by op/p' "$report" | head -n -1
  note "$(grep -c '| met |' "$report") met, $(grep -c '\*\*missed\*\*' "$report") missed"
}

# --------------------------------------------------------------------------------------------- run

mapfile -t functions < <(compgen -A function)
export -f "${functions[@]}"

deadline=$((SECONDS + ${GPU_CHECK_SECONDS:-530}))
kernels=     # "usable", or why not; empty while nobody asked
failed=0
table=$(printf '%-12s %-12s %8s  %s' stage result seconds detail)

row() { table+=$'\n'$(printf '%-12s %-12s %8s  %s' "$@"); }

for name in "${chosen[@]}"; do
  if [[ $name != @(environment|build|report) ]]; then
    [[ -n $kernels ]] || kernels=$(unusable)
    kernels=${kernels:-usable}
    if [[ $kernels != usable ]]; then
      row "$name" "NOT RUN" 0 "no usable kernels: $kernels"
      failed=1
      continue
    fi
  fi
  # All others leave the report its time.
  left=$((deadline - SECONDS))
  [[ $name == report ]] || left=$((left - LIMIT[report]))
  ((left < LIMIT[$name])) || left=${LIMIT[$name]}
  if ((left < 3)); then
    row "$name" "NOT RUN" 0 "no time was left"
    failed=1
    continue
  fi

  printf '\n==== %s, at most %s s, %s\n' "$name" "$left" "$(date -u +%FT%TZ)" | tee -a "$LOG"
  : >"$NOTE"
  began=$SECONDS
  ALLOWED=$left timeout --kill-after=5 "$left" bash -uo pipefail -c "stage_$name" 2>&1 |
    tee -a "$LOG"
  status=${PIPESTATUS[0]}
  [[ $name == build ]] && kernels=
  case $status in
    0) result=ok ;;
    77) result=unavailable ;;
    124 | 137) result="TIMED OUT" ;;
    *) result="FAILED ($status)" ;;
  esac
  [[ $result == ok || $result == unavailable ]] || failed=1
  row "$name" "$result" $((SECONDS - began)) "$(paste -sd ' ' "$NOTE")"
done

printf '\n%s\n' "$table" | tee "$OUT/summary.txt"
exit "$failed"
