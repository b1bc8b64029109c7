// AMX needs more than its bits of cpuid: Linux gives the tile registers to processes that ask for them,
// and some virtual machines show the bits and then fault.
#pragma once

namespace slmq {

// Asks Linux for the tile registers, for as long as the process lives. Of what it costs: alternative
// signal stacks of all threads must then have room for 8 KiB more, or they are refused.
bool permit_amx();

// The result of `trial`, or false if it faults (SIGILL, SIGSEGV, SIGBUS, SIGFPE): the process lives
// on. Destructors of what the trial left behind do not run. While it runs, faults of other threads
// are passed on to the handlers that were there before.
bool survives(bool (*trial)());

}  // namespace slmq
