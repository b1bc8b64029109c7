#!/bin/sh
# Builds tests/cpp/pool_stress.cpp with ThreadSanitizer, then with AddressSanitizer and
# UndefinedBehaviorSanitizer, and runs it. Usage: tools/sanitize_pool.sh [rounds]; CXX names the
# compiler.
set -eu
cd "$(dirname "$0")/.."
rounds=${1:-200}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

for sanitizer in thread address,undefined; do
  echo "pool_stress with -fsanitize=$sanitizer"
  "${CXX:-c++}" -std=c++20 -O1 -g -Wall -Wextra -Werror -fsanitize="$sanitizer" \
    -fno-sanitize-recover=all -Isrc/cpp -pthread -o "$build/pool_stress" \
    tests/cpp/pool_stress.cpp src/cpp/threads/barrier.cpp src/cpp/machine/cpu.cpp src/cpp/threads/pool.cpp
  # The forked child starts threads of its own, which TSan refuses unless told otherwise.
  TSAN_OPTIONS="halt_on_error=1 die_after_fork=0" timeout 600 "$build/pool_stress" "$rounds"
done
