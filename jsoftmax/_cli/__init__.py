"""The command line: `python -m jsoftmax train` and `python -m jsoftmax check`."""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jsoftmax._cli.errors import UserError

# What `jsoftmax[demo]` installs; only `train` imports them.
DEMO_EXTRAS = {"matplotlib", "optax", "rich", "sklearn"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return _train(arguments) if arguments.command == "train" else _check()
    except UserError as error:
        print(f"jsoftmax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _check() -> int:
    from jsoftmax._cli import check

    return check.run()


def _train(arguments: argparse.Namespace) -> int:
    try:
        from jsoftmax._cli import train
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in DEMO_EXTRAS:
            raise
        raise UserError(f'train needs {missing}: pip install "jsoftmax[demo]"') from None
    return train.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jsoftmax", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="compare every public function with a float64 reference on this device")
    train = commands.add_parser(
        "train",
        help="train a digit classifier and verify every gradient on its logits",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    option = train.add_argument
    option("--data", choices=("digits", "mnist"), default="digits", help="images to learn from")
    option("--path", type=Path, metavar="DIR", help="folder of the four MNIST IDX files")
    option("--model", choices=("linear", "mlp"), default="linear", help="classifier")
    option("--hidden", type=_whole(1), default=128, metavar="N", help="hidden units of the mlp")
    option("--activation", choices=("relu", "tanh"), default="relu", help="nonlinearity of the mlp")
    option("--dropout", type=_real(0, below=1), default=0.2, metavar="RATE", help="for the mlp")
    option("--l2", type=_real(0), default=1e-4, metavar="L2", help="adds L2/2 * sum W^2 to the loss")
    option("--epochs", type=_whole(1), default=60, metavar="N", help="passes over the images")
    option("--batch-size", type=_whole(1), default=64, metavar="N", help="images in a minibatch")
    option("--learning-rate", type=_real(above=0), default=2e-2, metavar="RATE", help="for Adam")
    option("--seed", type=_whole(0, below=2**32), default=0, metavar="N", help="of every random draw")
    option("--out", type=Path, default=Path("jsoftmax-out"), metavar="DIR", help="for the pictures")
    return parser


def _whole(least: int, *, below: float = math.inf) -> Callable[[str], int]:
    def integer(text: str) -> int:
        number = int(text)
        if not least <= number < below:
            limit = f" and below {below}" if below < math.inf else ""
            raise argparse.ArgumentTypeError(f"{text}: must be at least {least}{limit}")
        return number

    return integer


def _real(
    least: float = -math.inf, *, above: float = -math.inf, below: float = math.inf
) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not (least <= value < below and value > above):
            limit = f"above {above:g}" if above > least else f"at least {least:g}"
            raise argparse.ArgumentTypeError(f"{text}: must be {limit} and below {below:g}")
        return value

    return number
