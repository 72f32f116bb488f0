"""The sums over a row in forms that are fast on CPU or on accelerators, and kernels, which are opt-in.

`_choice` decides which form runs on which platform, `rows._reductions` holds the plain form and calls these,
and `transforms._platforms` puts the forms into the program. The kernels are in the files `_mosaic_…`: for
rows on a GPU and on a TPU, and for the loss of a linear head on a GPU. `_kernels` calls those for rows.
"""
