"""A small network against its definition, the base network with its dropped channels at zero."""
