"""Methods side by side: the runs of a comparison, one after another, and their results."""
