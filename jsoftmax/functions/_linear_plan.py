"""How the logits of a linear head are cut into blocks."""

from __future__ import annotations

from jsoftmax.border._call import Call
from jsoftmax.linear import _arguments, _plan
from jsoftmax.linear._arguments import BlockSize
from jsoftmax.linear._plan import BlockPlan


def linear_plan(
    rows: int, features: int, classes: int, *, gradient: bool = True, block_size: BlockSize = None
) -> BlockPlan:
    """The blocks in which `linear_cross_entropy` makes the logits of a head of these sizes.

    Every block reads the weight once, and reads and writes the sum of the weight's gradient so far. Next to
    the arithmetic of its products that is little from 512 rows on. So a block has the classes all, and rows

        max(512, features/2 if a gradient is formed, 64 MiB of float32 logits), at most 1 GiB of them

    evened out over the blocks. Where 1 GiB holds less than 64 rows the classes are cut, 512 rows to a block.

    Args:
      rows: the number of rows, all leading axes of hidden together.
      features: D.
      classes: V.
      gradient: whether a gradient is formed along with the loss.
      block_size: as in `linear_cross_entropy`.

    Returns:
      A `BlockPlan`, which prints itself.

    Raises:
      ValueError: for sizes that are not whole numbers, or no classes.

    >>> import jsoftmax
    >>> print(jsoftmax.linear_plan(8192, 512, 128256))
    16 blocks of 512 rows × 128256 classes, 250.5 MiB of logits each
    """
    call = Call(
        "linear_plan",
        rows=rows,
        features=features,
        classes=classes,
        gradient=gradient,
        block_size=block_size,
    )
    sizes = [call.size(name) for name in ("rows", "features", "classes")]
    if not classes:
        raise call.error(ValueError, "there are no classes", "give at least one")
    return _plan.plan(*sizes, gradient=gradient, block_size=_arguments.block_size(call))
