"""Elementary functions in float64 that give the same bits on every machine.

The C library's own differ in the last bit from one system to the next.
"""

from slmq._native import exact_exp, exact_log, exact_pow, exact_sincos

__all__ = ["exact_exp", "exact_log", "exact_pow", "exact_sincos"]
