"""One HTML page with everything about some runs, for a colleague: it needs no other file and no network."""
