"""One file a result: what is claimed, by which paper, and the command that shows it."""
