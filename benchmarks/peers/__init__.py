"""Solvers of other libraries, each run in a process of its own by ``benchmarks/solvers_peers.py``."""
