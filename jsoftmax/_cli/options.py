"""The options of `train`: the data and models to which each applies, and its defaults."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsoftmax._cli.errors import UserError

DATA = ("digits", "mnist", "text")
MODELS = ("linear", "mlp")  # of images
PLACES = {  # where an option applies, as messages say it
    "images": "--data digits or mnist",
    "mnist": "--data mnist",
    "mlp": "--model mlp",
    "text": "--data text",
}


class Options:
    """Adds options to a parser; after parsing, `settle` sets the defaults of those not given."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._groups = {
            place: parser.add_argument_group(f"options of {words}")
            for place, words in (
                ("", "several kinds of data"),
                ("images", "images, digits and mnist"),
                ("mnist", "mnist"),
                ("text", "text"),
            )
        }
        self._groups["mlp"] = self._groups["images"]
        self._defaults: dict[str, dict[str, Any]] = {}

    def add(self, flag: str, *, help: str, **settings: Any) -> None:
        """Add an option; `images=`, `mnist=`, `mlp=` and `text=` are its defaults where it applies."""
        by_place = {place: settings.pop(place) for place in PLACES if place in settings}
        group = self._groups["" if len(by_place) > 1 else next(iter(by_place))]
        shown = [str(default) for default in by_place.values() if default is not None]
        if len(set(shown)) > 1:
            shown = [f"{default} for {place}" for place, default in by_place.items()]
        if shown:
            help = f"{help} (default: {', '.join(dict.fromkeys(shown))})"
        # None means "not given": `settle` sets the defaults when the data and the model are known.
        option = group.add_argument(flag, help=help, default=None, **settings)
        self._defaults[option.dest] = by_place

    def settle(self, arguments: argparse.Namespace) -> None:
        """Set the defaults; raise for an option that does not apply to the chosen data or model."""
        data, model = arguments.data, arguments.model or MODELS[0]
        places = {"text"} if data == "text" else {"images", data, model}
        for name, by_place in self._defaults.items():
            applies = places.intersection(by_place)
            if getattr(arguments, name) is None:
                for place in applies:
                    setattr(arguments, name, by_place[place])
            elif not applies:
                chosen = f"--model {model}" if "mlp" in by_place and data != "text" else f"--data {data}"
                only = " or ".join(PLACES[place] for place in by_place)
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{flag} does not apply to {chosen}, only to {only}")


def add_to(parser: argparse.ArgumentParser) -> Options:
    """Add every option of `train` to a parser."""
    parser.add_argument("--data", choices=DATA, default="digits", help="what to learn from (default: digits)")
    options = Options(parser)
    add = options.add
    add(
        "--path",
        type=Path,
        metavar="PATH",
        help="folder of four IDX files, or a UTF-8 text (default: the documentation of Python)",
        mnist=None,
        text=None,
    )
    add("--hidden", type=whole(1), metavar="N", help="hidden units", mlp=128, text=256)
    add("--dropout", type=real(0, below=1), metavar="RATE", help="dropout of hidden units", mlp=0.2, text=0.5)
    add("--epochs", type=whole(1), metavar="N", help="passes over the data", images=60, text=10)
    add("--batch-size", type=whole(1), metavar="N", help="minibatch size", images=64, text=512)
    add("--learning-rate", type=real(above=0), metavar="RATE", help="for Adam", images=2e-2, text=3e-3)
    add("--seed", type=whole(0, below=2**32), metavar="N", help="seed of all randomness", images=0, text=0)
    out = Path("jsoftmax-out")
    add("--out", type=Path, metavar="DIR", help="folder for the pictures", images=out, text=out)
    add("--model", choices=MODELS, help="classifier", images=MODELS[0])
    add("--activation", choices=("relu", "tanh"), help="nonlinearity of the mlp", mlp="relu")
    add("--l2", type=real(0), metavar="L2", help="adds L2/2 * sum W^2 to the loss", images=1e-4)
    add("--set", metavar="NAME", help="one set of several, as emnist-letters", mnist=None)
    add("--transpose", action="store_true", help="exchange rows and columns, as EMNIST needs", mnist=None)
    add("--vocabulary", type=whole(1), metavar="N", help="limit of different words", text=10000)
    add("--context", type=whole(1), metavar="N", help="words that predict the next one", text=5)
    add("--features", type=whole(1), metavar="N", help="dimensions of a word's embedding", text=128)
    add("--temperature", type=real(0), metavar="T", help="temperature of the written text", text=0.7)
    mass = "the written text uses the likeliest words, with this mass"
    add("--top-p", type=real(above=0, most=1), metavar="P", help=mass, text=1.0)
    kinds = ("exact", "sampled", "truncated")
    add("--gradient", choices=kinds, help="gradient of the linear head", text=kinds[0])
    return options


def whole(least: int, *, below: float = math.inf) -> Callable[[str], int]:
    """The type of an option that is an integer in a range."""

    def integer(text: str) -> int:
        number = int(text)
        if not least <= number < below:
            limit = f" and below {below}" if below < math.inf else ""
            raise argparse.ArgumentTypeError(f"{text}: must be at least {least}{limit}")
        return number

    return integer


def real(
    least: float = -math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
) -> Callable[[str], float]:
    """The type of an option that is a finite number in a range."""

    def number(text: str) -> float:
        value = float(text)
        if not (least <= value < below and above < value <= most):
            lower = f"above {above:g}" if above > least else f"at least {least:g}"
            upper = f"at most {most:g}" if most < below else f"below {below:g}"
            raise argparse.ArgumentTypeError(f"{text}: must be {lower} and {upper}")
        return value

    return number
