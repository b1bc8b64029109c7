"""What this machine is and has: runtime facts, memory, exact float64 math, the self test."""
