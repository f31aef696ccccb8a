"""Give every reader of files mutations of valid files, and check what it does with them."""
