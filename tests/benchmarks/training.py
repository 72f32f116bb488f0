"""``python -m tests.benchmarks training``: a word model learns with exact, sampled and truncated gradients.

The text is the source of Python's standard library. Every gradient trains with the same seeds, which set the
first parameters and the order of the minibatches. The table shows the mean loss of held-out words, in nats,
and its spread over the seeds.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np
import optax

from jsoftmax._cli import language
from jsoftmax._cli.language_training import State, make_evaluator, make_step
from tests.benchmarks import timing, trained

GRADIENTS = ("exact", "sampled", "truncated")
HELD_OUT_WORDS = 16384


def curve(corpus, network, gradient, seed, options):
    """The held-out losses after each share of the words, and the seconds of all training steps."""
    size, points = options.batch, options.points
    labels = corpus.train[: options.words]
    inputs = language.contexts(labels, network.context)
    steps = len(labels) // size // points * points
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    key = jax.random.key(seed)
    parameters = network.initialise(key, corpus)
    state = State(parameters, optimizer.init(parameters))
    step = make_step(network, optimizer, gradient)
    evaluate = make_evaluator(network, corpus.held_out[:HELD_OUT_WORDS])
    batches = np.random.default_rng(seed).permutation(len(labels))[: steps * size].reshape(points, -1, size)
    losses, seconds = [float(np.mean(evaluate(state.parameters).nll))], 0.0
    for number, share in enumerate(batches):
        begin = time.perf_counter()
        for index, batch in enumerate(share):
            at = jax.random.fold_in(key, number * len(share) + index + 1)
            state, _ = step(state, inputs[batch], labels[batch], at)
        jax.block_until_ready(state)
        seconds += time.perf_counter() - begin
        losses.append(float(np.mean(evaluate(state.parameters).nll)))
    return losses, seconds


def draw(curves, words, path):
    """The difference to the mean loss of the exact gradient: the curves themselves lie on each other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
    mean = np.mean(curves["exact"], 0)
    at = np.linspace(0, words, len(mean))
    for (name, of_seeds), colour in zip(curves.items(), ("C0", "C1", "C2"), strict=False):
        for i, losses in enumerate(of_seeds):
            label = name if i == 0 else None
            left.plot(at, losses, color=colour, linewidth=0.8, label=label)
            right.plot(at[1:], (losses - mean)[1:], color=colour, linewidth=0.8, label=label)
    left.set(xlabel="words", ylabel="loss of held-out words (nats)")
    right.set(xlabel="words", ylabel="difference to the exact gradient's mean")
    right.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks training", description=__doc__)
    parser.add_argument("--gradients", nargs="*", choices=GRADIENTS, default=GRADIENTS[:2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--words", type=int, default=2**20, help="of the text, to learn from")
    parser.add_argument("--classes", type=int, default=8192, help="words in the vocabulary")
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--points", type=int, default=8, help="of each curve, after its start")
    parser.add_argument("--out", type=Path, default=Path("jsoftmax-out/benchmarks"))
    options = parser.parse_args(arguments)
    print(json.dumps(timing.machine()))
    corpus = trained.corpus(options.classes)
    network = language.Network(context=6, features=options.features, hidden=2 * options.features)
    curves = {name: [] for name in options.gradients}
    print(f"{'gradient':10}{'seed':>5}{'seconds':>9}  held-out loss, nats")
    for seed in range(options.seeds):
        for name in curves:  # in turns
            losses, seconds = curve(corpus, network, name, seed, options)
            curves[name].append(losses)
            print(f"{name:10}{seed:5}{seconds:9.1f} ", *(f"{x:.4f}" for x in losses), flush=True)
    curves = {name: np.array(of_seeds) for name, of_seeds in curves.items()}
    for name, of_seeds in curves.items():
        last = of_seeds[:, -1]
        print(f"{name:10} last loss {last.mean():.4f}, over the seeds {last.min():.4f} to {last.max():.4f}")
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": timing.machine(), **{n: c.tolist() for n, c in curves.items()}}, indent=1)
    (options.out / "training.json").write_text(text)
    if "exact" in curves:
        draw(curves, options.words, options.out / "training.png")
    return curves


if __name__ == "__main__":
    main()
