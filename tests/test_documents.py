"""The commands and examples of README and pages run. (Docstrings run as doctests of their modules.)"""

import contextlib
import importlib.metadata
import importlib.util
import io
import re
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pinned
import pytest
import sampling

import jsoftmax
from jsoftmax._cli.image_sets import IMAGE_SETS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / ".docs/pages").glob("*.md"))}
RUN = ("functions", "devices", "migrating", "evaluation")  # pages whose every example runs by itself
EXAMPLES = {
    f"{name} {number}": example
    for name, text in [("README", README), *((name, PAGES[name]) for name in RUN)]
    for number, example in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
}
COMMANDS = [c for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for c in block.splitlines()]


def test_the_readme_shows_code_first():
    assert README.index("```python") < 400


def printed_by(code):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), np.printoptions():
        exec(code, {})
    return printed.getvalue().splitlines()


OF_README = [name for name in EXAMPLES if name.startswith("README")]


@pytest.mark.parametrize("name", sampling.sample(EXAMPLES, *OF_README, *(f"{page} 1" for page in RUN)))
def test_an_example_prints_what_its_comments_say(name):
    example = EXAMPLES[name]
    assert pinned.expected(example)
    with contextlib.ExitStack() as stack:
        if re.search("flax|equinox|orbax", example):  # which promote types and ranks
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
            stack.enter_context(jax.numpy_rank_promotion("allow"))
        assert printed_by(example) == pinned.expected(example)


LIBRARIES = pinned.examples("libraries.md")


@pytest.mark.parametrize("library", LIBRARIES)
def test_forward_mode_in_another_library(library):
    """Where the library is installed; `python -m tests.libraries` installs all, and tests the table."""
    code = LIBRARIES[library]
    imports = re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE)
    if missing := [name for name in imports if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert printed_by(code) == pinned.expected(code)


def test_the_page_about_libraries_has_the_versions_of_its_program():
    text = (ROOT / ".docs/pages/libraries.md").read_text().partition("`python -m tests.libraries`")[2]
    program = (ROOT / "tests/libraries/__main__.py").read_text()
    named = dict(re.findall(r"(\w+)\s(\d+\.\d+\.\d+)[,.]", text.partition("With jax")[0]))
    assert len(named) > 5
    assert named.items() <= dict(re.findall(r'"(\w+)": "([\d.]+)"', program)).items()


def test_the_page_about_metrics_has_the_versions_of_its_program():
    text = PAGES["evaluation"].partition("`python -m tests.other_metrics`")[2].partition("\n\n")[0]
    program = (ROOT / "tests/other_metrics/__main__.py").read_text()
    named = dict(re.findall(r"([\w-]+)\s(\d+\.\d+\.\d+)[,.\s]", text))
    assert {"torchmetrics", "netcal", "scikit-learn", "torch"} <= named.keys()
    assert named.items() <= dict(re.findall(r'"([\w-]+)": "([\d.]+)"', program)).items()


def test_the_commands_are_the_ones_the_package_has():
    assert COMMANDS == [
        'pip install -e ".[demo]" && python -m jsoftmax train',
        'pip install -e ".[test]" && pytest',
    ]


def test_every_public_function_is_in_the_table_and_documented():
    for name in jsoftmax.__all__:
        assert re.search(rf"[`.]{name}\b", README), name
        assert getattr(jsoftmax, name).__doc__, name
    for name in jsoftmax.rules.__all__:
        assert getattr(jsoftmax.rules, name).__doc__, name


@pytest.mark.parametrize("name", [n for n in jsoftmax.__all__ if callable(getattr(jsoftmax, n))])
def test_every_public_function_has_an_example(name):
    assert ">>> " in getattr(jsoftmax, name).__doc__


def test_the_layout_in_the_readme_is_the_layout():
    tree = README[README.index("## Layout") :]
    for path in re.findall(r"^(jsoftmax/\S+|notebooks/|tests/\S*)", tree, re.MULTILINE):
        assert (ROOT / path).exists(), path
    for path in (ROOT / "jsoftmax").glob("*/__init__.py"):
        assert f"\njsoftmax/{path.parent.name}/ " in tree, path


CONTRIBUTING = (ROOT / ".github/CONTRIBUTING.md").read_text()


def test_every_file_and_name_in_a_walk_exists():
    walks = CONTRIBUTING[CONTRIBUTING.index("## Four walks") : CONTRIBUTING.index("## A new function")]
    found = re.findall(r"`((?:jsoftmax|tests)/[\w/.]+)`(?:, `(\w+)`)?", walks)
    assert len(found) > 10
    for path, name in found:
        text = (ROOT / path).read_text() if name else ""
        assert (ROOT / path).exists(), path
        assert not name or re.search(rf"(def|class) {name}\b|^{name} = ", text, re.MULTILINE), (path, name)


MIGRATING = PAGES["migrating"]


def what_the_lines_speak_of():
    rng = np.random.default_rng(0)
    batch, classes, features = 6, 5, 3
    x, z, v, bias = (jnp.float32(rng.normal(size=s)) for s in ((batch, classes),) * 3 + ((classes,),))
    arrays = {
        "T": 0.5,
        "V": classes,
        "images": jnp.float32(rng.normal(size=(batch, classes, 2))),
        "ids": jnp.int32(rng.integers(0, classes, (batch, 2))),
        "y": jnp.int32(rng.integers(0, classes, batch)),
        "t": jnp.float32(rng.dirichlet(np.ones(classes), batch)),
        "mask": jnp.arange(classes) % 2 == 0,
        "c": jnp.arange(1.0, classes + 1),
        "weights": jnp.arange(1.0, batch + 1),
        "h": jnp.float32(rng.normal(size=(batch, features))),
        "w": jnp.float32(rng.normal(size=(features, classes))),
        "log_p": jax.nn.log_softmax(x),
        "log_q": jax.nn.log_softmax(z),
    }
    modules = {"jax": jax, "jnp": jnp, "optax": optax, "jsoftmax": jsoftmax}
    return modules | arrays | {"x": x, "z": z, "v": v, "bias": bias}


PACKAGES = re.findall(r"^## From (.+)", MIGRATING, re.MULTILINE)


@pytest.mark.parametrize("package", sampling.sample(PACKAGES, "jax.nn", "torch"))
def test_migrating_is_as_it_says(package):
    """Every new line runs; the lines for jax.nn and optax give the same values as before."""
    lines = MIGRATING.split(f"## From {package}\n")[1].partition("\n## ")[0]
    pairs = re.findall(r"^\| `(.+?)` \| `(.+?)` \|", lines, re.MULTILINE)
    assert len(pairs) == lines.count("\n| ") - 1
    scope = what_the_lines_speak_of()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for before, now in pairs:
            *mode, line = now.split("with jsoftmax.forward_mode(): ")
            with jsoftmax.forward_mode() if mode else contextlib.nullcontext():
                got = eval(line, scope)
            if package in ("jax.nn", "optax"):
                jax.tree.map(
                    lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6),
                    got,
                    eval(before, scope),
                )


def test_the_version_is_that_of_the_metadata_and_has_its_changes():
    assert jsoftmax.__version__ == importlib.metadata.version("jsoftmax")
    changes = (ROOT / ".github/CHANGELOG.md").read_text()
    assert re.search(r"^## (\S+?),", changes, re.MULTILINE)[1] == jsoftmax.__version__


def test_every_public_name_has_its_place_in_the_pages():
    """By its own name, or as part of a module that a page shows completely."""
    pages = "\n".join(PAGES.values())
    for name in jsoftmax.__all__:
        assert f"\n::: jsoftmax.{name}\n" in pages, name
    table = PAGES["functions"].split("\n## ")[1]
    for name in re.findall(
        r"^::: jsoftmax\.([a-z]\w+)$", PAGES["functions"].split("## Modes")[0], re.MULTILINE
    ):
        assert name in ("linear_plan", "linear_placement") or re.search(rf"`{name}\b", table), name


@pytest.fixture
def hooks():
    """What makes the pages of their sources."""
    found = importlib.util.spec_from_file_location("hooks", ROOT / ".docs/hooks.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_every_quotation_is_found_and_every_page_has_its_place(hooks):
    navigation = (ROOT / ".docs/mkdocs.yml").read_text()
    for name, text in PAGES.items():
        assert not re.search(r"^\{\w+", hooks.on_page_markdown(text), re.MULTILINE), name
        assert f" {name}.md\n" in navigation, name
    for link in re.findall(r"\]\((?!http)([\w./-]+)", "".join(PAGES.values())):
        assert (ROOT / ".docs/pages" / link).exists(), link
    for link in re.findall(r"\]\((?!http)([\w./-]+)", README):
        assert (ROOT / link).exists(), link


def test_the_page_of_the_command_line_has_every_command_with_its_help(hooks):
    """A command without words of its own appears below the others."""
    page = hooks.on_page_markdown(PAGES["command-line"])
    for name, parser in hooks.commands().items():
        assert re.search(
            rf"^## {name}\n.*?^usage: python -m jsoftmax {name} ", page, re.MULTILINE | re.DOTALL
        )
        for flag in re.findall(r"^  (--[\w-]+)", parser.format_help(), re.MULTILINE):
            assert f"\n  {flag} " in page, flag
    for known in IMAGE_SETS.values():
        assert f"({known.page})" in page
    silent = hooks.on_page_markdown("{help: check}\n\n{help: others}")
    assert "## check" not in silent
    assert "## train\n\n```text\nusage: python -m jsoftmax train" in silent


def test_every_extra_and_its_packages_are_on_the_page_of_installing():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Python {project['requires-python'].removeprefix('>=')} or later" in PAGES["install"]
    for extra, packages in project["optional-dependencies"].items():
        row = re.search(rf"^\| `{extra}` \|.*$", PAGES["install"], re.MULTILINE)[0]
        for package in packages:
            own, name = re.fullmatch(r"jsoftmax\[(\w+)\]|([\w-]+).*", package).groups()
            assert f"`{own}`" in row or f" {name}" in row or f"`{name}[" in row, (extra, package)


def test_the_workflow_is_the_script():
    steps = re.findall(r"- run: (.+)", (ROOT / ".github/workflows/ci.yml").read_text())
    assert steps == [".ci/run"]
