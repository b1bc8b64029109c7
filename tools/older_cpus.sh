#!/usr/bin/env bash
# Runs slmq on emulated x86-64 CPUs that lack what this machine's has: no illegal instruction, the same
# bits.
#
#   qemu64     x86-64 with SSE3, as in 2004      slmq_selftest
#   Nehalem    SSE4.2, no AVX (2008)             Python: a model's answer, slmq doctor --selftest
#   Haswell    AVX2, no AVX-512 (2013)           both
#
#   tools/older_cpus.sh [MODEL [OPTIONS of tools/answer.py]]
#
# MODEL is what slmq loads; without it a tiny one is made. PYTHON=FILE: an interpreter with slmq (default
# python3; NumPy needs SSE4.2, so there is no Python on qemu64). SELFTEST=FILE: a slmq_selftest of the
# same source; without it one is built (JOBS=N files at once, default: all CPUs). Status 0: all well; 1:
# not; 69: a program is missing. QUICK=1 leaves out `slmq doctor --selftest`, half of the time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
qemu=$(command -v qemu-x86_64-static || command -v qemu-x86_64 || :)
missing=()
[ -n "$qemu" ] || missing+=(qemu-x86_64)
for program in c++ "$python"; do
  command -v "$program" >/dev/null || missing+=("$program")
done
[ -n "${SELFTEST:-}" ] || command -v cmake >/dev/null || missing+=(cmake)
if [ ${#missing[@]} -gt 0 ]; then
  echo "older_cpus: needs ${missing[*]}; on Debian and Ubuntu:" \
    'apt-get install cmake g++ python3 qemu-user-static' >&2
  exit 69
fi
python=$("$python" -c 'import slmq, sys; print(sys.executable)') # what an emulator can run: no script

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
complain() {
  echo "WRONG: $*"
  status=1
}
on() { # CPU command...
  local cpu=$1
  shift
  timeout 1800 "$qemu" -cpu "$cpu" "$@" 2> >(grep -v "warning: TCG doesn't support" >&2 || :)
}

# An emulator that runs everything proves nothing: Nehalem must refuse AVX, Haswell AVX-512.
refuses() { # CPU what instruction
  echo "int main() { __asm__ volatile(\"$3\"); }" >"$work/control.cpp"
  c++ -static -o "$work/control" "$work/control.cpp"
  if on "$1" "$work/control" >"$work/control.txt" 2>&1; then
    complain "$qemu -cpu $1 runs $2: nothing that follows shows anything"
  else
    echo "$1: dies of $2, as the real one would"
  fi
}
refuses qemu64 AVX 'vpxor %xmm0, %xmm0, %xmm0'
refuses Nehalem AVX 'vpxor %xmm0, %xmm0, %xmm0'
refuses Haswell AVX-512 'vpxord %zmm0, %zmm0, %zmm0'

if [ -z "${SELFTEST:-}" ]; then
  { cmake -S . -B "$work/build" -DSLMQ_SELFTEST=ON -DSLMQ_PYTHON=OFF &&
    cmake --build "$work/build" --parallel "${JOBS:-$(nproc)}" --target slmq_selftest; } \
    >"$work/build.txt" 2>&1 || { tail -n 40 "$work/build.txt" >&2; exit 1; }
  SELFTEST=$work/build/slmq_selftest
fi
check() { # CPU ISA: the hashes of the package
  local cpu=$1 isa=$2 said=$work/$1.txt
  if on "$cpu" "$SELFTEST" --isa "$isa" --against src/slmq/machine/selftest.txt >"$said"; then
    echo "$cpu: slmq_selftest, $isa: $(grep -cE '[0-9a-f]{16}$' "$said") hashes are the package's"
  else
    complain "$cpu: slmq_selftest, $isa: status $?"
    grep -vE '[0-9a-f]{16}$' "$said" || :
  fi
}
check qemu64 scalar
check Haswell avx2

# Answers: this machine's best table decides what is right.
"$python" tools/answer.py "$@" >"$work/wanted.json"
same() { # label command...
  local label=$1
  shift
  if "$@" "$python" tools/answer.py "${arguments[@]}" >"$work/found.json" 2>"$work/said.txt" &&
    cmp -s "$work/wanted.json" "$work/found.json"; then
    echo "$label: the same answer ($(tail -n 1 "$work/said.txt"))"
  else
    complain "$label: not the answer of this machine's best kernels"
    tail -n 5 "$work/said.txt"
  fi
}
arguments=("$@")
for isa in $("$python" -c 'import slmq; print(*(n for n, table in slmq.isa.items() if table))'); do
  same "this machine, SLMQ_ISA=$isa" env SLMQ_ISA="$isa"
done
same Nehalem on Nehalem
same Haswell on Haswell
if on Nehalem -E SLMQ_ISA=avx2 "$python" tools/answer.py "$@" >"$work/forced.txt" 2>&1; then
  complain 'Nehalem: SLMQ_ISA=avx2 is not refused'
elif grep -q "ISA 'avx2' cannot run on this CPU" "$work/forced.txt"; then
  echo 'Nehalem: SLMQ_ISA=avx2 is an error, and says why'
else
  complain "Nehalem: SLMQ_ISA=avx2 ends otherwise: $(tail -n 1 "$work/forced.txt")"
fi
if [ -n "${QUICK:-}" ]; then
  :
elif on Nehalem "$python" -m slmq.cli doctor --selftest >"$work/doctor.txt"; then
  echo "Nehalem: slmq doctor --selftest: $(grep '^scalar:' "$work/doctor.txt")"
else
  complain "Nehalem: slmq doctor --selftest: status $?"
  cat "$work/doctor.txt"
fi
cat "$work/wanted.json"
[ $status = 0 ] && echo OK
exit $status
