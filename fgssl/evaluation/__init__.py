"""One embedding pass, exact search and the scores that need it: the same for every method."""
