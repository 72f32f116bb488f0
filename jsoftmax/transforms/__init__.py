"""The parts that depend on JAX alone: modes, platforms, barriers, derivative rules, shardings and `vmap`.

Nothing here depends on the softmax. `jsoftmax.rules` holds the formulas of the derivatives.
"""
