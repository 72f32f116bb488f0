"""The options of `train`: to which data each applies, and its default there."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsoftmax._cli.errors import UserError

DATA = ("digits", "mnist", "text")
KINDS = {"images": ("digits", "mnist"), "text": ("text",)}


class Options:
    """Adds options to a parser; once parsed, settles those that were not given."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._groups = {
            "": parser.add_argument_group("options of any data"),
            "images": parser.add_argument_group("options of images, digits and mnist"),
            "text": parser.add_argument_group("options of text"),
        }
        self._defaults: dict[str, dict[str, Any]] = {}

    def add(self, flag: str, *, help: str, **settings: Any) -> None:
        """Add an option; `images=` and `text=` are its defaults for the data it applies to."""
        by_kind = {kind: settings.pop(kind) for kind in KINDS if kind in settings}
        group = self._groups["" if len(by_kind) == len(KINDS) else next(iter(by_kind))]
        shown = [str(default) for default in by_kind.values() if default is not None]
        if len(set(shown)) > 1:
            shown = [f"{default} for {kind}" for kind, default in by_kind.items()]
        if shown:
            help = f"{help} (default: {', '.join(dict.fromkeys(shown))})"
        # None stands for "not given": the defaults follow when the data is known.
        option = group.add_argument(flag, help=help, default=None, **settings)
        self._defaults[option.dest] = {
            name: default for kind, default in by_kind.items() for name in KINDS[kind]
        }

    def settle(self, arguments: argparse.Namespace) -> None:
        """Put in the defaults; refuse what does not apply to the data."""
        for name, defaults in self._defaults.items():
            if arguments.data in defaults:
                if getattr(arguments, name) is None:
                    setattr(arguments, name, defaults[arguments.data])
            elif getattr(arguments, name) is not None:
                flag, data = "--" + name.replace("_", "-"), " and ".join(defaults)
                raise UserError(f"{flag} does not apply to --data {arguments.data}, only to {data}")


def add_to(parser: argparse.ArgumentParser) -> Options:
    """Give a parser every option of `train`."""
    parser.add_argument("--data", choices=DATA, default="digits", help="what to learn from (default: digits)")
    options = Options(parser)
    add = options.add
    add(
        "--path",
        type=Path,
        metavar="PATH",
        help="folder of the four MNIST IDX files, or a UTF-8 text (default: the documentation of Python)",
        images=None,
        text=None,
    )
    add("--hidden", type=whole(1), metavar="N", help="hidden units of the mlp", images=128, text=256)
    add("--dropout", type=real(0, below=1), metavar="RATE", help="for the mlp", images=0.2, text=0.5)
    add("--epochs", type=whole(1), metavar="N", help="passes over the data", images=60, text=10)
    add("--batch-size", type=whole(1), metavar="N", help="of a minibatch", images=64, text=512)
    add("--learning-rate", type=real(above=0), metavar="RATE", help="for Adam", images=2e-2, text=3e-3)
    add("--seed", type=whole(0, below=2**32), metavar="N", help="of every random draw", images=0, text=0)
    out = Path("jsoftmax-out")
    add("--out", type=Path, metavar="DIR", help="for the pictures", images=out, text=out)
    add("--model", choices=("linear", "mlp"), help="classifier", images="linear")
    add("--activation", choices=("relu", "tanh"), help="nonlinearity of the mlp", images="relu")
    add("--l2", type=real(0), metavar="L2", help="adds L2/2 * sum W^2 to the loss", images=1e-4)
    add("--vocabulary", type=whole(1), metavar="N", help="words told apart, at most", text=10000)
    add("--context", type=whole(1), metavar="N", help="words that the next one is told from", text=5)
    add("--features", type=whole(1), metavar="N", help="numbers that a word is embedded in", text=128)
    add("--temperature", type=real(above=0), metavar="T", help="of the text written at the end", text=0.7)
    return options


def whole(least: int, *, below: float = math.inf) -> Callable[[str], int]:
    """The type of an option that is a whole number."""

    def integer(text: str) -> int:
        number = int(text)
        if not least <= number < below:
            limit = f" and below {below}" if below < math.inf else ""
            raise argparse.ArgumentTypeError(f"{text}: must be at least {least}{limit}")
        return number

    return integer


def real(
    least: float = -math.inf, *, above: float = -math.inf, below: float = math.inf
) -> Callable[[str], float]:
    """The type of an option that is a finite number."""

    def number(text: str) -> float:
        value = float(text)
        if not (least <= value < below and value > above):
            limit = f"above {above:g}" if above > least else f"at least {least:g}"
            raise argparse.ArgumentTypeError(f"{text}: must be {limit} and below {below:g}")
        return value

    return number
