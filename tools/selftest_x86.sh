#!/usr/bin/env bash
# Runs slmq_selftest on emulated x86-64 CPUs, whose tables this machine's own CPU may lack, and compares
# its hashes with those that the package ships.
#
#   skylake           AVX-512 without VNNI      avx512vnni and amx_int8 are refused
#   icelake           AVX-512 with VNNI         avx512vnni
#   arrowlake         VNNI for AVX2 alone       avxvnni
#   sapphire rapids   AMX                       amx_int8; refused where its tiles miscompute
#
#   tools/selftest_x86.sh [SELFTEST]
#
# SELFTEST is a static slmq_selftest of this source; without it one is built (JOBS=N files at once,
# default: all CPUs). The first three need bochscpu-python 0.4.0 in $PYTHON (default python3), the last
# one Bochs 3.0: see tools/emulate_avx512.sh and tools/emulate_amx.sh. Those that are missing are left out,
# and it is said. Each table takes half a minute. Status 0: the same; 1: not; 69: nothing to run it on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3} bochs=${BOCHS:-${BOCHS_ROOT:-}/usr/bin/bochs-bin} user='' amx=''
if "$python" -c 'import importlib.metadata as m; m.version("bochscpu-python")' 2>/dev/null; then user=1; fi
if [ -x "$bochs" ] && grep -aq TDPBSSD "$bochs"; then amx=1; fi
if [ -z "$user$amx" ]; then
  echo "selftest_x86: needs python3 -m pip install bochscpu-python==0.4.0 (for \$PYTHON), or Bochs 3.0" \
    '(Debian 13: apt-get install bochs bochs-term; $BOCHS or $BOCHS_ROOT)' >&2
  exit 69
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
selftest=${1:-}
if [ -z "$selftest" ]; then
  { cmake -S . -B "$work/build" -DSLMQ_SELFTEST=ON -DSLMQ_PYTHON=OFF &&
    cmake --build "$work/build" --parallel "${JOBS:-$(nproc)}" --target slmq_selftest; } >"$work/log" 2>&1 ||
    { tail -n 40 "$work/log" >&2; exit 1; }
  selftest=$work/build/slmq_selftest
fi

grep -v '^#' src/slmq/machine/selftest.txt | awk '{print $1, $2}' >"$work/wanted"
status=0
complain() {
  echo "DIFFERS: $*"
  status=1
}
gives() { # NAME TABLE EMULATOR...
  local name=$1 table=$2
  shift 2
  "$@" "$selftest" --isa "$table" --threads 1 >"$work/said" 2>"$work/errors" ||
    { complain "$name $table: status $?"; cat "$work/errors"; grep -vE '[0-9a-f]{16}$' "$work/said" || :; }
  awk -v "table=$table" '$1 == table && NF == 3 {print $2, $3}' "$work/said" >"$work/found"
  if cmp -s "$work/wanted" "$work/found"; then
    echo "$name $table: $(wc -l <"$work/found") hashes are the package's"
  else
    complain "$name $table, from the package (<) to there (>):"
    diff "$work/wanted" "$work/found" || :
  fi
}
refuses() { # NAME TABLE EMULATOR...
  local name=$1 table=$2 answer=0
  shift 2
  "$@" "$selftest" --isa "$table" --threads 1 >"$work/said" 2>"$work/errors" || answer=$?
  if [ $answer = 2 ] && grep -q "'$table' cannot run on this CPU" "$work/errors"; then
    echo "$name $table: $(sed 's/.*cannot run on this CPU: it /refused, it /' "$work/errors")"
  else
    complain "$name $table: expected to be refused, got status $answer"
  fi
}

if [ -n "$user" ]; then
  user=(tools/emulate_avx512.sh --user)
  refuses skylake avx512vnni "${user[@]}" -c skylake
  refuses skylake amx_int8 "${user[@]}" -c skylake
  gives icelake avx512vnni "${user[@]}" -c icelake
  refuses arrowlake avx512vnni "${user[@]}" -c arrowlake
  gives arrowlake avxvnni "${user[@]}" -c arrowlake
else
  echo "skylake, icelake, arrowlake: left out: $python has no bochscpu-python"
fi
if [ -n "$amx" ]; then
  gives 'sapphire rapids' amx_int8 tools/emulate_amx.sh
  refuses 'sapphire rapids, wrong tiles,' amx_int8 tools/emulate_amx.sh -u
else
  echo "sapphire rapids: left out: no Bochs 3.0 as $bochs"
fi
[ $status != 0 ] || echo OK
exit $status
