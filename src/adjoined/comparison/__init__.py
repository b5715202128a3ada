"""Comparisons of methods: their runs and their results."""
