"""The architecture, read from the imports: arrows only go down, and only public JAX is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jsoftmax"

# A package imports from the floors below its own, not from its siblings.
FLOORS = (
    ("rules", "transforms"),
    ("border",),
    ("online", "logits"),
    ("backends",),
    ("rows",),
    ("linear",),
    ("functions", "evaluation"),
    ("sampling", "plots"),
    ("__init__",),
)
# A module imports those of its package that are listed before it.
MODULES = {
    "rules": (
        "_elementary",
        "_focal",
        "_labels",
        "_rows",
        "_softmax",
        "_scaling",
        "_divergences",
        "_entmax",
        "__init__",
    ),
    "transforms": ("_modes", "_sharding", "_rule_trees", "_platforms", "_autodiff", "_row_wise"),
    "border": (
        "_given",
        "_arrays",
        "_call",
        "_backends",
        "_eager",
        "_mesh_axes",
        "_label_checks",
        "_segment_ids",
    ),
    "logits": ("_moments", "_rounding", "_scaling"),
    "backends": (
        "_kernel_rows",
        "_kernels",
        "_request",
        "_block_sizes",
        "_choice",
        "_reading",
        "_sinks",
        "_by_class",
        "_blocks",
        "_beside_label",
        "_cpu",
        "_cpu_loops",
        "_row_blocks",
        "_accelerators",
        "_mosaic_gpu_plan",
        "_mosaic_gpu_moves",
        "_mosaic_gpu_passes",
        "_mosaic_gpu_body",
        "_mosaic_gpu",
        "_mosaic_tpu_blocks",
        "_mosaic_tpu_calls",
        "_mosaic_tpu",
        "_mosaic_gpu_head_tiles",
        "_mosaic_gpu_head_kernel",
        "_mosaic_gpu_head",
    ),
    "rows": (
        "_peaks",
        "_bare_sums",
        "_masks",
        "_reductions",
        "_probabilities",
        "_leading",
        "_curvature",
        "_map_residuals",
        "_maps",
        "_statistics",
        "_statistics_rules",
        "_weights",
        "_two_rows",
        "_divergences",
        "_row_numbers",
        "_unused",
        "_loss_terms",
        "_fused_loss",
        "_entmax",
        "_fenchel_young",
        "_events",
        "_sparse",
        "_top",
        "_binary",
        "_segments",
        "_segment_numbers",
    ),
    "linear": (
        "_plan",
        "_single_classes",
        "_products",
        "_merging",
        "_block",
        "_sampling",
        "_loss_kernel",
        "_numbers",
        "_row_functions",
        "_arguments",
        "_pairs",
        "_few",
        "_contrast_sides",
        "_contrast",
        "_contrast_arguments",
        "_contrast_sigmoid",
    ),
    "functions": (
        "_maps",
        "_sparse_maps",
        "_logsumexp",
        "_losses",
        "_focal",
        "_two_classes",
        "_sparse_losses",
        "_information",
        "_odds",
        "_divergences",
        "_row_statistics",
        "_linear_plan",
        "_linear",
        "_contrastive",
        "_sigmoid_contrastive",
        "_linear_divergences",
        "_sparse_divergences",
        "_top_log_probs",
        "_segment_maps",
        "_segment_logsumexp",
        "_segment_losses",
        "_placement",
        "_explain",
    ),
    "sampling": (
        "_noise",
        "_race",
        "_categorical",
        "_threshold",
        "_keep",
        "_linear",
        "_gumbel_softmax",
        "_without_replacement",
        "__init__",
    ),
    "plots": ("_figures", "_labels", "_arguments", "_calibration", "_matrices", "_classes", "__init__"),
    "evaluation": (
        "_sums",
        "_state",
        "_labels",
        "_batch",
        "_draws",
        "_rows",
        "_scores",
        "_update",
        "_statistics",
        "_temperature_search",
        "_temperature",
        "_temperature_in_batches",
        "_merging",
        "_metrics",
        "_compute",
        "_intervals",
        "_files",
        "__init__",
    ),
}
STANDARD = {
    "__future__",
    "collections",
    "contextlib",
    "functools",
    "html",
    "importlib",
    "inspect",
    "itertools",
    "json",
    "math",
    "os",
    "sys",
    "zipfile",
    "zlib",
}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """All modules that a file imports, and all names that it imports from them, with dots."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor(module):
    return next(i for i, names in enumerate(FLOORS) if module in names)


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.parent.name != "_cli"], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_arrows_go_down_only(path):
    if path.stem == "__main__":
        assert set(imports(path)) == {"jsoftmax._cli.main"}
        return
    package = path.parent.name if path.parent != PACKAGE else path.stem
    for name in imports(path):
        top, *rest = name.split(".")
        if top != "jsoftmax":
            extra = {"matplotlib"} if package == "plots" else set()
            known = {"jax", "numpy", "operator", "typing", *STANDARD} | extra
            assert top in known, f"{path.name} imports {name}"
        elif rest[0] == package:
            known = MODULES[package]
            assert known.index(rest[1]) < known.index(path.stem), f"{path.name} imports {name}"
        else:
            assert floor(rest[0]) < floor(package), f"{path.name} imports {name}"


@pytest.mark.parametrize("package", MODULES)
def test_every_listed_module_exists(package):
    for name in MODULES[package]:
        assert (PACKAGE / package / f"{name}.py").exists(), name


@pytest.mark.parametrize("path", sorted((PACKAGE / "rules").glob("*.py")), ids=lambda p: p.stem)
def test_rules_know_only_each_other(path):
    for name in imports(path):
        assert name.startswith(
            ("jsoftmax.rules.", "jax.", "__future__", "collections.abc", "math", "typing")
        ), name


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
    """XLA's are up to 129 ulp off (`rules.log1p`, `rules.expm1`), and so are its functions based on them."""
    own = {"log1p", "expm1", "logaddexp", "softplus"}
    used = {
        (path.name, node.attr)
        for path in SOURCES
        if path.parent.name != "_cli"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in own and ast.unparse(node.value) != "rules"
    }
    assert not used


def test_an_import_loads_no_more_than_it_needs():
    """A subpackage that few programs use is loaded at its first use, and is listed before that."""
    code = (
        "import sys, jax, jsoftmax\n"
        "assert 'evaluation' in dir(jsoftmax) and set(jsoftmax.__all__) <= set(dir(jsoftmax))\n"
        "late = ['jsoftmax.evaluation', 'jsoftmax.plots', 'jsoftmax._cli']\n"
        "late += ['jax.experimental.checkify', 'jax.experimental.pallas', 'optax', 'matplotlib']\n"
        "late += [f'jsoftmax.backends._mosaic_{name}' for name in ('gpu', 'tpu', 'gpu_head')]\n"
        "assert not [name for name in late if name in sys.modules]\n"
        "assert jsoftmax.evaluation.update\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)


def test_a_first_call_compiles_one_program():
    """JAX's key of a program contains what its modules add to it, so none may be imported within a trace."""
    code = (
        "import jax, jax.numpy as jnp, jsoftmax\n"
        "traces = []\n"
        "@jax.jit\n"
        "def losses(x, y):\n"
        "    traces.append(1)\n"
        "    return jsoftmax.cross_entropy(x, y) + jsoftmax.linear_cross_entropy(x, x.T, y)\n"
        "for _ in range(2):\n"
        "    losses(jnp.ones((4, 4)), jnp.zeros(4, int))\n"
        "assert len(traces) == 1, len(traces)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
