"""The architecture, read off the imports: arrows go down only, and only public JAX is used."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jsoftmax"

# A module may import from the layers below its own; its siblings it does not know.
LAYERS = (
    ("_sharding", "_recomputation", "_reading", "_rule_trees", "_moments", "_given", "rules"),
    ("_across", "_row_blocks", "_arrays"),
    ("_arguments", "_autodiff", "_blocks", "_fixed_point", "_branches", "_eager"),
    ("online", "_scaling", "_cpu", "_mesh_axes", "_reports"),
    ("_float64", "_row_sums"),
    ("_accelerators", "_cpu_maps", "_pivots"),
    ("_reductions",),
    ("_rows", "_cancellation"),
    ("_maps", "_logsumexp", "_statistics", "_divergences"),
    ("_loss_terms", "_row_numbers"),
    ("_products", "_parts", "_row_wise"),
    ("_head_blocks",),
    ("_linear",),
    ("_losses", "_information", "_row_statistics", "_head"),
    ("_linear_head", "_placement", "evaluation"),
    ("__init__",),
)
EVALUATION = (
    ("_sums", "_labels"),
    ("_state", "_temperature"),
    ("_batches", "_merging", "_metrics"),
    ("__init__",),
)
SOURCES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """Every module a file imports, and every name it takes from one, fully dotted."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(module, layers=LAYERS):
    return next(i for i, names in enumerate(layers) if module in names)


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda p: p.stem)
def test_arrows_go_down_only(path):
    if path.stem == "__main__":
        assert set(imports(path)) == {"jsoftmax._cli.main"}
        return
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "jsoftmax":
            assert layer(rest[0]) < layer(path.stem), f"{path.name} imports {name}"
        else:
            standard = {
                "__future__",
                "collections",
                "contextlib",
                "functools",
                "importlib",
                "inspect",
                "itertools",
                "math",
            }
            assert top in {"jax", "numpy", "operator", "typing", *standard}, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "rules").glob("*.py")), ids=lambda p: p.stem)
def test_rules_know_only_each_other(path):
    for name in imports(path):
        assert name.startswith(("jsoftmax.rules.", "jax.", "__future__", "math", "typing")), name


@pytest.mark.parametrize("path", sorted((PACKAGE / "evaluation").glob("*.py")), ids=lambda p: p.stem)
def test_evaluation_is_in_layers_too(path):
    for name in imports(path):
        top, *rest = name.split(".")
        if top != "jsoftmax":
            assert top in {"jax", "__future__", "collections", "functools", "math", "typing"}, name
        elif rest[0] != "evaluation":
            assert layer(rest[0]) < layer("evaluation"), f"{path.name} imports {name}"
        else:
            assert layer(rest[1], EVALUATION) < layer(path.stem, EVALUATION), f"{path.name} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_public_jax_is_used(path):
    assert "_src" not in path.read_text()


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= 250


def test_the_top_level_holds_what_a_reader_expects():
    shown = {p.name for p in PACKAGE.parent.iterdir() if not p.name.startswith(".")}
    generated = {"jsoftmax-out", "build", "dist"}
    assert shown - generated <= {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "jsoftmax",
        "tests",
        "notebooks",
        "findings",
    }


def test_elementary_functions_are_the_packages_own():
    """XLA's are up to 129 ulp off (`rules.log1p`, `rules.expm1`), and so is what it builds on them."""
    own = {"log1p", "expm1", "logaddexp", "softplus"}
    allowed = {("_elementary.py", "log1p"), ("_cpu_maps.py", "log1p")}  # of no number in [−0.5, 0)
    used = {
        (path.name, node.attr)
        for path in SOURCES
        if path.parent.name != "_cli"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in own and ast.unparse(node.value) != "rules"
    }
    assert used == allowed
