"""Methods side by side: the runs of a comparison, one after another, and what they have come to."""
