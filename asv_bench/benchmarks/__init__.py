"""Benchmarks of slmq, for airspeed velocity."""
