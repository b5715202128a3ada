"""What networks cost where they run: time, memory and size, base and small networks side by side."""

from adjoined.benchmark.turns import LEAST_TURNS, TURNS, Latency, latency

__all__ = ["LEAST_TURNS", "TURNS", "Latency", "latency"]
