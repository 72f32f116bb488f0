"""The command line: `python -m jsoftmax train`, `evaluate` and `check`."""

import argparse
import sys
from collections.abc import Sequence

from jsoftmax._cli import evaluation_options, options
from jsoftmax._cli.errors import UserError

# The packages that `jsoftmax[demo]` and `jsoftmax[evaluate]` install; only these commands import them.
DEMO_EXTRAS = {"matplotlib", "optax", "rich", "sklearn"}
EVALUATE_EXTRAS = {"matplotlib", "rich"}
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
        if arguments.command == "evaluate":
            return _evaluate(arguments)
        return _train(arguments) if arguments.command == "train" else _check()
    except UserError as error:
        print(f"jsoftmax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _check() -> int:
    from jsoftmax._cli import check

    return check.run()


def _evaluate(arguments: argparse.Namespace) -> int:
    try:
        from jsoftmax._cli import evaluate
    except ImportError as error:
        raise _missing(error, "evaluate", EVALUATE_EXTRAS, "evaluate") from None
    return evaluate.run(arguments)


def _train(arguments: argparse.Namespace) -> int:
    arguments.settle(arguments)
    try:
        from jsoftmax._cli import train, train_text
    except ModuleNotFoundError as error:
        raise _missing(error, "train", DEMO_EXTRAS, "demo") from None
    return train_text.run(arguments) if arguments.data == "text" else train.run(arguments)


def _missing(error: ImportError, command: str, packages: set[str], extra: str) -> Exception:
    """The error for a package of an extra that is not installed; any other error stays as it is."""
    missing = (error.name or "").partition(".")[0]
    if missing not in packages:
        return error
    return UserError(f'{command} needs {missing}: pip install "jsoftmax[{extra}]"')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jsoftmax", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "check",
        help="compare the maps, losses and divergences with a float64 reference on this device",
        description=CHECK,
    )
    evaluation_options.add_to(
        commands.add_parser(
            "evaluate",
            help="measure the logits of a classifier: metrics, calibration, pictures",
            description=evaluation_options.DESCRIPTION,
        )
    )
    train = commands.add_parser(
        "train",
        help="train a classifier of digits, or a language model, and verify the gradients",
        description=TRAIN,
    )
    train.set_defaults(settle=options.add_to(train).settle)
    return parser
