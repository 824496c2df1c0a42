"""One file for each kind of contender."""
