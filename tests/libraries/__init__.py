"""Forward mode in other libraries: see ``__main__``."""

# How JAX refuses forward mode of a `custom_vjp`.
REFUSALS = ("to a custom_vjp function", "Differentiation rule for 'custom_lin' not implemented")
