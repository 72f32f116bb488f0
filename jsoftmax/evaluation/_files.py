"""Saves states in files and loads them."""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsoftmax.border._call import Call
from jsoftmax.evaluation._state import Measures, State, check_states, empty, measures

MEASURES = "measures"


def save(file: str | os.PathLike[str], state: State) -> None:
    """Write a state to an `.npz` file: its arrays by name, and what it measures, as JSON.

    The file needs no pickle. A state is also a tree of arrays, as every checkpoint library takes it.

    Args:
      file: the name of the file, such as "state.npz", or a file open for writing bytes.
      state: the state.

    Raises:
      TypeError: if `state` is not a state.
      OSError: if the file cannot be written.

    >>> import tempfile, jax.numpy as jnp
    >>> from jsoftmax import evaluation
    >>> state = evaluation.update(evaluation.empty(3), jnp.eye(3), jnp.arange(3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     evaluation.save(f"{folder}/first-half.npz", state)
    ...     again = evaluation.load(f"{folder}/first-half.npz")
    >>> print(evaluation.compute(evaluation.merge(state, again)).weight)
    6.0
    """
    check_states("save", state=state)
    arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in _named(state)}
    arrays[MEASURES] = np.array(json.dumps(measures(state)._asdict()))
    with _opened(file, "wb") as f:
        np.savez(f, **arrays)


def load(file: str | os.PathLike[str]) -> State:
    """The state that `save` wrote.

    Args:
      file: the name of the file, or a file open for reading bytes.

    Raises:
      ValueError: if the file is not a saved state, or holds float64 and this is not enabled.
      OSError: if the file cannot be read.
    """
    call = Call("evaluation.load", file=str(file))
    remedy = "give a file that evaluation.save wrote"
    try:
        with _opened(file, "rb") as f:
            saved = np.load(f, allow_pickle=False)
            if isinstance(saved, np.ndarray):
                raise ValueError("it holds one array")
            given = dict(saved)
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise call.error(ValueError, f"the file is not an .npz file ({error})", remedy) from None
    try:
        measured = Measures(**json.loads(str(given.pop(MEASURES))))
        is_enabled = jax.dtypes.canonicalize_dtype(measured.dtype) == measured.dtype
        template = empty(**(measured._asdict() if is_enabled else {}))
    except (KeyError, TypeError, ValueError) as error:
        raise call.error(ValueError, f"the file does not say what it measures ({error})", remedy) from None
    if not is_enabled:
        problem = f"the sums of the file are {measured.dtype}, which is not enabled"
        raise call.error(ValueError, problem, 'write jax.config.update("jax_enable_x64", True)')
    names = [name for name, _ in _named(template)]
    if sorted(given) != sorted(names):
        other = sorted(set(given).symmetric_difference(names))[0]
        raise call.error(ValueError, f"the file and its state differ in the array {other}", remedy)
    for name, leaf in _named(template):
        if given[name].shape != leaf.shape or given[name].dtype != leaf.dtype:
            raise call.error(ValueError, f"the array {name} is not {leaf.dtype}{list(leaf.shape)}", remedy)
    restored: Any = jax.tree.unflatten(jax.tree.structure(template), [jnp.asarray(given[n]) for n in names])
    return restored


def _opened(file: Any, mode: str) -> contextlib.AbstractContextManager[Any]:
    """The file, open. NumPy alone would add to the name, and leave a file open that is no .npz file."""
    return open(file, mode) if isinstance(file, (str, os.PathLike)) else contextlib.nullcontext(file)


def _named(state: State) -> list[tuple[str, Any]]:
    """The arrays of a state with their names, such as "nll.high"."""
    paths, _ = jax.tree_util.tree_flatten_with_path(state)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in paths]
