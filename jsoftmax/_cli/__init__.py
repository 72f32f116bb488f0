"""The command line: `python -m jsoftmax train` and `python -m jsoftmax check`."""

import argparse
import sys
from collections.abc import Sequence

from jsoftmax._cli import options
from jsoftmax._cli.errors import UserError

# The packages that `jsoftmax[demo]` installs; only `train` imports them.
DEMO_EXTRAS = {"matplotlib", "optax", "rich", "sklearn"}
CHECK = """Compare the maps, losses and divergences, and their gradients, with a float64 reference on the
device that JAX finds. Then print their largest errors beside those of jax.nn and optax. The status is 1 if an
error is above its bound. This command needs no extra."""
TRAIN = """Train a classifier of images, by default of handwritten digits, or with --data text a language
model that predicts a word from the few before it. Then compare the gradients with those of the textbook
definitions. Nothing is downloaded: mnist, emnist, kmnist and fashion-mnist are files of the folder --path;
--data mnist reads any set in the format of MNIST. The last tenth of a text is held out. A word that the rest
does not contain twice becomes <unk>: the model predicts it, but never writes it."""


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
    arguments.settle(arguments)
    try:
        from jsoftmax._cli import train, train_text
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in DEMO_EXTRAS:
            raise
        raise UserError(f'train needs {missing}: pip install "jsoftmax[demo]"') from None
    return train_text.run(arguments) if arguments.data == "text" else train.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jsoftmax", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "check",
        help="compare the maps, losses and divergences with a float64 reference on this device",
        description=CHECK,
    )
    train = commands.add_parser(
        "train",
        help="train a classifier of digits, or a language model, and verify the gradients",
        description=TRAIN,
    )
    train.set_defaults(settle=options.add_to(train).settle)
    return parser
