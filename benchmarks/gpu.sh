#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU is needed for, inside 8 minutes and without a network:
#     benchmarks/gpu.sh FOLDER
# The CUDA tests, then the benchmarks: float32 and every other dtype, sizes to 2^30, workloads to GPT-2 XL. JSON, PNG
# and text go to FOLDER; a short summary comes last. $PYTHON (python3) needs numpy, numba, cupy and pytest, and for the
# peers torch, jax and optax. Exit status: 0 if the tests passed and everything was measured.
set -uo pipefail
limit=470 # seconds for everything
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

left() { echo $((limit - SECONDS)); }

failed=()
run() { # run NAME SECONDS COMMAND...: its text to NAME.txt; at most so long, and never beyond the end
    local name=$1 most=$2
    shift 2
    [ "$(left)" -lt "$most" ] && most=$(left)
    [ "$most" -gt 5 ] || { failed+=("$name: no time left"); return; }
    echo "== $name: at most $most s"
    timeout --kill-after=5 "$most" "$@" >"$out/$name.txt" 2>&1
    local status=$?
    [ $status -eq 0 ] || failed+=("$name: exit status $status; $(tail -n 1 "$out/$name.txt")")
    tail -n 3 "$out/$name.txt"
}
bench() { # bench NAME SECONDS OPTIONS...: no case begins in the last quarter of its time
    local name=$1 most=$2
    shift 2
    [ "$(left)" -lt "$most" ] && most=$(left)
    run "$name" "$most" "$python" -m fastadam bench --seconds $((most * 3 / 4 + 1)) --rounds 9 \
        --json "$out/$name.json" --plot "$out/$name.png" "$@"
}

run tests 150 "$python" -m pytest -m gpu -q tests
bench float32-sizes 110 --backend cuda,numba --sizes 2^10,2^13,2^16,2^18,2^20,2^22,2^24,2^26
bench float32-large 70 --backend cuda --peers "torch fused cuda" --sizes 2^28,2^30
bench float32-workloads 100 --backend cuda --workload mlp,resnet50,vit-b,gpt2,bert-large,gpt2-xl
for dtype in $("$python" -c "from fastadam.arrays import DTYPES; print(*(d for d in DTYPES if d != 'float32'))"); do
    bench "$dtype-sizes" 60 --backend cuda --dtype "$dtype" --sizes 2^14,2^20,2^24,2^28
done

{
    "$python" benchmarks/report.py --summary "$out"/*.json
    tail -n 1 "$out/tests.txt"
    for text in "${failed[@]+"${failed[@]}"}"; do echo "FAILED $text"; done
    echo "$SECONDS s; everything is in $out"
} 2>&1 | tee "$out/summary.txt"
[ ${#failed[@]} -eq 0 ]
