#!/usr/bin/env bash
# Run a static x86-64 Linux executable on an emulated Intel CPU that has AVX-512
# F/CD/BW/DQ/VL, VNNI, VBMI and BITALG (Bochs' Ice Lake, i7-1065G7), on a machine
# whose own CPU has none of them. Prints what the program prints and exits with
# its exit status. Needs no root and writes only in a temporary directory.
#
#   tools/emulate_avx512.sh [options] PROGRAM [ARGUMENT...]
#
#   -k FILE       the Linux kernel to boot: a vmlinuz, or a linux-image .deb
#                 (default: $EMULATE_KERNEL, else the newest /boot/vmlinuz-*)
#   -f SRC[=DST]  put the file SRC into the guest as DST (default /NAME); repeat
#   -e NAME=VALUE set an environment variable of the program; repeat
#   -i            give the program this script's standard input
#   -m MIB        the guest's memory (default 512; files given with -f are
#                 held there twice while it boots)
#   -t SECONDS    stop it after so long, with status 124 (default 3600)
#   -v            the kernel's messages, and times, on standard error
#   --user        run the program alone on Bochs' CPU, with no kernel (below)
#   -c CPU        with --user, another CPU: haswell (AVX2), skylake (AVX-512
#                 without VNNI), icelake (the default), or arrowlake (VNNI for
#                 AVX2, no AVX-512)
#
# Without --user it boots Linux on Debian's Bochs. The program sees an ordinary
# one-CPU Linux: threads, signals and files (those of -f) work. It starts in /,
# where it is /prog. Packages (Debian 12):
#
#   apt-get install --no-install-recommends bochs bochs-term gcc libc6-dev lz4
#   apt-get download "$(apt-cache depends linux-image-cloud-amd64 |
#       sed -n 's/.*Depends: \(linux-image-[0-9]\)/\1/p')"      # a .deb for -k
#
# With --user a few lines of Python load the program, and answer its system
# calls (about 40; no threads, no signal handlers); files that -f does not name
# are read from this machine. Nothing is booted, so a short test takes a second.
#
#   python3 -m pip install bochscpu-python==0.4.0       # $PYTHON: which python3
#
# Speed: 30 to 50 million guest instructions a second of CPU time, 1.5 million
# 512-bit FMAs or 4 million 512-bit VPDPBUSDs; booting costs 11 to 14 seconds of
# CPU time. A 'rep movsb' is one instruction for each byte, so the C library in
# the program is told (GLIBC_TUNABLES) to copy with vector moves instead.
#
# Known to differ from a real CPU: Bochs 2.7, thus Debian's, rounds VCVTPS2PH's
# exact ties away from zero where a real CPU rounds them to even, in every
# vector length (--user has a newer Bochs, which is right). The rest that was
# compared with a real CPU or scalar code agrees bit for bit: VCVTPH2PS, VFMADD,
# VFNMADD, add, sub, mul, div, sqrt, min, max, compare, round, the conversions to
# and from integers, VPMADDUBSW, VPMADDWD, VPSHUFB, VPACKSSDW, VPDPBUSD(S).
#
# Exit status: the program's, or 128+N where signal N ended it; 2 for wrong usage,
# 69 where something that is needed is missing, 70 where the emulator failed.
set -euo pipefail

die() { printf '%s: %s\n' "${0##*/}" "$2" >&2; exit "$1"; }
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p;}' "$0" >&2; exit 2; }

kernel=${EMULATE_KERNEL:-} files=() env=() stdin=0 mem=512 limit=3600 verbose=0 user=0 cpu=
while [ $# -gt 0 ]; do
  case $1 in
    -[kfemtc]) [ $# -ge 2 ] || usage
      case $1 in
        -c) cpu=$2 ;; -k) kernel=$2 ;; -f) files+=("$2") ;; -e) env+=("$2") ;; -m) mem=$2 ;; -t) limit=$2 ;;
      esac
      shift 2 ;;
    -i) stdin=1; shift ;;
    -v) verbose=1; shift ;;
    --user) user=1; shift ;;
    --) shift; break ;;
    -*) usage ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || usage
case $mem$limit in *[!0-9]*|'') usage ;; esac
[ -z "$cpu" ] || [ $user = 1 ] || die 2 "-c is for --user alone"
# Bochs' maker of the CPU, and what the system saves of its registers.
case $cpu in
  ''|icelake) model=29create_corei7_icelake_u xcr0=0xe7 ;;
  skylake) model=29create_corei7_skylake_x xcr0=0xe7 ;;
  arrowlake) model=23create_arrow_lake xcr0=7 ;;
  haswell) model=32create_corei7_haswell_4770 xcr0=7 ;;
  *) die 2 "-c takes haswell, skylake, icelake or arrowlake" ;;
esac
if [ "$mem" -lt 128 ] || [ "$mem" -gt 2048 ]; then die 2 "-m takes 128 to 2048 MiB"; fi
prog=$1; shift
if [ ! -f "$prog" ] || [ ! -r "$prog" ]; then die 2 "$prog: no such file"; fi
[ "$(od -An -tx1 -N20 -- "$prog" | tr -d ' \n' | cut -c1-10,37-40)" = 7f454c46023e00 ] ||
  die 2 "$prog is not an x86-64 ELF executable"
if LC_ALL=C grep -aqE '/ld-linux-x86-64\.so|/ld-musl-x86_64\.so' <(head -c 4096 -- "$prog"); then
  die 2 "$prog is dynamically linked: link it with -static"
fi
need() { command -v "$1" >/dev/null || die 69 "$1 is missing: apt-get install --no-install-recommends $2"; }
need gcc "gcc libc6-dev"
for f in ${files[@]+"${files[@]}"}; do [ -r "${f%%=*}" ] || die 2 "${f%%=*}: cannot be read"; done
env=(PATH=/ HOME=/ GLIBC_TUNABLES=glibc.cpu.x86_rep_movsb_threshold=0x1000000000:glibc.cpu.x86_rep_stosb_threshold=0x1000000000
  ${env[@]+"${env[@]}"})

here=$PWD
tmp=$(mktemp -d "${TMPDIR:-/tmp}/avx512.XXXXXX")
emulator=
# shellcheck disable=SC2317  # reached by the trap
cleanup() {
  [ -z "$emulator" ] || { kill -KILL "$emulator" && wait "$emulator"; } 2>/dev/null || :
  rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

#----------------------------------------------------------------- without a kernel
if [ $user = 1 ]; then
  python=${PYTHON:-python3}
  "$python" - <<'E' || die 69 "it needs: $python -m pip install bochscpu-python==0.4.0"
import importlib.metadata as m, sys
try:
    v = m.version("bochscpu-python")
except m.PackageNotFoundError:
    sys.exit(1)
sys.exit(v != "0.4.0")
E
  # The package always makes a Cannon Lake, which lacks VNNI: its call that makes the
  # CPU's description is answered here with another of its own. The other two functions
  # are in the C library since glibc 2.38 only.
  cat > "$tmp/cpu.c" <<'E'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
extern unsigned long long plain_strtoull(const char *, char **, int) __asm__("strtoull");
extern int plain_vsscanf(const char *, const char *, va_list) __asm__("vsscanf");
unsigned long long __isoc23_strtoull(const char *s, char **e, int b) { return plain_strtoull(s, e, b); }
int __isoc23_sscanf(const char *s, const char *f, ...) {
  va_list a;
  va_start(a, f);
  int r = plain_vsscanf(s, f, a);
  va_end(a);
  return r;
}
static char path[4096];
static int find(struct dl_phdr_info *i, size_t n, void *p) {
  (void)n, (void)p;
  if (!i->dlpi_name || !strstr(i->dlpi_name, "/_bochscpu")) return 0;
  snprintf(path, sizeof path, "%s", i->dlpi_name);
  return 1;
}
void *_Z23create_corei3_cnl_cpuidP8BX_CPU_C(void *cpu) {
  void *lib, *(*make)(void *) = 0;
  if (dl_iterate_phdr(find, 0) && (lib = dlopen(path, RTLD_NOLOAD | RTLD_NOW)))
    make = (void *(*)(void *))dlsym(lib, MODEL);
  if (!make) {
    fputs("bochscpu: no " MODEL " in this build\n", stderr);
    exit(70);
  }
  return make(cpu);
}
E
  gcc -O2 -shared -fPIC -DMODEL="\"_Z${model}_cpuidP8BX_CPU_C\"" -o "$tmp/cpu.so" "$tmp/cpu.c" -ldl || die 69 "gcc failed: apt-get install libc6-dev"
  cat > "$tmp/run.py" <<'E'
import ctypes, os, stat, struct, sys, time

here, xcr0, nenv, nfiles = sys.argv[1], *(int(a, 0) for a in sys.argv[2:5])
rest = [os.fsencode(a) for a in sys.argv[5:]]
environ, files, argv = rest[:nenv], rest[nenv:nenv + nfiles], rest[nenv + nfiles:]
named = {}
for f in files:
    src, _, dst = f.partition(b"=")
    named[os.path.normpath(b"/" + (dst or os.path.basename(src)).lstrip(b"/"))] = os.path.join(os.fsencode(here), src)
os.environ.pop("LD_PRELOAD", None)

import bochscpu, bochscpu.cpu, bochscpu.memory

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

# Guest addresses are guest-physical addresses, and lie in one arena of the host's.
TABLES, ELF_BASE, STACK, MMAP, TOP = 0x1000, 0x10000000, 0xC0000000, 0x100000000, 0x1000000000
arena = libc.mmap(None, TOP, 3, 0x4022, -1, 0)
if arena in (None, ctypes.c_void_p(-1).value):
    print("emulator: no address space", file=sys.stderr); os._exit(70)
regions = []  # [start, end) that the program may touch
present = set()

def leave(status):
    sys.stdout.flush(); sys.stderr.flush(); os._exit(status)

def fault(what, status):
    print("emulator: %s at rip %#x" % (what, sess.cpu.state.rip), file=sys.stderr); leave(status)

def inside(a, n=1):
    return any(s <= a and a + n <= e for s, e in regions)

def missing(gpa):
    gpa &= ~4095
    if gpa in present:
        return
    if not (TABLES <= gpa < TABLES + 0x3000 or any(s < gpa + 4096 and gpa < e for s, e in regions)):
        fault("memory access at %#x" % gpa, 139)
    present.add(gpa)
    bochscpu.memory.page_insert(gpa, arena + gpa)

def put(a, b):
    ctypes.memmove(arena + a, bytes(b), len(b))

def get(a, n):
    if n and not inside(a, n):
        raise OSError(14, "")
    return ctypes.string_at(arena + a, n)

def text(a):
    return ctypes.string_at(arena + a) if inside(a) else b""

def host(p):
    q = os.path.normpath(os.path.join(b"/", p))
    return named.get(q, q)

sess = bochscpu.Session()
sess.missing_page_handler = missing

image = open(os.path.join(os.fsencode(here), argv[0]), "rb").read()
kind, = struct.unpack_from("<H", image, 16)
base = ELF_BASE if kind == 3 else 0
entry, phoff = struct.unpack_from("<QQ", image, 24)
phnum, = struct.unpack_from("<H", image, 56)
end = phaddr = 0
for i in range(phnum):
    t, _, off, va, _, fsz, msz, _ = struct.unpack_from("<IIQQQQQQ", image, phoff + 56 * i)
    if t == 1:
        regions.append((base + va & ~4095, base + va + msz + 4095 & ~4095))
        put(base + va, image[off:off + fsz]); end = max(end, base + va + msz)
        if off <= phoff < off + fsz:
            phaddr = base + va + phoff - off
heap = brk = end + 0xFFFFF & ~0xFFFFF
regions += [(STACK - (16 << 20), STACK), (heap, heap)]
HEAP = len(regions) - 1
top, free = MMAP, {}

put(TABLES, struct.pack("<Q", TABLES + 0x1007))
put(TABLES + 0x1000, b"".join(struct.pack("<Q", i << 30 | 0x87) for i in range(512)))
GATE = TABLES + 0x2000
put(GATE, b"\x0f\x09\x48\x0f\x07")  # wbinvd, whose hook is the system call; sysretq

sp = STACK
def push(b):
    global sp
    sp -= len(b); put(sp, b); return sp
platform, random, name = push(b"x86_64\0"), push(bytes(range(16))), push(argv[0] + b"\0")
args, envs = [push(a + b"\0") for a in argv], [push(e + b"\0") for e in environ]
sp &= ~15
aux = [3, phaddr, 4, 56, 5, phnum, 6, 4096, 9, base + entry, 11, 0, 12, 0, 13, 0, 14, 0, 15, platform,
       16, 0x178BFBFF, 17, 100, 23, 0, 25, random, 31, name, 0, 0]
vector = [len(args)] + args + [0] + envs + [0] + aux
sp -= 8 * len(vector) + 8 * (len(vector) & 1)
put(sp, struct.pack("<%dQ" % len(vector), *vector))

def segment(selector, attr):
    s = bochscpu.Segment()
    s.present, s.selector, s.base, s.limit, s.attr = True, selector, 0, 0xFFFFFFFF, attr
    return s

st = bochscpu.State()
bochscpu.cpu.set_long_mode(st)
st.cr0, st.cr3, st.cr4, st.efer, st.xcr0 = 0x80050033, TABLES, 0x506F0, 0xD01, xcr0
st.mxcsr, st.mxcsr_mask, st.fpcw, st.fptw, st.rflags = 0x1F80, 0xFFFF, 0x37F, 0xFFFF, 2
st.lstar, st.star, st.sfmask = GATE, 0x23 << 48 | 0x10 << 32, 0x47700
st.cs = segment(0x33, 0xA0FB)
st.ss = st.ds = st.es = segment(0x2B, 0xC0F3)
st.fs = st.gs = segment(0, 0xC0F3)
st.rip, st.rsp = base + entry, sp
sess.cpu.state = st

def vectors(a, n):
    return [struct.unpack("<QQ", get(a + 16 * i, 16)) for i in range(n)]

def write_all(fd, b):
    n = 0
    while n < len(b):
        n += os.write(fd, b[n:])
    return n

def read_into(fd, a, n, at=None):
    b = os.read(fd, n) if at is None else os.pread(fd, n, at)
    put(a, b) if inside(a, max(1, len(b))) else fault("bad buffer", 139)
    return len(b)

def stat_into(a, s):
    put(a, struct.pack("<QQQIIIIQqqq6Q3q", s.st_dev, s.st_ino, s.st_nlink, s.st_mode, s.st_uid, s.st_gid, 0, s.st_rdev,
                       s.st_size, 4096, s.st_blocks, *(int(x) for t in (s.st_atime, s.st_mtime, s.st_ctime) for x in (t, 0)),
                       0, 0, 0))
    return 0

def mmap(addr, n, prot, flags, fd, off):
    global top
    n = n + 4095 & ~4095
    if flags & 0x10:
        a = addr
        if not inside(a, n):
            return -12
        libc.madvise(arena + a, n, 4)
    elif free.get(n):
        a = free[n].pop(); regions.append((a, a + n))
    else:
        a = top; top += n + 4096
        if top > TOP:
            return -12
        regions.append((a, a + n))
    if not flags & 0x20:
        put(a, os.pread(fd, n, off))
    return a

def munmap(a, n):
    n = n + 4095 & ~4095
    libc.madvise(arena + a, n, 4)
    if (a, a + n) in regions:  # pages of it stay readable: only faults are found less surely
        regions.remove((a, a + n)); free.setdefault(n, []).append(a)
    return 0

def mremap(a, old, new, flags):
    b = mmap(0, new, 3, 0x22, -1, 0)
    if b > 0:
        ctypes.memmove(arena + b, arena + a, min(old, new)); munmap(a, old)
    return b

def clock(_, a):
    t = time.clock_gettime_ns({0: 0, 1: 1, 2: 2, 3: 3}.get(_, 1)); put(a, struct.pack("<QQ", t // 10**9, t % 10**9)); return 0

def set_brk(a):
    global brk
    if heap <= a < STACK - (64 << 20):
        brk = a; regions[HEAP] = (heap, a + 4095 & ~4095)
    return brk

def at(fd, p):
    return host(text(p))

def opened(p, flags):
    return os.open(host(text(p)), flags & ~0o100) if not flags & 3 else -13

def readlink(p, a, n):
    if text(p) != b"/proc/self/exe":
        return -2
    b = os.path.abspath(os.path.join(os.fsencode(here), argv[0]))[:n]; put(a, b); return len(b)

def threads(*_):
    print("emulator: the program starts a thread or a process: run it without --user", file=sys.stderr); leave(70)

def futex(a, op, value, timeout, *_):
    if op & 127 not in (0, 9):
        return 0
    if struct.unpack("<I", get(a, 4))[0] != value & 0xFFFFFFFF:
        return -11
    return -110 if timeout else fault("the only thread waits for another", 70)

def uname(a):
    put(a, b"".join(x.ljust(65, b"\0") for x in (b"Linux", b"emulated", b"6.1.0", b"#1", b"x86_64", b""))); return 0

calls = {
    0: lambda fd, a, n: read_into(fd, a, n), 1: lambda fd, a, n: write_all(fd, get(a, n)),
    2: lambda p, fl, m: opened(p, fl), 3: lambda fd: (os.close(fd) if fd > 2 else None) or 0,
    4: lambda p, a: stat_into(a, os.stat(host(text(p)))), 5: lambda fd, a: stat_into(a, os.fstat(fd)),
    8: lambda fd, o, w: os.lseek(fd, ctypes.c_long(o).value, w), 9: mmap, 10: lambda *_: 0, 11: munmap, 12: set_brk,
    13: lambda *_: 0, 14: lambda *_: 0, 16: lambda *_: -25, 17: lambda fd, a, n, o: read_into(fd, a, n, o),
    19: lambda fd, v, n: sum(read_into(fd, p, k) for p, k in vectors(v, n)),
    20: lambda fd, v, n: write_all(fd, b"".join(get(p, k) for p, k in vectors(v, n))),
    21: lambda p, m: 0 if os.access(host(text(p)), m) else -2, 24: lambda: 0, 25: mremap, 28: lambda *_: 0,
    35: lambda *_: 0, 39: lambda: 1, 56: threads, 57: threads, 58: threads, 435: threads, 60: leave, 231: leave,
    63: uname, 79: lambda a, n: (put(a, b"/\0"), 2)[1], 89: readlink, 96: lambda a, z: clock(0, a),
    97: lambda r, a: (put(a, struct.pack("<QQ", 16 << 20, 2**64 - 1)), 0)[1], 99: lambda a: -38,
    102: lambda: 0, 104: lambda: 0, 107: lambda: 0, 108: lambda: 0, 131: lambda *_: 0, 157: lambda *_: -22,
    186: lambda: 1, 201: lambda a: int(time.time()), 202: futex, 203: lambda *_: 0,
    204: lambda p, n, a: (put(a, struct.pack("<Q", 1)), 8)[1], 218: lambda a: 1, 228: clock, 230: lambda *_: 0,
    234: lambda g, t, s: leave(128 + s), 257: lambda d, p, fl, m: opened(p, fl),
    262: lambda d, p, a, fl: stat_into(a, os.fstat(d) if fl & 0x1000 and not text(p) else os.stat(host(text(p)))),
    267: lambda d, p, a, n: readlink(p, a, n), 269: lambda d, p, m, f: 0 if os.access(host(text(p)), m) else -2,
    273: lambda *_: 0, 302: lambda p, r, n, o: (put(o, struct.pack("<QQ", 16 << 20, 2**64 - 1)) if o else None) or 0,
    318: lambda a, n, f: (put(a, os.urandom(n)), n)[1], 334: lambda *_: -38,
}

def system_call(s, cpu, *_):
    q = s.cpu.state
    n, a = q.rax, [q.rdi, q.rsi, q.rdx, q.r10, q.r8, q.r9]
    if n == 158 and a[0] == 0x1002:
        f = q.fs; f.base = a[1]; q.fs = f; q.rax = 0; s.cpu.state = q
        return
    try:
        call = calls.get(n)
        if call is None:
            if n != 158:
                print("emulator: system call %d is not known" % n, file=sys.stderr)
            r = -38
        else:
            if n in (0, 1, 3, 5, 8, 16, 17, 19, 20):
                a[0] = ctypes.c_int(a[0]).value
            elif n in (257, 262):
                a[0] = ctypes.c_int(a[0]).value
            elif n == 9:
                a[4] = ctypes.c_int(a[4]).value
            k = call.__code__
            r = call(*(a if k.co_flags & 4 else a[:k.co_argcount])) if call is not leave else leave(a[0] & 255)
    except OSError as e:
        r = -(e.errno or 5)
    except BaseException as e:
        print("emulator: system call %d: %r" % (n, e), file=sys.stderr); leave(70)
    q.rax = r & 2**64 - 1
    s.cpu.state = q

def exception(s, cpu, vector, code):
    fault("exception %d" % vector, {0: 136, 6: 132, 16: 136, 19: 136, 17: 135}.get(int(vector), 139))

hook = bochscpu.Hook()
hook.cache_cntrl, hook.exception = system_call, exception
sess.run([hook])
print("emulator: the CPU stopped", file=sys.stderr)
leave(70)
E
  started=$SECONDS
  [ $stdin = 1 ] || exec </dev/null
  LD_PRELOAD="$tmp/cpu.so" "$python" -B "$tmp/run.py" "$here" $xcr0 ${#env[@]} ${#files[@]} \
    "${env[@]}" ${files[@]+"${files[@]}"} "$prog" "$@" <&0 &
  emulator=$!
  while kill -0 $emulator 2>/dev/null; do
    [ $((SECONDS - started)) -lt "$limit" ] || die 124 "stopped after $limit seconds"
    sleep 0.1
  done
  status=0; wait $emulator || status=$?
  emulator=
  [ $verbose = 0 ] || echo "emulator: $((SECONDS - started)) s, status $status" >&2
  exit $status
fi
#---------------------------------------------------------------------- with Linux
need bochs "bochs bochs-term"
compgen -G '/usr/lib/*/bochs/plugins/libbx_term_gui.so' >/dev/null || compgen -G '/usr/lib/bochs/plugins/libbx_term_gui.so' >/dev/null ||
  die 69 "Bochs' terminal display is missing: apt-get install --no-install-recommends bochs-term"
need ld binutils
getkernel="a kernel is needed: apt-get download \"\$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \\(linux-image-[0-9]\\)/\\1/p')\", and give that .deb with -k"
if [ -z "$kernel" ]; then
  for f in $(compgen -G '/boot/vmlinuz-*' | sort -V); do [ ! -r "$f" ] || kernel=$f; done
  for f in $(compgen -G '/boot/vmlinuz-*-cloud-amd64' | sort -V); do [ ! -r "$f" ] || kernel=$f; done
  [ -n "$kernel" ] || die 69 "$getkernel"
fi
[ -r "$kernel" ] || die 69 "$kernel cannot be read; $getkernel"
case $kernel in
  *.deb) need dpkg-deb dpkg
    dpkg-deb --fsys-tarfile "$kernel" | tar -xO --wildcards './boot/vmlinuz-*' > "$tmp/vmlinuz" ||
      die 69 "$kernel holds no kernel" ;;
  *) cp -- "$kernel" "$tmp/vmlinuz" ;;
esac
cp -- "$prog" "$tmp/prog"
n=0; guest=()
for f in ${files[@]+"${files[@]}"}; do
  src=${f%%=*}; dst=${src##*/}
  case $f in *=*) dst=${f#*=} ;; esac
  while case $dst in /*) ;; *) false ;; esac; do dst=${dst#/}; done
  n=$((n + 1)); ln -s "$(realpath -- "$src")" "$tmp/file$n"; guest+=("$dst")
done
printf '%s\0' "$prog" "$@" > "$tmp/args"
printf '%s\0' "${env[@]}" > "$tmp/env"
[ $stdin = 0 ] || cat > "$tmp/stdin"
cd "$tmp"

# The first process: runs the program, and sends what it writes to the two parallel
# ports, which Bochs writes to files without a delay; its status goes to the second
# serial port, and the word "Shutdown" at port 0x8900 ends Bochs.
cat > init.c <<'E'
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
static void print(int port, const char *b, int n) {
  for (int i = 0; i < n; i++) outb(b[i], port), outb(8, port + 2), outb(9, port + 2), outb(8, port + 2);
}
static void say(const char *s) {
  for (; *s; s++) {
    while (!(inb(0x2fd) & 0x20)) continue;
    outb(*s, 0x2f8);
  }
  while (!(inb(0x2fd) & 0x40)) continue;
}
static char **load(const char *name) {
  static char *empty[1];
  int f = open(name, O_RDONLY), c = 0;
  struct stat s;
  if (f < 0 || fstat(f, &s)) return empty;
  char *b = malloc(s.st_size + 1), **v = calloc(s.st_size + 1, sizeof *v);
  if (!b || !v || read(f, b, s.st_size) != s.st_size) return empty;
  for (char *p = b; p < b + s.st_size; p += strlen(p) + 1) v[c++] = p;
  close(f);
  return v;
}
int main(void) {
  const char *dirs[] = {"/proc", "/sys", "/dev", "/tmp"}, *kinds[] = {"proc", "sysfs", "devtmpfs", "tmpfs"};
  for (int i = 0; i < 4; i++) mkdir(dirs[i], 0755), mount(kinds[i], dirs[i], kinds[i], 0, 0);
  mkdir("/dev/shm", 01777);
  if (iopl(3)) return 1;
  outb(0x80, 0x2fb), outb(1, 0x2f8), outb(0, 0x2f9), outb(3, 0x2fb);
  say("booted\n");
  char **args = load("/.args"), **envs = load("/.env");
  int pipes[2][2], status = 0;
  if (pipe2(pipes[0], O_CLOEXEC) || pipe2(pipes[1], O_CLOEXEC)) return 1;
  pid_t pid = fork();
  if (!pid) {
    int in = open("/.stdin", O_RDONLY);
    if (in < 0) in = open("/dev/null", O_RDONLY);
    dup2(in, 0), dup2(pipes[0][1], 1), dup2(pipes[1][1], 2);
    if (in > 2) close(in);
    if (iopl(0)) _exit(126);
    setsid();
    execve("/prog", args, envs);
    dprintf(2, "cannot run it: %s\n", strerror(errno));
    _exit(126);
  }
  struct pollfd p[2] = {{pipes[0][0], POLLIN, 0}, {pipes[1][0], POLLIN, 0}};
  close(pipes[0][1]), close(pipes[1][1]);
  static char b[65536];
  while (p[0].fd >= 0 || p[1].fd >= 0) {
    if (poll(p, 2, -1) < 0 && errno != EINTR) break;
    for (int i = 0; i < 2; i++) {
      if (p[i].fd < 0 || !p[i].revents) continue;
      int n = read(p[i].fd, b, sizeof b);
      if (n > 0) print(i ? 0x278 : 0x378, b, n);
      else if (n == 0 || errno != EINTR) p[i].fd = -1;
    }
  }
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
  char s[32];
  snprintf(s, sizeof s, "exit %d\n", WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
  say(s);
  for (const char *w = "Shutdown"; *w; w++) outb(*w, 0x8900);
  for (;;) pause();
}
E
gcc -O1 -w -static -o init init.c || die 69 "gcc failed: apt-get install --no-install-recommends gcc libc6-dev"

# The root file system: a cpio archive in the kernel's "newc" form.
inode=0
entry() { # name, mode, file or '', device numbers
  local name=$1 size=0
  [ -z "$3" ] || size=$(stat -Lc %s -- "$3")
  inode=$((inode + 1))
  printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\0' $inode $(($2)) 0 0 1 0 "$size" 0 0 \
    "${4:-0}" "${5:-0}" $(($(printf %s "$name" | wc -c) + 1)) 0 "$name"
  head -c $(((4 - (111 + $(printf %s "$name" | wc -c)) % 4) % 4)) /dev/zero
  [ -z "$3" ] || { cat -- "$3"; head -c $(((4 - size % 4) % 4)) /dev/zero; }
}
{
  entry dev 040755 ''; entry dev/console 020600 '' 5 1
  entry init 0100755 init; entry prog 0100755 prog; entry .args 0100644 args; entry .env 0100644 env
  [ $stdin = 0 ] || entry .stdin 0100644 stdin
  for ((i = 0; i < ${#guest[@]}; i++)); do
    d=${guest[$i]}; p=
    while case $d in */*) ;; *) false ;; esac; do p=$p${d%%/*}; d=${d#*/}; entry "$p" 040755 ''; p=$p/; done
    mode=0100644; [ ! -x "file$((i + 1))" ] || mode=0100755
    entry "${guest[$i]}" $mode "file$((i + 1))"
  done
  entry 'TRAILER!!!' 0 ''
} > initrd

# The memory image: 1 MiB start.S, 16 MiB the kernel, then initrd. Bochs reads it into
# the guest's memory, so there is no BIOS, boot loader or disk. The kernel is unpacked
# here where its packer is installed, else the guest does it (3 seconds).
field() { od -An -t"u$2" -j$(($1)) -N"$2" vmlinuz | tr -d ' '; }
if [ "$(od -An -c -j514 -N4 vmlinuz | tr -d ' ')" != HdrS ] || [ $(($(field 0x236 1) & 1)) = 0 ]; then
  die 69 "$kernel is not an x86-64 Linux kernel; $getkernel"
fi
K=$((0x1000000)) setup=$((($(field 0x1f1 1) + 1) * 512)) room=$(field 0x260 4)
offset=$((setup + $(field 0x248 4))) length=$(field 0x24c 4)
tail -c +$((offset + 1)) vmlinuz | head -c $((length - 4)) > packed || :
case $(od -An -tx1 -N4 packed | tr -d ' ') in
  02214c18) unpack=lz4 ;; 28b52ffd) unpack=zstd ;; 1f8b*) unpack=gzip ;; fd377a58) unpack=xz ;; *) unpack=none ;;
esac
start=$((K + 0x200))
if [ "$(field 0x258 4)" = $K ] && command -v $unpack >/dev/null && command -v objcopy >/dev/null &&
  $unpack -dc < packed > vmlinux 2>/dev/null &&
  [ "$(stat -c %s vmlinux)" = "$(field $((offset + length - 4)) 4)" ] &&
  [ "$(od -An -tu8 -j24 -N8 vmlinux | tr -d ' ')" = $K ] && objcopy -O binary vmlinux kernel; then
  start=$K
else
  tail -c +$((setup + 1)) vmlinuz > kernel
fi
I=$(((K + room + 0x1fffff) / 0x200000 * 0x200000)) size=$(stat -c %s initrd)
[ $((I + 2 * size + (64 << 20))) -lt $((mem << 20)) ] ||
  die 2 "$mem MiB are too little for these files: give -m $(((I + 2 * size >> 20) + 192))"
# clearcpuid: PKU (Bochs' CPUID leaf 13 lacks its size), XSAVEC and XSAVES (it gives
# the wrong size: the kernel would turn AVX off), FSRM (without ERMS, which the kernel
# turns off as Bochs has no MISC_ENABLE register, its memmove runs astray).
printf %s "$([ $verbose = 1 ] || echo quiet) console=ttyS0,115200 panic=-1 reboot=t nokaslr acpi=off noapic" \
  " nolapic idle=halt lpj=400000 tsc=reliable clearcpuid=515,321,323,580 mitigations=off nopti noreplace-smp" \
  " init_on_alloc=0 lsm= apparmor=0 audit=0 nowatchdog rcupdate.rcu_expedited=1 cryptomgr.notests" \
  " random.trust_cpu=on" > cmdline
cat > rom.S <<'E'
.code16
.globl _start
_start: cli
  lgdtl %cs:(gdtr - _start)
  movl $0x11, %eax
  movl %eax, %cr0
  ljmpl $8, $0x100000
gdtr: .word 31
  .long 0xffff0000 + (gdt - _start)
.balign 8
gdt: .quad 0, 0x00cf9b000000ffff, 0x00af9b000000ffff, 0x00cf93000000ffff
.org 0xfff0
  ljmpw $0xf000, $0
.org 0x10000
E
printf '.globl _start\n_start: .byte 0x55, 0xaa, 1, 0xcb\n.org 511\n.byte 0x35\n' > vga.S # a display without a BIOS
cat > start.S <<'E'
.code32
.globl _start
_start: movl $0x18, %eax
  movl %eax, %ds
  movl %eax, %es
  movl %eax, %ss
  movl $0x101000, %ebx # Bochs gives out the blocks of its memory at their first use, but reads the
1: movl (%ebx), %eax   # image as if they lay in order: so use them in order
  addl $0x1000, %ebx
  cmpl $IMAGE_END, %ebx
  jb 1b
  movl $0x20, %eax # to 64 bits, memory mapped to itself
  movl %eax, %cr4
  movl $level4, %eax
  movl %eax, %cr3
  movl $0xc0000080, %ecx
  rdmsr
  orl $0x100, %eax
  wrmsr
  lgdt gdtr
  movl %cr0, %eax
  orl $0x80000001, %eax
  movl %eax, %cr0
  ljmpl $0x10, $go
.code64
go: movl $0x18, %eax
  movl %eax, %ds
  movl %eax, %es
  movl %eax, %ss
  movl $stack, %esp
  movl $params, %esi
  movl $ENTRY, %eax
  jmp *%rax
.balign 8
gdt: .quad 0, 0x00cf9b000000ffff, 0x00af9b000000ffff, 0x00cf93000000ffff
gdtr: .word 31
  .long gdt
cmdline: .incbin "cmdline"
  .byte 0
.balign 4096
stack:
level4: .quad level3 + 3
.balign 4096
level3: .quad level2 + 3, level2 + 0x1003, level2 + 0x2003, level2 + 0x3003
.balign 4096
level2: .set page, 0x83
.rept 2048
  .quad page
  .set page, page + 0x200000
.endr
params: # Linux' struct boot_params: the kernel file's own header, completed, and a memory map
.org params - _start + 0x1e8
  .byte 3
.org params - _start + 0x1f1
.incbin "vmlinuz", 0x1f1, 0x1f
  .byte 0xff
.incbin "vmlinuz", 0x211, 7
  .long INITRD, INITRD_SIZE
.incbin "vmlinuz", 0x220, 8
  .long cmdline
.incbin "vmlinuz", 0x22c, 0x64
.org params - _start + 0x2d0
  .quad 0, 0x9fc00
  .long 1
  .quad 0x9fc00, 0x60400
  .long 2
  .quad 0x100000, (MEMORY << 20) - 0x100000
  .long 1
.org params - _start + 4096
E
gcc -c -o rom.o rom.S && ld -Ttext=0 --oformat binary -o rom.bin rom.o
gcc -c -o vga.o vga.S && ld -Ttext=0 --oformat binary -o vga.bin vga.o
gcc -c -DIMAGE_END=$((I + size)) -DENTRY=$start -DINITRD=$I -DINITRD_SIZE="$size" -DMEMORY="$mem" -o start.o start.S
ld -Ttext=0x100000 --oformat binary -o image start.o
at() { dd if="$1" of=image bs=1M oflag=seek_bytes seek=$(($2 - 0x100000)) conv=notrunc status=none; }
at kernel $K; at initrd $I

cat > bochsrc <<E
config_interface: textconfig
display_library: term
memory: guest=$mem, host=$mem
romimage: file=rom.bin
vgaromimage: file=vga.bin
optramimage1: file=image, address=0x100000
cpu: model=corei7_icelake_u, count=1, ips=100000000, reset_on_triple_fault=0
clock: sync=none
pci: enabled=0
sound: driver=dummy
com1: enabled=1, mode=file, dev=console
com2: enabled=1, mode=file, dev=status
parport1: enabled=1, file=stdout
parport2: enabled=1, file=stderr
log: log
panic: action=fatal
error: action=report
info: action=report
E
# Debian builds Bochs with its debugger, which waits for a command.
echo c > commands
rc=(); bochs --help > help 2>&1 || :
! grep -q -- '-rc ' help || rc=(-rc commands)
: > stdout; : > stderr; : > status; : > console
started=$SECONDS
TERM=vt100 bochs -q -f bochsrc ${rc[@]+"${rc[@]}"} </dev/null >screen 2>&1 &
emulator=$!
tail -c +1 -s 0.2 -f --pid=$emulator stdout 2>/dev/null & readers=($!)
tail -c +1 -s 0.2 -f --pid=$emulator stderr >&2 2>/dev/null & readers+=($!)
if [ $verbose = 1 ]; then tail -c +1 -s 0.2 -f --pid=$emulator console >&2 2>/dev/null & readers+=($!); fi
booted='' late=0
while kill -0 $emulator 2>/dev/null; do
  if [ $((SECONDS - started)) -ge "$limit" ]; then late=1; kill -KILL $emulator 2>/dev/null || :; fi
  if [ -z "$booted" ] && [ -s status ]; then booted=$((SECONDS - started)); fi
  sleep 0.2
done
{ wait $emulator; } 2>/dev/null || :
emulator=
wait "${readers[@]}" 2>/dev/null || :
[ $late = 0 ] || die 124 "stopped after $limit seconds"
[ $verbose = 0 ] || echo "emulator: booted after ${booted:-?} s, ended after $((SECONDS - started)) s" >&2
status=$(tr -d '\r' < status | sed -n 's/^exit \([0-9][0-9]*\)$/\1/p')
if [ -z "$status" ]; then
  { tail -n 15 console; grep -a '>>PANIC<<' log || tail -n 15 screen; } >&2 2>/dev/null || :
  die 70 "the emulator ended before the program did"
fi
exit "$status"
