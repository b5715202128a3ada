"""A small network as data: the indices that it keeps of every tensor, and why some channels are not narrowed."""
