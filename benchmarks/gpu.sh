#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU is needed for, inside 8 minutes and without a network:
#     benchmarks/gpu.sh FOLDER
# The CUDA tests, then the benchmarks: float32 over sizes to 2^30, replays of a CUDA graph, workloads to GPT-2 XL, a
# whole training step beside PyTorch's passes, and every other format. JSON, PNG and text go to FOLDER; a short summary
# comes last. $PYTHON (python3) needs numpy, numba, cupy and pytest, for the peers torch, jax and optax, for the PNGs
# matplotlib. Exit status: 0 if the tests passed and everything was measured. QUICK=1 tries the script itself: it only
# collects the tests, and measures the smallest sizes, for as long as it takes.
set -uo pipefail
limit=${QUICK:+9}450 # seconds for what is run; then 20 for the pictures
[ $# -eq 1 ] || { echo "usage: benchmarks/gpu.sh FOLDER"; exit 2; }
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

fail() { echo "benchmarks/gpu.sh: $1" | tee "$out/summary.txt"; exit 1; }

"$python" -c "import numpy, numba" 2>/dev/null || fail "$python has no numpy and numba"
count=$("$python" -c "import cupy; print(cupy.cuda.runtime.getDeviceCount())" 2>&1 | tail -n 1)
[[ $count =~ ^[1-9][0-9]*$ ]] || fail "no NVIDIA GPU that CuPy can use: $count"
status=$("$python" -c "import fastadam; print(fastadam.backends().get('cuda', 'this version has none'))" 2>&1 | tail -n 1)
[ "$status" = ready ] || fail "fastadam's CUDA backend is not ready: $status"

notes=()
plots=yes
"$python" -c "import matplotlib" 2>/dev/null || { plots=; notes+=("no PNG: matplotlib is not installed"); }
"$python" -c "import ml_dtypes" 2>/dev/null || notes+=("ml_dtypes is not installed: no bfloat16, no whole step")
"$python" -c "import hypothesis" 2>/dev/null || notes+=("hypothesis is not installed: the CUDA tests do without")

left() { echo $((limit - SECONDS)); }

failed=()
run() { # run NAME SECONDS COMMAND...: its text to NAME.txt; at most so long, and never beyond the end
    local name=$1 most=$2
    shift 2
    [ -z "${QUICK:-}" ] || most=900
    [ "$(left)" -lt "$most" ] && most=$(left)
    [ "$most" -gt 5 ] || { failed+=("$name: no time left"); return; }
    echo "== $name: at most $most s"
    timeout --kill-after=5 "$most" "$@" >"$out/$name.txt" 2>&1
    local status=$?
    [ $status -eq 0 ] || failed+=("$name: exit status $status; $(tail -n 1 "$out/$name.txt")")
    tail -n 3 "$out/$name.txt"
}
bench() { # bench NAME SECONDS OPTIONS...: it plans with three quarters of its time
    local name=$1 most=$2
    shift 2
    [ "$(left)" -lt "$most" ] && most=$(left)
    run "$name" "$most" "$python" -m fastadam bench --seconds $((most > 4 ? most * 3 / 4 : 1)) --rounds $rounds \
        --json "$out/$name.json" "$@"
}

# Only the files whose tests need a GPU are collected: others import what such a machine may lack.
mapfile -t files < <(grep -rl --include="test_*.py" "pytest.mark.gpu" tests)
sizes=2^10,2^14,2^17,2^20,2^22,2^24,2^26 large=2^28,2^30 workloads=mlp,resnet50,vit-b,gpt2,bert-large,gpt2-xl
step=2^26 narrow=2^14,2^20,2^24,2^28 rounds=9
[ -z "${QUICK:-}" ] || { sizes=2^10,2^14 large=2^11 workloads=mlp step=2^10 narrow=2^10 rounds=2; }
run tests 130 "$python" -m pytest -o addopts="--import-mode=importlib -ra --strict-markers" -m gpu -q ${QUICK:+--collect-only} "${files[@]}"
bench float32-sizes 110 --backend cuda,numba --sizes "$sizes"
bench chain 40 --suite chain --backend cuda --sizes "$step"
bench float32-workloads 80 --backend cuda --workload "$workloads"
bench float32-large 50 --backend cuda --sizes "$large"
mapfile -t formats < <("$python" -c "from fastadam.benchmarks import cases; print(*cases.formats(), sep='\n')")
for k in $(seq 1 $((${#formats[@]} - 1))); do # the first is float32; what time is left is shared out
    format=${formats[k]}
    bench "${format//[:=]/-}-sizes" $(($(left) / (${#formats[@]} - k))) --backend cuda --format "$format" --sizes "$narrow"
done

shopt -s nullglob
results=("$out"/*.json)
: >"$out/report.txt"
# All pictures by one process: matplotlib takes longer to import than to draw one.
[ ${#results[@]} -eq 0 ] ||
    timeout --kill-after=5 $((limit + 20 - SECONDS)) "$python" benchmarks/report.py ${plots:+--png} --summary "${results[@]}" >"$out/report.txt" 2>&1 ||
    failed+=("report: exit status $?; $(tail -n 1 "$out/report.txt")")
{
    cat "$out/report.txt"
    [ ! -e "$out/tests.txt" ] || tail -n 1 "$out/tests.txt"
    for text in "${notes[@]+"${notes[@]}"}"; do echo "$text"; done
    for text in "${failed[@]+"${failed[@]}"}"; do echo "FAILED $text"; done
    echo "$SECONDS s; everything is in $out"
} 2>&1 | tee "$out/summary.txt"
[ ${#failed[@]} -eq 0 ]
