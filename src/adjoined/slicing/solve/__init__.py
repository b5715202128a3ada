"""From a trace to a plan that runs: what was asked for, channel groups, widths, repairs."""
