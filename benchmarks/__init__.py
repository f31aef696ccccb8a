"""Speed, memory and results, measured: scripts that print a table and write JSON."""
