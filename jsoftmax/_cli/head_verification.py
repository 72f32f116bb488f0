"""Compare the linear head with jax.grad of the textbook loss of its logits, on a trained language model.

The bound is that of `verification` with another s. A logit is itself a sum, Σ h w + b, whose rounding error
is proportional to the sum of its |terms|. For the difference x - max, it is at most proportional to twice the
largest such sum of the row. This is s; it is never less than the spread.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

import jsoftmax
from jsoftmax._cli import definitions
from jsoftmax._cli.verification import Comparison, by_differences, compare

BOUND = "(8 + 2 * largest sum |h| |w| + |b|) * float32 eps * sum of |terms|, entry by entry"
GRADIENTS = ("hidden", "table", "bias")

BlockSize = int | tuple[int, int]
OfHead = Callable[[Array, Array, Array], Array]  # of hidden, table and bias


def compare_head(hidden: Array, table: Array, bias: Array, labels: ArrayLike) -> Iterator[Comparison]:
    """Compare the losses, and the gradients of their mean, with one block of logits and with several."""
    rows, classes = len(hidden), len(table)
    some_rows, some_classes = -(-rows // 4), -(-classes // 3)
    cuts: dict[str, BlockSize] = {
        "one block": rows,
        "blocks of rows": some_rows,
        "blocks of rows and classes": (some_rows, some_classes),
    }
    head = (hidden, table, bias)
    # Without "highest", an accelerator may multiply matrices in fewer digits than float32's.
    with jax.default_matmul_precision("highest"):
        losses, gradients = _losses_and_gradients(*_textbook(jnp.asarray(labels)), head)
        terms, spread = _terms(head, jnp.asarray(labels))
        for name, size in cuts.items():
            ours, our_gradients = _losses_and_gradients(*_linear(jnp.asarray(labels), size), head)
            yield compare(f"linear_cross_entropy, {name}", ours, losses, losses, spread)
            spreads = (spread[:, None], spread.max(), spread.max())
            for of, a, b, m, s in zip(GRADIENTS, our_gradients, gradients, terms, spreads, strict=True):
                yield compare(f"  gradient of {of}", a, b, m, s)


def _linear(labels: Array, size: BlockSize) -> tuple[OfHead, OfHead]:
    def losses(hidden: Array, table: Array, bias: Array) -> Array:
        return jsoftmax.linear_cross_entropy(hidden, table, labels, vocab_axis=0, bias=bias, block_size=size)

    def mean(hidden: Array, table: Array, bias: Array) -> Array:
        return jsoftmax.linear_cross_entropy(
            hidden, table, labels, vocab_axis=0, bias=bias, block_size=size, reduction="mean"
        )

    return losses, mean


def _textbook(labels: Array) -> tuple[OfHead, OfHead]:
    def losses(hidden: Array, table: Array, bias: Array) -> Array:
        logits = hidden @ table.T + bias
        return definitions.cross_entropy_with_integer_labels(jnp, logits, labels)

    return losses, lambda *head: jnp.mean(losses(*head))


def _losses_and_gradients(
    losses: OfHead, mean: OfHead, head: tuple[Array, Array, Array]
) -> tuple[Array, tuple[Array, ...]]:
    """The losses of the rows, and the gradients of their mean."""
    return jax.jit(lambda *head: (losses(*head), jax.grad(mean, (0, 1, 2))(*head)))(*head)


@jax.jit
def _terms(head: tuple[Array, Array, Array], labels: Array) -> tuple[tuple[Array, ...], Array]:
    """m for each gradient, and s for each row."""
    hidden, table, bias = head
    logits = hidden @ table.T + bias
    error = (jsoftmax.softmax(logits) + jax.nn.one_hot(labels, len(table))) / len(hidden)
    error = by_differences(error, logits)
    hidden, table, bias = jnp.abs(hidden), jnp.abs(table), jnp.abs(bias)
    sums = hidden @ table.T + bias
    return (error @ table, error.T @ hidden, jnp.sum(error, axis=0)), 2 * jnp.max(sums, axis=-1)
