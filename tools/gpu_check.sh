#!/usr/bin/env bash
# Everything that needs a GPU: tools/gpu_check.sh [PARTS...], in the root of the source tree.
#   operations  every operation against the reference, odd, tiny, large and degenerate shapes
#   models      golden cases in fp32 and bf16, training steps, the program with --device cuda
#   sanitizer   compute-sanitizer memcheck and racecheck over the operations' smaller cases
#   period      a period of 26B-A4B at real width, fp32 and bf16, against transformers (Python)
#   bench       times, beside transformers on the same GPU (Python)
# All but sanitizer by default. BUILD (build) is a build folder, or a folder with the executables of
# one that was configured with -DLAPIDARY_TEST_ROOT=. . Prints a table; ends with 1 if a row failed.
# LOGS (a temporary folder) keeps what the parts printed.
set -uo pipefail
cd "$(dirname "$0")/.."
build=${BUILD:-build}
logs=${LOGS:-$(mktemp -d)}
mkdir -p "$logs"
executable() {  # of this name, in a build folder or a flat one
  for at in "$build/$1" "$build/bin/$1" "$build/tests/$1"; do
    [ -x "$at" ] && { realpath "$at"; return; }
  done
  echo "gpu_check: no $1 in $build" >&2
  exit 2
}
program=$(executable lapidary) || exit 2
unit=$(executable lapidary_unit_tests) || exit 2
golden=$(executable lapidary_golden_tests) || exit 2
e2e=$(executable lapidary_e2e_tests) || exit 2
export LAPIDARY_TEST_DEVICE=cuda LAPIDARY_TEST_PROGRAM=$program OMP_WAIT_POLICY=passive
failed=0
rows=()

row() {  # row NAME COMMAND...
  local name=$1 start=$SECONDS log code result
  shift
  log="$logs/${name//[^A-Za-z0-9]/_}.log"
  "$@" > "$log" 2>&1
  code=$?
  result=$(grep -E '^\[  PASSED|^\{"tokens_routed|ERROR SUMMARY|RACECHECK SUMMARY' "$log" | tail -1)
  [ $code = 0 ] || { failed=1; result="FAILED ($code) ${result}"; }
  rows+=("$(printf '%-34s %5d s  %s' "$name" $((SECONDS - start)) "$result")")
  echo "${rows[-1]}"
  if [ $code != 0 ]; then
    grep -vE '^\[ *(RUN|OK|-|=)|^Note|^$|main\(\)' "$log" | tail -n "${FAILURE_LINES:-15}" | cut -c1-300
  fi
}

# Tests that compare with the reference on the backend under test; the others are the host's own.
operations() {
  local family
  for family in CpuNorm CpuRope CpuGeglu CpuElementwise CpuEmbedding CpuStream CpuAdamW \
    CpuAttention Matmul.EqualsReference CpuMoe CpuLoss CpuRouter Random CudaRandom; do
    row "$family" "$unit" --gtest_filter="${family}*-*Refuses*:*Scratch*:*ManyShapes*"
  done
}

models() {
  row "golden fp32" "$golden" --gtest_filter='Golden/F32*'
  row "golden bf16" "$golden" --gtest_filter='*Bf16*'
  row "recomputation and packing" "$golden" --gtest_filter='*Recompute*:Packing*'
  row "memory plans" "$unit" --gtest_filter='*MemoryPlans*:Models/Initialize*'
  row "training steps" "$unit" --gtest_filter='TrainStep*:AdamWOptimizer*'
  row "program" "$e2e" --gtest_filter='OnGpu*:Cuda*'
}

sanitizer() {
  local tool=${SANITIZER:-compute-sanitizer} kind rows
  rows='CpuNorm.ForwardInPlace:CpuNorm.BackwardInPlace:CpuRope.Forward:CpuGeglu.Backward'
  rows+=':CpuEmbedding.Backward*:CpuMoe.GatherAndCombine:CpuMoe.Sort:CpuAdamW.EqualsReference'
  memcheck() { timeout 400 "$tool" --tool memcheck --error-exitcode 9 "$@"; }
  # racecheck does not know the barriers inside cuBLASLt's own kernels (nvjet_*), and crashes when
  # it is told to leave them out: what it says of them does not count.
  racecheck() {
    timeout 400 "$tool" --tool racecheck "$@" | tee "$logs/races"
    [ "${PIPESTATUS[0]}" = 0 ] && ! grep 'Race reported' "$logs/races" | grep -qv ' at nvjet_'
  }
  for kind in memcheck racecheck; do
    check() { row "$kind: $1" $kind "${@:2}"; }
    check "rows" "$unit" --gtest_filter="$rows"
    check "grouped products" "$unit" --gtest_filter='CpuMoe.GroupedMatmul:CpuMoe.GroupedWeight*'
    check "large heads" "$unit" --gtest_filter='CpuAttention.LargeHeads'
    check "loss" "$unit" --gtest_filter='CpuLoss.LongRows*'
    check "a model, fp32" "$golden" --gtest_filter='Golden/F32.LogitsLossAndGradients/moe_text'
    check "a model, bf16" "$golden" --gtest_filter='Bf16Trained*'
    check "training steps" "$unit" --gtest_filter='TrainStep.LayerByLayerChangesNoBit'
  done
}

period() {
  "$program" inspect 26b-a4b --print-config > "$logs/26b-a4b.json"
  row "period against transformers" python3 tests/gpu/period_against_transformers.py \
    --lapidary "$program" --config-json "$logs/26b-a4b.json"
  row "period in bf16, 2048 tokens" python3 tests/gpu/period_against_transformers.py --dtype bf16 \
    --tokens 2048 --experts 8 --lapidary "$program" --config-json "$logs/26b-a4b.json"
}

bench() {
  for what in period head; do
    row "bench $what" python3 bench/reference.py "$what" --config 26b-a4b --lapidary "$program"
    grep -vE '^\{' "$logs/bench_$what.log"
  done
}

[ $# -gt 0 ] || set -- operations models period bench
for part in "$@"; do
  case $part in
    operations|models|sanitizer|period|bench) "$part" ;;
    *) echo "gpu_check: no part \"$part\"" >&2; exit 2 ;;
  esac
done
echo
printf '%s\n' "${rows[@]}"
exit $failed
