"""Reports which form of a computation runs on a platform, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jsoftmax.transforms import _modes
from jsoftmax.transforms._platforms import Record

Choices = tuple[tuple[str, str], ...]  # each computation in a form other than the plain one, and the reason


class Explanation(NamedTuple):
    """The computations in forms of the platform's own, with the reasons; all others are plain."""

    function: str
    platform: str
    value: Choices
    gradient: Choices  # those that only the gradient has

    def __str__(self) -> str:
        lines = [f"{self.function} on {self.platform}"]
        for title, choices in (("value", self.value), ("gradient", self.gradient)):
            width = max((len(what) for what, _ in choices), default=0)
            lines += [f"  {title}"] + [f"    {what:{width}}  {why}" for what, why in choices]
            if not choices:
                lines.append("    plain: array operations alone, the same on every platform")
        return "\n".join(lines)


def explain(function: Callable[..., Any], *arguments: Any, platform: str | None = None) -> Explanation:
    """The forms of a function that run on a platform, with the reasons; the function is traced, not run.

    Up to 8192 logits, and in `portable`, the whole program is plain. Otherwise a platform has its own forms
    where they are faster or use less memory.

    Args:
      function: a function of this package, or a function that calls some.
      arguments: arrays, or `jax.ShapeDtypeStruct` instead.
      platform: "cpu", "gpu" or "tpu"; None for the platform of JAX's default device.

    Returns:
      An `Explanation`; print it. Its gradient is the one in the floating arguments.

    Raises:
      ValueError: for any other platform.

    >>> import jax, jax.numpy as jnp, jsoftmax
    >>> x = jax.ShapeDtypeStruct((4096, 1000), jnp.float32)
    >>> print(jsoftmax.explain(jsoftmax.log_softmax, x, platform="cpu"))
    log_softmax on cpu
      value
        the map               from the exponentials of the sums
        the sum of every row  blocks of 125 classes: only the block with the maximum is read again
      gradient
        plain: array operations alone, the same on every platform
    """
    platform = platform or {"cpu": "cpu", "tpu": "tpu"}.get(jax.default_backend(), "gpu")
    name = str(getattr(getattr(function, "func", function), "__name__", "function"))  # also for a partial
    if platform not in _modes.PLATFORMS:
        problem = f"there is no platform {platform!r}; write one of {', '.join(map(repr, _modes.PLATFORMS))}"
        raise ValueError(f"jsoftmax.explain({name}, …, platform={platform!r}): {problem}.")
    is_float = [jnp.issubdtype(jnp.result_type(a), jnp.floating) for a in jax.tree.leaves(arguments)]

    def with_gradient(*arguments: Any) -> Any:
        leaves, tree = jax.tree.flatten(arguments)

        def of_floats(*floats: Any) -> Any:
            given = iter(floats)
            merged = [next(given) if f else a for a, f in zip(leaves, is_float, strict=True)]
            return function(*jax.tree.unflatten(tree, merged))

        out, pull = jax.vjp(of_floats, *(a for a, f in zip(leaves, is_float, strict=True) if f))
        return out, pull(jax.tree.map(jnp.ones_like, out))

    def choices(traced: Callable[..., Any]) -> Choices:
        record = Record(platform)
        with _modes.recording(record):
            jax.eval_shape(traced, *arguments)
        return tuple(record.choices)

    value = choices(function)
    return Explanation(name, platform, value, tuple(c for c in choices(with_gradient) if c not in value))
