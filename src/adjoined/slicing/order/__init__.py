"""Important channels first: the same function, its channels in another order."""
