"""Bad input for every reader: mutations of valid files, and what a reader may do with them."""
