"""One file per experiment, with its claim, its paper and its command."""
