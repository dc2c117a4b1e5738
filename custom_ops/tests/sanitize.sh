#!/usr/bin/env bash
# The operator library under the sanitizers of GCC or Clang, on Linux:
#   1. threads: the C++ tests, one weight used by several threads at once;
#   2. addresses, undefined behaviour and leaks: the C++ tests;
#   3. the same inside of onnxruntime and Python: the operator's Python tests and a run of the fuzzer.
# Python and onnxruntime leave a few things of their own to the end of the process. A leak counts where a function of this
# library is on its stack, whoever allocated; nothing else is filtered. That one is seen is tried with a library that leaks.
#
#     PYTHON=.venv/bin/python custom_ops/tests/sanitize.sh [build folder]      # a Python with onnxpq[test]
set -euo pipefail
source=$(cd "$(dirname "$0")/.." && pwd)
root=$(dirname "$source")
python=$(realpath -s "$(command -v "${PYTHON:-python3}")")
build=${1:-}
if [ -z "$build" ]; then
  build=$(mktemp -d)
  trap 'rm -rf "$build"' EXIT
fi
mkdir -p "$build"
cd "$root"

build_with() {  # sanitizers, folder, targets
  cmake -S "$source" -B "$build/$2" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DONNXPQ_BUILD_TESTS=ON -DONNXPQ_WERROR=ON \
    "-DONNXPQ_SANITIZE=$1" > "$build/$2.log"
  cmake --build "$build/$2" --parallel 2 --target "${@:3}" >> "$build/$2.log"
}

echo "-- threads"
build_with thread thread test_threads
"$build/thread/test_threads"

echo "-- addresses, undefined behaviour, leaks: C++"
build_with address,undefined address test_kernels test_threads onnxpq_ops leaking_ops
"$build/address/test_kernels"
"$build/address/test_threads"

# Python itself is not built for the sanitizer, so that its runtime must be there first; libstdc++ too, for exceptions.
compiler=$(sed -n 's/^CMAKE_CXX_COMPILER:[A-Z]*=//p' "$build/address/CMakeCache.txt")
preload="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libstdc++.so)"

# Python with the sanitizer. Reports go to files "$build/report.PID".
sanitized() {
  rm -f "$build"/report.*
  # All errors but leaks abort the process. Leaks leave its exit code alone: which of them count is decided below.
  # intercept_tls_get_addr: up to GCC 13 and LLVM 16 the search for leaks takes some thread-local blocks of dlopened libraries
  # for those of a glibc before 2.25, by their address alone, and then reads where nothing is: an abort ("Tracer caught signal
  # 11") in one run of some dozens. Without it such blocks are not searched for pointers, which can only show more leaks.
  PYTHONMALLOC=malloc OMP_NUM_THREADS=1 LD_PRELOAD=$preload \
    ASAN_OPTIONS="abort_on_error=1:exitcode=0:detect_leaks=1:intercept_tls_get_addr=0:malloc_context_size=25:log_path=$build/report" \
    UBSAN_OPTIONS=print_stacktrace=1 "$python" "$@" && return
  local status=$?
  cat "$build"/report.* >&2 || true
  return "$status"
}
our_leaks() { cat "$build"/report.* 2> /dev/null | grep -cE "$source/src|onnxpq_ops|leaking_ops" || true; }

echo "-- the library that leaks must be seen to leak"
sanitized "$source/tests/fuzz.py" --library "$build/address/libleaking_ops.so" \
  --case '{"seed": 1, "out": 40, "in_features": 33, "d": 4, "codewords": 16, "groups": 9, "stages": 1}'
[ "$(our_leaks)" -gt 0 ] || { echo "no leak was seen" >&2; exit 1; }
echo "seen: $(our_leaks) frames of the library"

no_leaks() {
  [ "$(our_leaks)" -eq 0 ] && return
  echo "leaks:" >&2
  cat "$build"/report.* >&2
  exit 1
}

echo "-- the fuzzer"
sanitized "$source/tests/fuzz.py" --cases "${FUZZ_CASES:-400}" --seed 1 --library "$build/address/libonnxpq_ops.so"
no_leaks

echo "-- the operator's Python tests"
mkdir -p "$build/site"
cp -r onnxpq "$build/site/"
mkdir -p "$build/site/onnxpq/lib"
cp "$build/address/libonnxpq_ops.so" "$build/site/onnxpq/lib/"
# Safe path: not the package in the current folder. No conftest.py: it loads torch, which these tests have no use for.
PYTHONSAFEPATH=1 PYTHONPATH=$build/site:$root/tests sanitized -m pytest -q --noconftest -p no:cacheprovider \
  tests/custom_ops/test_pq_matmul_op.py tests/custom_ops/test_pq_gather_op.py tests/custom_ops/test_concurrency.py
no_leaks
