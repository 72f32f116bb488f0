"""The model of `python -m jsoftmax train --data text` on several processes, which resume after a restart.

    python tests/train_on_processes.py --coordinator 127.0.0.1:9000 --processes 2 --process 0 \\
        --mesh 2 2 --checkpoint state.npz --steps 100

Each process runs this command with its own number. Rows are sharded over one axis of the mesh, and classes
over the other: these are the rows of the table of embeddings, which is also the weight of the head. If a
process dies, the others end with an error. After a restart, on any mesh, they continue from the last state.
"""

import argparse
import os
from pathlib import Path

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jsoftmax
from jsoftmax import evaluation
from jsoftmax._cli import language, text
from jsoftmax._cli.language import Network
from jsoftmax._cli.language_training import State, make_step

NETWORK = Network(context=2, features=16, hidden=32)
VOCABULARY = 254  # plus the two words of every vocabulary
BATCH = 64
SAVED_EVERY = 10  # steps


def train(mesh, corpus, steps, checkpoint, on_step):
    """Train up to this number of steps, from the checkpoint if there is one; return the held-out metrics."""
    optimizer = optax.sgd(0.3, momentum=0.9)
    parameters = NETWORK.initialise(jax.random.key(0), corpus)
    state = State(parameters, optimizer.init(parameters))
    first, state = restored(checkpoint, state) if checkpoint.exists() else (0, state)
    state = placed(mesh, state)
    step = make_step(NETWORK, optimizer)
    inputs = language.contexts(corpus.train, NETWORK.context)
    for number in range(first + 1, steps + 1):
        # It depends only on the number of the step, so a restart draws the same batches.
        rows = np.random.default_rng(number).choice(len(inputs), BATCH)
        batch = on_rows(mesh, inputs[rows], corpus.train[rows])
        state, loss = step(state, *batch, None)
        on_step(number, float(loss))
        if number % SAVED_EVERY == 0:
            save(checkpoint, number, state)
    rows = slice(len(corpus.held_out) // BATCH * BATCH)
    inputs = language.contexts(corpus.held_out, NETWORK.context)
    return evaluate(mesh, state.parameters, *on_rows(mesh, inputs[rows], corpus.held_out[rows]))


def evaluate(mesh, parameters, contexts, labels):
    """The metrics of all rows: one state per shard, merged."""

    def of_shard(found, labels):
        state = evaluation.empty(top_k=1, bins=None)
        state = evaluation.update_from_statistics(state, found, labels)
        return evaluation.compute(evaluation.merge_across(state, "rows"))

    @jax.jit
    def of_all(parameters, contexts, labels):
        hidden = NETWORK.hidden_of(parameters, contexts)
        found = jsoftmax.linear_row_statistics(
            hidden, parameters.table, labels, vocab_axis=0, bias=parameters.bias
        )
        across = jax.shard_map(of_shard, mesh=mesh, in_specs=P("rows"), out_specs=P())
        return across(found, labels)

    return jax.device_get(of_all(parameters, contexts, labels))


def placed(mesh, tree):
    """A tree of arrays that every process has, on the mesh: classes over their axis, all else replicated."""

    def place(leaf):
        spec = P("classes") if leaf.shape[:1] == (VOCABULARY + 2,) else P()
        return on_mesh(mesh, spec, np.asarray(leaf))

    return jax.tree.map(place, tree)


def on_rows(mesh, *arrays):
    """Arrays whose rows are sharded over the mesh."""
    return [on_mesh(mesh, P("rows"), a) for a in arrays]


def on_mesh(mesh, spec, array):
    """An array on the mesh; this process makes its own shards."""
    return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda part: array[part])


def save(checkpoint, number, state):
    """Write the state of all processes; the file is replaced at once, so it is always complete."""
    leaves = multihost_utils.process_allgather(jax.tree.leaves(state), tiled=True)
    if jax.process_index() == 0:
        unfinished = checkpoint.with_suffix(".unfinished.npz")
        np.savez(unfinished, number, *leaves)
        os.replace(unfinished, checkpoint)


def restored(checkpoint, like):
    """The step number and the state that were saved."""
    with np.load(checkpoint) as file:
        number, *leaves = file.values()
    return int(number), jax.tree.unflatten(jax.tree.structure(like), leaves)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--coordinator", required=True, help="host:port of process 0")
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--process", type=int, required=True, help="the number of this one")
    parser.add_argument("--mesh", type=int, nargs=2, required=True, help="shards of the rows, of the classes")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--devices", type=int, default=2, help="of each process, on CPU")
    parser.add_argument("--patience", type=int, default=100, help="seconds after which the silent are dead")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", arguments.devices)
    jax.distributed.initialize(
        arguments.coordinator,
        arguments.processes,
        arguments.process,
        heartbeat_timeout_seconds=arguments.patience,
    )
    mesh = Mesh(np.array(jax.devices()).reshape(arguments.mesh), ("rows", "classes"))
    metrics = train(
        mesh,
        text.load(None, VOCABULARY),
        arguments.steps,
        arguments.checkpoint,
        lambda number, loss: print("step", number, "loss", loss, flush=True),
    )
    print("rows", metrics.weight, "nll", metrics.nll, "accuracy", metrics.accuracy)


if __name__ == "__main__":
    main()
