"""A head with the logits of a trained model, a bigram model of the words in Python's standard library.

    logit_j = log p(j | the previous word)

The previous word is one of the 63 most frequent, or any other. p is the relative frequency after adding 5000
words of the unigram model to the counts. The logits have 65 features, the last a constant, which a rotation
maps to the number of features that is asked for.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

from jsoftmax._cli import text

CONTEXTS, SMOOTHING, HELD_OUT_ROWS = 64, 5000, 8192


def corpus(classes):
    """The words in the modules of the standard library, without its tests."""
    root = Path(os.__file__).parent
    left_out = {"site-packages", "dist-packages", "test", "tests", "idlelib"}
    paths = [path for path in sorted(root.rglob("*.py")) if not left_out.intersection(path.parts)]
    np.random.default_rng(0).shuffle(paths)
    sources = (path.read_text(encoding="utf-8", errors="ignore").replace("\0", "") for path in paths)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sources.txt"
        path.write_text("\n\n".join(sources), encoding="utf-8")
        return text.load(path, classes - 2)


def arrays(rows, features, classes):
    """Hidden [B, D], weight [D, V] and labels; there are at most as many classes as distinct words."""
    found = corpus(classes)
    frequencies = found.frequencies.astype(np.float64)
    rows = min(rows, len(found.held_out) - 1)
    context = np.full(len(frequencies), CONTEXTS - 1)
    frequent = np.argsort(-frequencies, kind="stable")[: CONTEXTS - 1]
    context[frequent] = np.arange(len(frequent))
    counts = np.zeros((CONTEXTS, len(frequencies)))
    np.add.at(counts, (context[found.train[:-1]], found.train[1:]), 1)
    seen = counts.sum(1, keepdims=True)
    weight = np.log((counts + SMOOTHING * frequencies) / (seen + SMOOTHING)) - np.log(frequencies)
    weight = np.concatenate([weight, np.log(frequencies)[None]])
    hidden = np.eye(CONTEXTS)[context[found.held_out[:rows]]]
    hidden = np.concatenate([hidden, np.ones((rows, 1))], 1)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(features, len(weight))))[0].T
    labels = found.held_out[1 : rows + 1]
    return (hidden @ rotation).astype(np.float32), (rotation.T @ weight).astype(np.float32), labels
