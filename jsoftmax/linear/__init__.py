"""The row numbers of a linear head, ``hidden @ weight``, block by block, and their derivative rules."""
