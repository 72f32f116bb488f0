"""What the package knows of JAX: its modes, platforms, barriers, derivative rules, shardings, and `vmap`.

Nothing here knows what a softmax is. The formulas of the derivatives stand in `jsoftmax.rules`.
"""
