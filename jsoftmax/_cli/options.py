"""The options of `train`: the data and models to which each applies, and its defaults."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsoftmax._cli.errors import UserError
from jsoftmax._cli.image_sets import IMAGE_SETS

DATA = ("digits", *IMAGE_SETS, "text")
MODELS = ("linear", "mlp")  # of images
PLACES = {  # where an option applies, as messages say it
    "images": f"--data {', '.join(DATA[:-2])} or {DATA[-2]}",
    "files": f"--data {', '.join(DATA[1:-2])} or {DATA[-2]}",
    "mnist": "--data mnist",
    "emnist": "--data emnist",
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
                ("images", "images, all data except text"),
                ("text", "text"),
            )
        }
        self._groups |= dict.fromkeys(("mlp", "mnist", "emnist"), self._groups["images"])
        self._defaults: dict[str, dict[str, Any]] = {}

    def add(self, flag: str, *, help: str, **settings: Any) -> None:
        """Add an option; `images=`, `files=`, `mlp=`, `text=` and so on are its defaults where it applies."""
        by_place = {place: settings.pop(place) for place in PLACES if place in settings}
        group = self._groups["" if "text" in by_place and len(by_place) > 1 else next(iter(by_place))]
        shown = [_as_given(default) for default in by_place.values() if default is not None]
        if len(set(shown)) > 1:
            shown = [f"{_as_given(default)} for {place}" for place, default in by_place.items()]
        if shown:
            help = f"{help} (default: {', '.join(dict.fromkeys(shown))})"
        # None means "not given": `settle` sets the defaults when the data and the model are known.
        option = group.add_argument(flag, help=help, default=None, **settings)
        self._defaults[option.dest] = by_place

    def settle(self, arguments: argparse.Namespace) -> None:
        """Set the defaults; raise for an option that does not apply to the chosen data or model."""
        data, model = arguments.data, arguments.model or MODELS[0]
        places = {"text"} if data == "text" else {"images", data, model}
        if data in IMAGE_SETS:
            places.add("files")
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
        if data == "text" and len(arguments.hidden) > 1:
            given = _as_given(arguments.hidden)
            raise UserError(
                f"--hidden {given}: the model of --data text has one hidden layer, expected one number"
            )


def add_to(parser: argparse.ArgumentParser) -> Options:
    """Add every option of `train` to a parser."""
    parser.add_argument("--data", choices=DATA, default="digits", help="what to learn from (default: digits)")
    options = Options(parser)
    add = options.add
    add(
        "--path",
        type=Path,
        metavar="PATH",
        help="folder of a set's IDX files, or a UTF-8 text (default: the documentation of Python)",
        files=None,
        text=None,
    )
    sizes = "hidden units; of several layers, for the mlp, as 128,64"
    add("--hidden", type=several(whole(1)), metavar="N[,N...]", help=sizes, mlp=(128,), text=(256,))
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
    sets = "one set of several in the folder, as letters (default: the only one, or balanced of emnist)"
    add("--set", metavar="NAME", help=sets, mnist=None, emnist=None)
    add("--transpose", action="store_true", help="exchange the rows and columns of every image", mnist=None)
    add("--vocabulary", type=whole(1), metavar="N", help="limit of different words", text=10000)
    add("--context", type=whole(1), metavar="N", help="words that predict the next one", text=5)
    add("--features", type=whole(1), metavar="N", help="dimensions of a word's embedding", text=128)
    add("--temperature", type=real(0), metavar="T", help="temperature of the written text", text=0.7)
    mass = "the written text uses the likeliest words, with this mass"
    add("--top-p", type=real(above=0, most=1), metavar="P", help=mass, text=1.0)
    kinds = ("exact", "sampled", "truncated")
    add("--gradient", choices=kinds, help="gradient of the linear head", text=kinds[0])
    return options


def several(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """The type of an option with commas between its numbers."""

    def numbers(text: str) -> tuple[Any, ...]:
        return tuple(map(kind, text.split(",")))

    return numbers


def _as_given(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


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
