"""Tables of plans and results: from plain data to a terminal, a log or a Markdown file."""
