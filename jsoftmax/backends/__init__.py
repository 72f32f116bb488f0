"""The sums over a row in forms that are fast on CPU or on accelerators.

`_choice` decides which form runs on which platform, `rows._reductions` holds the plain form and calls these,
and `transforms._platforms` puts the forms into the program.
"""
