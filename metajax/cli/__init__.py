"""The command line: arguments, log and the entry point."""
