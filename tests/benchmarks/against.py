"""Loads a benchmark module with the package of another checkout, in the same process."""

import importlib
import importlib.util
import sys
from pathlib import Path


def loaded(module, path):
    """A second copy of a benchmark module, whose `jsoftmax` is the package in the folder `path`."""
    if not (Path(path) / "jsoftmax" / "__init__.py").is_file():
        raise SystemExit(f"{path}: no package jsoftmax here; give the folder of another checkout")
    name = "jsoftmax"
    ours = {key: value for key, value in sys.modules.items() if key.partition(".")[0] == name}
    for key in ours:
        del sys.modules[key]
    sys.path.insert(0, str(Path(path).resolve()))
    try:
        importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(f"{module.__name__}_against", module.__file__)
        copy = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(copy)
        return copy
    finally:
        sys.path.pop(0)
        for key in [key for key in sys.modules if key.partition(".")[0] == name]:
            del sys.modules[key]
        sys.modules.update(ours)
