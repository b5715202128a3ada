"""One run of a model in which labels follow its channels."""
