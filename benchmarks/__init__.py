"""Benchmarks of speed, memory and results. Each prints a table and writes JSON."""
