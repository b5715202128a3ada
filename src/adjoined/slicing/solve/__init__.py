"""From a trace to a plan that runs: the request, channel groups, widths, repairs."""
