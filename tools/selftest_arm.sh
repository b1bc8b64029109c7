#!/usr/bin/env bash
# Builds slmq_selftest for 64-bit ARM, runs it on three emulated CPUs and compares its hashes with
# those of this machine: every kernel and a tiny model must give the same bits everywhere.
#
#   cortex-a72    ARMv8.0 (Raspberry Pi 4)        scalar, neon
#   neoverse-n1   ARMv8.2 with dot products       + neon_dotprod
#   max           all that QEMU knows             + neon_i8mm
#
#   tools/selftest_arm.sh [BUILD_DIRECTORY]
#
# A build directory that is given is kept and used again. NATIVE=FILE names a slmq_selftest built for
# this machine from the same source; without it one is built, too. JOBS=N compiles so many files at
# once (default: all CPUs). Status 0: the same; 1: not; 69: a program is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

missing=()
for program in cmake aarch64-linux-gnu-g++ qemu-aarch64-static; do
  command -v "$program" >/dev/null || missing+=("$program")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "selftest_arm: needs ${missing[*]}; on Debian and Ubuntu:" \
    'apt-get install cmake g++-aarch64-linux-gnu qemu-user-static' >&2
  exit 69
fi

if [ $# -gt 0 ]; then
  mkdir -p "$1"
  work=$(cd "$1" && pwd)
else
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
fi

build() { # DIRECTORY cmake-options...
  local directory=$1 log=$1.log
  shift
  { cmake -S . -B "$directory" -DSLMQ_SELFTEST=ON -DSLMQ_PYTHON=OFF "$@" &&
    cmake --build "$directory" --parallel "${JOBS:-$(nproc)}" --target slmq_selftest; } >"$log" 2>&1 ||
    { tail -n 40 "$log" >&2; exit 1; }
}
build "$work/arm64" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
if [ -z "${NATIVE:-}" ]; then
  build "$work/native"
  NATIVE=$work/native/slmq_selftest
fi

hashes() { sed -nE "s/^$1 +([^ ]+ +[0-9a-f]{16})\$/\1/p" "$2"; } # ISA FILE
status=0
complain() {
  echo "DIFFERS: $*"
  status=1
}

"$NATIVE" >"$work/native.txt" || complain "this machine's own ISAs, see above"
hashes scalar "$work/native.txt" >"$work/wanted.txt"
[ -s "$work/wanted.txt" ] || { echo "selftest_arm: $NATIVE prints no hashes" >&2; exit 1; }

check() { # CPU ISAs...
  local cpu=$1 isa said=$work/$1.txt
  shift
  timeout 900 qemu-aarch64-static -cpu "$cpu" "$work/arm64/slmq_selftest" >"$said" 2>&1 ||
    { complain "$cpu: status $?"; grep -vE '[0-9a-f]{16}$' "$said" || :; }
  for isa in "$@"; do
    hashes "$isa" "$said" >"$work/found.txt"
    if cmp -s "$work/wanted.txt" "$work/found.txt"; then
      echo "$cpu $isa: $(wc -l <"$work/found.txt") hashes are this machine's"
    else
      complain "$cpu $isa, from this machine (<) to there (>):"
      diff "$work/wanted.txt" "$work/found.txt" | grep '^[<>]' || :
    fi
  done
}
check cortex-a72 scalar neon
check neoverse-n1 scalar neon neon_dotprod
check max scalar neon neon_dotprod neon_i8mm
[ $status = 0 ] && echo OK
exit $status
