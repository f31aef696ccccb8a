"""The subcommands of `metajax`, one per file."""
