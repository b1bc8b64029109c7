#!/usr/bin/env bash
# Run a static x86-64 Linux executable on an emulated Intel CPU that has AVX-512 and
# AMX (Bochs' Sapphire Rapids), on a machine whose own CPU has neither. Prints what
# the program prints and exits with its exit status. Needs no root and writes only in
# a temporary directory.
#
#   tools/emulate_amx.sh [options] PROGRAM [ARGUMENT...]
#
#   -e NAME=VALUE set an environment variable of the program; repeat
#   -t SECONDS    stop it after so long, with status 124 (default 3600)
#   -u            leave Bochs as it is (below)
#
# It needs Bochs 3.0 (Debian 13), gcc and python3:
#
#   apt-get install --no-install-recommends bochs bochs-term gcc libc6-dev
#
# $BOCHS names another bochs-bin; $BOCHS_ROOT a folder in which Debian 13's packages
# of Bochs and all that it depends on were unpacked with dpkg-deb -x, for older
# systems (its own loader and libraries then run it).
#
# Bochs knows AMX, but nothing of what Linux wants of a CPU before it lets programs
# use it (XFD). So no Linux is booted: a few lines of C load the program and answer
# its system calls (about 40, among them arch_prctl's request for AMX; no threads, no
# signals, no files).
#
# Bochs 3.0's TDPBSSD takes signed bytes for unsigned ones. The copy that runs here
# has the instructions that widen them replaced (movzx by movsx, shr by sar). With -u
# it has not: a program that tries AMX before it uses it should then find it wanting.
#
# Exit status: the program's, or 128+N where signal N would have ended it; 2 for wrong
# usage, 69 where something that is needed is missing, 70 where the emulator failed.
set -euo pipefail

die() { printf '%s: %s\n' "${0##*/}" "$2" >&2; exit "$1"; }
usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//p;}' "$0" >&2; exit 2; }

env=(GLIBC_TUNABLES=glibc.cpu.x86_rep_movsb_threshold=0x1000000000:glibc.cpu.x86_rep_stosb_threshold=0x1000000000)
limit=3600 patch=1
while [ $# -gt 0 ]; do
  case $1 in
    -[et]) [ $# -ge 2 ] || usage
      case $1 in -e) env+=("$2") ;; -t) limit=$2 ;; esac
      shift 2 ;;
    -u) patch=0; shift ;;
    --) shift; break ;;
    -*) usage ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || usage
case $limit in *[!0-9]*|'') usage ;; esac
prog=$1
if [ ! -f "$prog" ] || [ ! -r "$prog" ]; then die 2 "$prog: no such file"; fi
[ "$(od -An -tx1 -N20 -- "$prog" | tr -d ' \n' | cut -c1-10,33-40)" = 7f454c460202003e00 ] ||
  die 2 "$prog is not a static x86-64 ELF executable at a fixed address: link it with -static -no-pie"
for tool in gcc ld objdump python3; do
  command -v $tool >/dev/null || die 69 "$tool is missing: apt-get install --no-install-recommends gcc libc6-dev python3"
done
root=${BOCHS_ROOT:-}
bochs=${BOCHS:-$root/usr/bin/bochs-bin}
if [ ! -x "$bochs" ] || ! grep -aq TDPBSSD "$bochs"; then
  die 69 "$bochs is missing or knows no AMX: Bochs 3.0 is needed, see the head of this script"
fi

tmp=$(mktemp -d "${TMPDIR:-/tmp}/amx.XXXXXX")
emulator=
# shellcheck disable=SC2317  # reached by the trap
cleanup() {
  [ -z "$emulator" ] || { kill -KILL "$emulator" && wait "$emulator"; } 2>/dev/null || :
  rm -rf "$tmp"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
cp -- "$prog" "$tmp/prog"
printf '%s\0' "$@" > "$tmp/args"
printf '%s\0' "${env[@]}" > "$tmp/env"
cp -- "$bochs" "$tmp/bochs"
cd "$tmp"

# Widening moves and shifts of TDPBSSD, in the copy.
[ $patch = 0 ] || python3 - <<'E' || die 69 "$bochs: not the TDPBSSD of Debian's Bochs 3.0; with -u it runs as it is"
import re, subprocess, sys
symbols = subprocess.run(["objdump", "-T", "bochs"], capture_output=True, text=True, check=True).stdout
name = next((line for line in symbols.splitlines() if "TDPBSSD_TnnnTrmTreg" in line), "")
if not name:
    sys.exit(1)
begin, size = int(name.split()[0], 16), int(re.search(r"\.text\s+([0-9a-f]+)", name)[1], 16)
text = subprocess.run(["objdump", "-h", "bochs"], capture_output=True, text=True, check=True).stdout
section = next(line.split() for line in text.splitlines() if " .text " in line)
offset = int(section[5], 16) - int(section[3], 16)
code = subprocess.run(["objdump", "-d", "--insn-width=16", f"--start-address={begin}", f"--stop-address={begin + size}",
                       "bochs"], capture_output=True, text=True, check=True).stdout
image = bytearray(open("bochs", "rb").read())
at = begin + offset
changed = {"movzbl": 0, "shr": 0}
for line in re.findall(r"^ *[0-9a-f]+:\t((?:[0-9a-f]{2} )+) *\t(.*)$", code, re.MULTILINE):
    word, what = bytearray.fromhex(line[0]), line[1]
    if what.startswith("movzbl"):
        word[word.index(b"\x0f\xb6") + 1] = 0xBE
        changed["movzbl"] += 1
    elif re.match(r"shr +\$0x18,%e", what):
        word[-2] |= 0x10  # /5 to /7
        changed["shr"] += 1
    image[at:at + len(word)] = word
    at += len(word)
open("bochs", "wb").write(image)
sys.exit(changed["movzbl"] < 6 or changed["shr"] != 2 or at != begin + offset + size)
E

# The machine: a ROM that enters protected mode, start.S that goes on to 64 bits and
# switches all registers on, kernel.c that runs the program (as it is, without
# protection). Bochs reads the image into the machine's memory.
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
.section .start, "awx"
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
  movl $0x50620, %eax # PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE
  movl %eax, %cr4
  movl $level4, %eax
  movl %eax, %cr3
  movl $0xc0000080, %ecx
  rdmsr
  orl $0x101, %eax # long mode, syscall
  wrmsr
  lgdt gdtr
  movl $0x80000033, %eax
  movl %eax, %cr0
  ljmpl $0x10, $go
.code64
go: movl $0x18, %eax
  movl %eax, %ds
  movl %eax, %es
  movl %eax, %ss
  xorl %ecx, %ecx # x87, SSE, AVX, AVX-512, tiles
  xorl %edx, %edx
  movl $0x600e7, %eax
  xsetbv
  movl $0xc0000081, %ecx # where syscall goes: 64-bit code, this stack
  movl $0x00100010, %edx
  xorl %eax, %eax
  wrmsr
  incl %ecx
  leaq call(%rip), %rax
  movq %rax, %rdx
  shrq $32, %rdx
  wrmsr
  incl %ecx
  incl %ecx
  movl $0x47700, %eax
  xorl %edx, %edx
  wrmsr
  leaq kernel_stack(%rip), %rsp
  leaq traps(%rip), %rdi
  leaq idt(%rip), %rsi
  xorl %ecx, %ecx
2: movq %rdi, %rax
  movw %ax, (%rsi)
  movl $0x8e000010, 2(%rsi)
  shrq $16, %rax
  movw %ax, 6(%rsi)
  movw $0x8e00, 4(%rsi)
  movq $0, 8(%rsi)
  addq $16, %rsi
  addq $16, %rdi
  incl %ecx
  cmpl $32, %ecx
  jb 2b
  lidt idtr
  call run
.balign 16
traps: # an exception: its number, then what the CPU pushed
.set number, 0
.rept 32
.balign 16
  movl $number, %edi
  jmp fault
.set number, number + 1
.endr
fault: movq %rsp, %rsi
  leaq kernel_stack(%rip), %rsp
  call trapped
.globl enter # (entry, stack)
enter: movq %rsi, %rsp
  xorl %edx, %edx
  jmp *%rdi
call: movq %rsp, program_stack(%rip)
  leaq kernel_stack(%rip), %rsp
  pushq %r11
  pushq %rcx
  pushq %r9
  pushq %r8
  pushq %r10
  pushq %rdx
  pushq %rsi
  pushq %rdi
  movq %rsp, %rdi
  movq %rax, %rsi
  call answer
  popq %rdi
  popq %rsi
  popq %rdx
  popq %r10
  popq %r8
  popq %r9
  popq %rcx
  popfq
  movq program_stack(%rip), %rsp
  jmp *%rcx
.data
.balign 8
program_stack: .quad 0
gdt: .quad 0, 0x00cf9b000000ffff, 0x00af9b000000ffff, 0x00cf93000000ffff
gdtr: .word 31
  .long gdt
idtr: .word 511
  .quad idt
.balign 16
idt: .fill 512
.globl arguments, environment, arguments_end, environment_end
arguments: .incbin "args"
arguments_end:
environment: .incbin "env"
environment_end:
.balign 4096
.fill 65536
kernel_stack:
level4: .quad level3 + 3
.balign 4096
level3: .quad level2 + 3
.balign 4096
level2: .set page, 0x83
.rept 512
  .quad page
  .set page, page + 0x200000
.endr
E
cat > kernel.c <<'E'
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned u32;
typedef unsigned long u64;
enum { ELF = 0x2000000, MMAP = 0x6000000, STACK = 0x1f000000 };  // 32 MiB, 96 MiB; memory ends at 512 MiB
extern char arguments[], arguments_end[], environment[], environment_end[];
void enter(u64 entry, u64 stack);
static void out(u16 port, u8 b) { __asm__ volatile("outb %0, %1" : : "a"(b), "Nd"(port)); }
static void print(u16 port, const char *s, u64 n) {
  for (u64 i = 0; i < n; i++) out(port, s[i]), out(port + 2, 8), out(port + 2, 9), out(port + 2, 8);
}
static void leave(int status) {
  char line[8] = "exit ";
  line[5] = '0' + status / 100, line[6] = '0' + status / 10 % 10, line[7] = '0' + status % 10;
  print(0x278, "\n", 1), print(0x278, line, 8), print(0x278, "\n", 1);
  for (const char *w = "Shutdown"; *w; w++) out(0x8900, *w);
  for (;;) __asm__ volatile("hlt");
}
static void complain(const char *what, u64 number) {
  u64 n = 0;
  while (what[n]) n++;
  print(0x278, what, n);
  for (int i = 60; i >= 0; i -= 4) print(0x278, "0123456789abcdef" + (number >> i & 15), 1);
  print(0x278, "\n", 1);
}
void trapped(u32 vector, u64 *frame) {
  if (vector == 8 || (vector >= 10 && vector <= 14) || vector == 17) frame++;  // the error code
  complain("emulator: exception ", vector), complain("  at ", *frame);
  leave(vector == 6 ? 132 : vector == 0 || vector == 16 || vector == 19 ? 136 : 139);
}
static u64 program_end, mapped = MMAP;
static void clear(u64 to, u64 n) {
  u64 words = n / 8;
  __asm__ volatile("rep stosq" : "+D"(to), "+c"(words) : "a"(0) : "memory");
  for (n &= 7; n; n--) *(volatile u8 *)to++ = 0;
}
static void copy(u64 to, u64 from, u64 n) {
  u64 words = n / 8;
  __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words) : : "memory");
  for (n &= 7; n; n--) *(volatile u8 *)to++ = *(u8 *)from++;
}
static u64 map(u64 at, u64 n, u64 flags) {
  n = (n + 4095) & ~4095ul;
  if (!(flags & 0x20)) return -19;
  if (!(flags & 0x10)) {
    if (mapped + n > STACK - (16 << 20)) return -12;
    at = mapped, mapped += n;
  }
  clear(at, n);
  return at;
}
static u64 now(u64 *t) {
  u32 low, high;
  __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
  u64 ticks = (u64)high << 32 | low;
  t[0] = ticks / 1000000000, t[1] = ticks % 1000000000;
  return 0;
}
static u64 prctl(u64 what, u64 value) {
  switch (what) {
    case 0x1002:
      __asm__ volatile("wrmsr" : : "c"(0xc0000100), "a"((u32)value), "d"((u32)(value >> 32)));
      return 0;
    case 0x1022: *(u64 *)value = 0x600e7; return 0;
    case 0x1023: return value == 18 ? 0 : -22;
  }
  return -22;
}
static u64 answered(u64 *a, u64 call) {
  switch (call) {
    case 0: return 0;
    case 1: print(a[0] == 2 ? 0x278 : 0x378, (char *)a[1], a[2]); return a[2];
    case 5: case 262: clear(call == 5 ? a[1] : a[2], 144); return 0;
    case 9: return map(a[0], a[1], a[3]);
    case 12:
      if (a[0] > program_end && a[0] < ELF) clear(program_end, a[0] - program_end), program_end = a[0];
      return program_end;
    case 13: case 14: if (a[2]) clear(a[2], call == 13 ? 32 : 8); return 0;
    case 20: {
      u64 *v = (u64 *)a[1], n = 0;
      for (u64 i = 0; i < a[2]; i++) print(a[0] == 2 ? 0x278 : 0x378, (char *)v[2 * i], v[2 * i + 1]), n += v[2 * i + 1];
      return n;
    }
    case 10: case 11: case 24: case 28: case 131: case 202: case 203: case 273: return 0;
    case 16: return -25;
    case 39: case 186: case 218: return 1;
    case 60: case 231: leave(a[0] & 255);
    case 97: case 302: if (call == 97 || a[3]) ((u64 *)a[call == 97 ? 1 : 3])[0] = 16 << 20, ((u64 *)a[call == 97 ? 1 : 3])[1] = -1; return 0;
    case 158: return prctl(a[0], a[1]);
    case 200: case 234: leave(128 + (a[call == 200 ? 1 : 2] & 127));
    case 204: *(u64 *)a[2] = 1; return 8;
    case 228: return now((u64 *)a[1]);
    case 318: for (u64 i = 0; i < a[1]; i++) ((u8 *)a[0])[i] = i * 37; return a[1];
    case 2: case 21: case 79: case 89: case 257: case 267: case 269: return -2;
    case 25: case 334: case 435: case 56: case 99: return -38;
  }
  complain("emulator: system call ", call);
  return -38;
}
u64 answer(u64 *a, u64 call) { return answered(a, call); }
void run(void) {
  u64 phdr = 0, *stack = (u64 *)STACK, vector[64], n = 1;
  u64 entry = *(u64 *)(ELF + 24), table = ELF + *(u64 *)(ELF + 32), count = *(u16 *)(ELF + 56);
  for (u64 i = 0; i < count; i++) {
    u64 *p = (u64 *)(table + 56 * i);  // type and flags, offset, address, -, file size, memory size
    if ((u32)p[0] != 1) continue;
    copy(p[2], ELF + p[1], p[4]), clear(p[2] + p[4], p[5] - p[4]);
    if (p[2] + p[5] > program_end) program_end = p[2] + p[5];
    if (p[1] <= table - ELF && table - ELF < p[1] + p[4]) phdr = p[2] + table - ELF - p[1];
  }
  program_end = (program_end + 0xfffff) & ~0xffffful;
  vector[0] = 0;
  for (int e = 0; e < 2; e++) {
    char *end = e ? environment_end : arguments_end;
    for (char *s = e ? environment : arguments; s < end; s++) {
      vector[n++] = (u64)s;
      if (!e) vector[0]++;
      while (*s) s++;
    }
    vector[n++] = 0;
  }
  u64 aux[] = {3, phdr, 4, 56, 5, count, 6, 4096, 9, entry, 11, 0, 12, 0, 13, 0, 14, 0, 17, 100, 23, 0,
               25, (u64)entry, 31, (u64)arguments, 51, 16384, 0, 0};
  u64 size = n + sizeof aux / 8;
  stack -= size + (size & 1);
  for (u64 i = 0; i < n; i++) stack[i] = vector[i];
  for (u64 i = 0; i < sizeof aux / 8; i++) stack[n + i] = aux[i];
  enter(entry, (u64)stack);
}
E
size=$(stat -c %s prog)
flags=(-ffreestanding -fno-pic -mcmodel=kernel -mgeneral-regs-only -mno-red-zone -fno-stack-protector -fcf-protection=none -w -O1)
gcc -c -o rom.o rom.S && ld -Ttext=0 --oformat binary -o rom.bin rom.o
gcc -c -o vga.o vga.S && ld -Ttext=0 --oformat binary -o vga.bin vga.o
gcc -c -DIMAGE_END=$((0x2000000 + size)) -o start.o start.S
gcc -c "${flags[@]}" -o kernel.o kernel.c || die 69 "gcc failed: apt-get install --no-install-recommends gcc libc6-dev"
printf 'SECTIONS { . = 0x100000; .all : { *(.start) *(.text*) *(.rodata*) *(.data*) *(.bss*) } /DISCARD/ : { *(.comment) *(.note*) *(.eh_frame) } }' > kernel.ld
ld -T kernel.ld --oformat binary -o image start.o kernel.o
dd if=prog of=image bs=1M oflag=seek_bytes seek=$((0x2000000 - 0x100000)) conv=notrunc status=none

cat > bochsrc <<E
config_interface: textconfig
display_library: term
memory: guest=512, host=512
romimage: file=rom.bin
vgaromimage: file=vga.bin
optramimage1: file=image, address=0x100000
cpu: model=sapphire_rapids, count=1, ips=100000000, reset_on_triple_fault=0
clock: sync=none
pci: enabled=0
sound: driver=dummy
parport1: enabled=1, file=stdout
parport2: enabled=1, file=stderr
log: log
panic: action=fatal
error: action=report
info: action=report
E
echo c > commands # of Bochs' debugger
: > stdout; : > stderr
run=(./bochs) libraries=usr/lib/x86_64-linux-gnu
if [ -n "$root" ]; then
  run=("$root/$libraries/ld-linux-x86-64.so.2" --library-path "$root/$libraries:$root/$libraries/pulseaudio" ./bochs)
  export LTDL_LIBRARY_PATH=$root/$libraries/bochs/plugins BXSHARE=$root/usr/share/bochs TERMINFO_DIRS=$root/usr/share/terminfo:/usr/share/terminfo:/lib/terminfo
fi
started=$SECONDS
TERM=vt100 "${run[@]}" -q -f bochsrc -rc commands </dev/null >screen 2>&1 &
emulator=$!
tail -c +1 -s 0.2 -f --pid=$emulator stdout 2>/dev/null & reader=$!
while kill -0 $emulator 2>/dev/null; do
  [ $((SECONDS - started)) -lt "$limit" ] || die 124 "stopped after $limit seconds"
  sleep 0.2
done
{ wait $emulator; } 2>/dev/null || :
emulator=
wait $reader 2>/dev/null || :
status=$(sed -n 's/^exit \([0-9][0-9]*\)$/\1/p' stderr | tail -n 1)
grep -av '^exit [0-9]*$' stderr | sed '/^$/d' >&2 || :
if [ -z "$status" ]; then
  { grep -a '>>PANIC<<' log || tail -n 15 screen; } >&2 2>/dev/null || :
  die 70 "the emulator ended before the program did"
fi
exit $((10#$status))
