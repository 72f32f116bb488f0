"""The sums over a row, in the forms that are fast on CPU or on accelerators.

`rows._reductions` holds the plain form, and asks these for theirs. `transforms._platforms` chooses.
"""
