"""The pictures of `jsoftmax.plots`: their data, their errors, and names that do not collide, as drawn."""

import importlib
import sys
from itertools import pairwise
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.style
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.markers import CARETDOWN

import jsoftmax
from jsoftmax import evaluation, plots, rules
from jsoftmax._cli import figures
from jsoftmax._cli.training import Epoch
from jsoftmax.plots._figures import BLUE, PALE, VERMILION

NAN = float("nan")
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
P = np.array([0.1, 0.25, 0.5, 0.15])
BINS = SimpleNamespace(
    weight=[0, 5, 20, 900], confidence=[NAN, 0.3, 0.7, 0.95], accuracy=[NAN, 0.4, 0.5, 0.95]
)
CURVE = SimpleNamespace(coverage=[0, 0.25, 0.5, 1], risk=[NAN, 0.1, 0.05, 0.2], aurc=0.085)


def counts(classes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.poisson(2, (classes, classes)) + np.diag(rng.integers(100, 2000, classes))


def title(ax):
    return ax.get_title() or ax.get_title("left")


def new_axes(width=4.0, height=3.0):
    with matplotlib.style.context("jsoftmax.style"):
        return Figure(figsize=(width, height)).subplots()


@pytest.fixture(autouse=True)
def close_figures():
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def ax():
    return new_axes()


DRAWN = {
    "reliability_diagram": lambda ax=None: plots.reliability_diagram(BINS, ax=ax),
    "confusion_matrix": lambda ax=None: plots.confusion_matrix(counts(4), ax=ax),
    "risk_coverage": lambda ax=None: plots.risk_coverage(CURVE, label="a", ax=ax),
    "distribution": lambda ax=None: plots.distribution(P, label=0, ax=ax),
    "jacobian": lambda ax=None: plots.jacobian(P, ax=ax),
    "per_class_accuracy": lambda ax=None: plots.per_class_accuracy([0.5, 1], [2, 3], ax=ax),
}


def test_all_are_drawn_below():
    assert sorted(DRAWN) == plots.__all__


@pytest.mark.parametrize("name", DRAWN)
def test_axes_are_those_given_or_new_and_the_style_stays_yours(name, ax, monkeypatch):
    before = dict(matplotlib.rcParams)
    assert DRAWN[name](ax=ax) is ax
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    with matplotlib.rc_context({"axes.facecolor": "black", "text.color": "white"}):
        new = DRAWN[name]()
    assert new.figure is not ax.figure
    assert new.get_facecolor() == (1, 1, 1, 1)
    assert new.figure.canvas.manager is None
    assert dict(matplotlib.rcParams) == before


def test_pyplot_shows_a_new_figure_where_it_is_in_use():
    import matplotlib.pyplot as plt

    figure = DRAWN["jacobian"]().figure
    assert plt.fignum_exists(figure.number)
    plt.close(figure)


def test_matplotlib_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "jsoftmax.plots")
    with pytest.raises(
        ImportError, match=r'^jsoftmax\.plots draws with .*: pip install "jsoftmax\[plots\]"$'
    ):
        importlib.import_module("jsoftmax.plots")
    assert "plots" not in jsoftmax.__all__


def test_a_reliability_diagram_shows_the_gaps_and_the_counts(ax):
    plots.reliability_diagram(BINS, ax=ax)
    below = ax.figure.axes[-1]
    over, under = ax.containers
    # From the confidence to the accuracy, where the bin is; of the bin without rows, nothing.
    spans = [{b.get_x(): (b.get_y(), b.get_y() + b.get_height()) for b in bars} for bars in (over, under)]
    assert spans == [{0.5: (0.7, pytest.approx(0.5))}, {0.25: (0.3, 0.4), 0.75: (0.95, 0.95)}]
    assert all(bar.get_hatch() for bar in over)
    assert not any(bar.get_hatch() for bar in under)
    assert [bar.get_height() for bar in below.patches] == [5, 20, 900]
    assert below.get_yscale() == "log"
    assert title(ax) == "calibration error 0.005"
    assert [t.get_text() for t in ax.get_legend().texts][1:] == ["over-confident", "under-confident"]


def test_a_reliability_diagram_takes_what_evaluation_returns(ax):
    rng = np.random.default_rng(0)
    z = jnp.float32(rng.normal(size=(500, 4)))
    labels = jnp.argmax(z + rng.gumbel(size=z.shape), -1)
    metrics = evaluation.compute(evaluation.update(evaluation.empty(num_classes=4, bins=10), 2 * z, labels))
    plots.reliability_diagram(metrics.reliability, counts=False, ax=ax)
    assert title(ax) == f"calibration error {metrics.calibration_error:.3f}"
    assert ax.figure.axes == [ax]


@pytest.mark.parametrize("place", ["grid", "free", "subfigure"])
def test_the_counts_take_the_lower_part_of_the_axes(place):
    figure = Figure()
    if place == "free":
        ax = figure.add_axes((0.3, 0.2, 0.5, 0.6))
    else:
        ax = (figure.subfigures(1, 2)[0] if place == "subfigure" else figure).subplots()
    before = ax.get_position()
    plots.reliability_diagram(BINS, ax=ax)
    (below,) = (other for other in ax.figure.axes if other is not ax)
    above, beneath = ax.get_position(), below.get_position()
    assert above.y0 > beneath.y1
    np.testing.assert_allclose([beneath.x0, beneath.y0], [before.x0, before.y0])
    np.testing.assert_allclose([above.x1, above.y1], [before.x1, before.y1])
    assert below.get_xlim() == ax.get_xlim() == (0, 1)


def test_bins_of_equal_mass_lie_side_by_side(ax):
    confidence = [0.5, 0.8, 0.9, 0.98]
    plots.reliability_diagram(
        SimpleNamespace(weight=[3] * 4, confidence=confidence, accuracy=[0.4] * 4), ax=ax
    )
    bars = ax.figure.axes[-1].patches
    assert [bar.get_height() for bar in bars] == [3] * 4
    for bar, mean in zip(bars, confidence, strict=True):
        assert bar.get_x() < mean < bar.get_x() + bar.get_width()
    for left, right in pairwise(bars):
        assert left.get_x() + left.get_width() == pytest.approx(right.get_x())


def test_a_confusion_matrix_shows_shares_and_counts(ax):
    given = counts(10)
    given[3] = 0
    plots.confusion_matrix(given, names=WORDS, ax=ax)
    share = given / np.maximum(given.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(ax.images[0].get_array(), share)
    written = {(round(y), round(x)): t.get_text() for t in ax.texts for x, y in [t.get_position()]}
    assert written == {place: str(n) for place, n in np.ndenumerate(given) if n}
    assert title(ax).endswith(f"accuracy {given.trace() / given.sum():.1%}")


def test_a_confusion_matrix_of_many_classes_is_grouped(ax):
    given = counts(1000)
    plots.confusion_matrix(given, ax=ax)
    blocks = np.add.reduceat(np.add.reduceat(given, range(0, 1000, 34), 0), range(0, 1000, 34), 1)
    np.testing.assert_allclose(ax.images[0].get_array(), blocks / blocks.sum(1, keepdims=True))
    assert title(ax).split("\n") == [
        "1000 classes in 30 blocks of 34",
        f"accuracy {given.trace() / given.sum():.1%}",
    ]
    assert ax.get_ylabel() == "true (blocks of 34)"
    assert "68–101" in [label.get_text() for label in ax.get_yticklabels()]


def test_a_confusion_matrix_has_the_groups_given(ax):
    given = counts(40)
    group = np.arange(40) % 3
    plots.confusion_matrix(given, groups=[("cats", "dogs", "owls")[k] for k in group], ax=ax)
    member = np.eye(3)[group]
    blocks = member.T @ given @ member
    np.testing.assert_allclose(ax.images[0].get_array(), blocks / blocks.sum(1, keepdims=True))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cats", "dogs", "owls"]
    assert "40 classes in 3 groups" in title(ax)


def test_curves_of_risk_and_coverage_share_axes(ax):
    for label in ("first", "second"):
        plots.risk_coverage(CURVE, label=label, ax=ax)
    for line in ax.lines:
        np.testing.assert_array_equal(line.get_xdata(), CURVE.coverage)
        np.testing.assert_array_equal(line.get_ydata(), CURVE.risk)
    assert len({line.get_linestyle() for line in ax.lines}) == 2
    assert [t.get_text() for t in ax.get_legend().texts] == ["first, area 0.085", "second, area 0.085"]


def test_a_distribution_marks_the_true_class_and_those_preferred_to_it(ax):
    plots.distribution(P, label=1, ax=ax)
    assert [bar.get_height() for bar in ax.patches] == list(P)
    colours = [matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in ax.patches]
    assert colours == [PALE, BLUE.upper(), VERMILION.upper(), PALE]
    (mark,) = ax.lines
    assert (mark.get_xdata()[0], mark.get_ydata()[0], mark.get_marker()) == (1, 0.25, CARETDOWN)


@pytest.mark.parametrize(("top", "shown"), [(2, [2, 1, 0]), (9, [2, 1, 3, 0])])
def test_the_top_of_a_distribution_includes_the_true_class(top, shown, ax):
    plots.distribution(P, names=WORDS[:4], label=0, top=top, ax=ax)
    assert [bar.get_width() for bar in ax.patches] == list(P[shown])
    ax.figure.draw_without_rendering()
    assert [label.get_text() for label in ax.get_yticklabels()] == [WORDS[k] for k in shown]


def test_a_jacobian_is_that_of_the_rules(ax):
    plots.jacobian(P, ax=ax, limit=0.5)
    image = ax.images[0]
    np.testing.assert_allclose(image.get_array(), rules.softmax_jacobian(P), atol=1e-7)
    assert image.get_clim() == (-0.5, 0.5)
    assert [t.get_text() for t in ax.texts][:3] == [".09", "−.03", "−.05"]
    colder = plots.jacobian(P, temperature=0.5, ax=new_axes()).images[0]
    np.testing.assert_allclose(colder.get_array(), 2 * image.get_array())
    few = plots.jacobian(P, top=2, ax=new_axes())
    np.testing.assert_allclose(few.images[0].get_array(), image.get_array()[np.ix_([2, 1], [2, 1])])
    assert title(few).endswith("the 2 likeliest of 4 classes")


def test_the_accuracies_of_the_classes_are_sorted(ax):
    plots.per_class_accuracy([0.9, NAN, 0.2, 0.6], [10, 0, 30, 5], names=WORDS[:4], ax=ax)
    assert [bar.get_width() for bar in ax.patches] == [0.2, 0.6, 0.9]
    ax.figure.draw_without_rendering()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["two", "three", "zero"]
    assert [t.get_text() for t in ax.texts] == ["30", "5", "10"]
    assert title(ax).split("\n") == ["accuracy by class, mean 56.7%", "1 class has no rows"]


@pytest.mark.parametrize("high", [0.2, 0.99])
def test_the_accuracies_of_many_classes_are_a_curve(high, ax):
    accuracy = np.random.default_rng(0).uniform(high - 0.2, high, 1000)
    plots.per_class_accuracy(accuracy, np.ones(1000), ax=ax)
    (steps,) = ax.patches
    np.testing.assert_array_equal(steps.get_data().values, np.sort(accuracy))
    (worst,) = ax.texts
    assert worst.get_text().splitlines()[1].startswith(f"{accuracy.argmin()}  ")
    ax.figure.draw_without_rendering()
    box = worst.get_window_extent().transformed(ax.transAxes.inverted())
    assert box.y0 > high or box.y1 < high - 0.2


@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16, np.float16, np.float64, list])
def test_numbers_of_every_kind_are_taken(kind, ax):
    large = 2**13 * np.array([[6, 6], [1, 3]])  # a row has a sum beyond float16
    plots.confusion_matrix(large.tolist() if kind is list else kind(large), ax=ax)
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.5, 0.5], [0.25, 0.75]])
    p = [0.75, 0.25] if kind is list else kind([0.75, 0.25])
    assert [bar.get_height() for bar in plots.distribution(p, ax=new_axes()).patches] == [0.75, 0.25]


def bins(**changed):
    return SimpleNamespace(**(vars(BINS) | changed))


WRONG = {
    "not square": (
        lambda: plots.confusion_matrix(np.ones((2, 3))),
        "shape (2, 3); give one row and one column",
    ),
    "one number": (lambda: plots.confusion_matrix(3), "counts has shape ()"),
    "negative": (
        lambda: plots.confusion_matrix([[1, 2], [-3, 4]]),
        "counts[1, 0] is -3; give finite numbers",
    ),
    "not finite": (lambda: plots.confusion_matrix([[1, NAN], [3, 4]]), "counts[0, 1] is nan"),
    "ragged": (lambda: plots.confusion_matrix([[1, 2], [3]]), "not an array of real numbers"),
    "complex": (lambda: plots.confusion_matrix([[1j]]), "counts is complex128"),
    "names": (lambda: plots.confusion_matrix(np.eye(3), names=["a", "b"]), "2 names for 3 classes"),
    "a string": (lambda: plots.distribution(P, names="abcd"), "names is one string"),
    "groups": (lambda: plots.confusion_matrix(np.eye(3), groups=[0, 1]), "2 groups for 3 classes"),
    "most": (lambda: plots.confusion_matrix(np.eye(3), most=0), "most is 0"),
    "a figure": (lambda: plots.jacobian(P, ax=Figure()), "ax is Figure, not Axes of matplotlib; write ax="),
    "logits": (lambda: plots.distribution([2.0, -1.0]), "its least entry is -1, and its sum 1; give"),
    "a sum": (lambda: plots.jacobian([0.5, 0.6]), "its sum 1.1"),
    "rows": (lambda: plots.distribution(np.eye(2)), "p has shape (2, 2); give it one axis"),
    "label": (
        lambda: plots.distribution(P, label=4),
        "label is 4, and there are 4 classes; give an id from 0",
    ),
    "half a label": (lambda: plots.distribution(P, label=0.5), "label is 0.5"),
    "top": (lambda: plots.distribution(P, top=0), "top is 0"),
    "limit": (lambda: plots.jacobian(P, limit=-1), "limit is -1; write a number above 0"),
    "no field": (lambda: plots.reliability_diagram(3), "reliability is int, without .weight"),
    "a field's shape": (
        lambda: plots.reliability_diagram(bins(accuracy=[1])),
        "reliability.accuracy has shape (1,); give it the shape (4,)",
    ),
    "a field's range": (
        lambda: plots.reliability_diagram(bins(confidence=[0, 0.2, 1.5, 0])),
        "reliability.confidence[2] is 1.5; give numbers from 0 to 1",
    ),
    "coverage": (
        lambda: plots.risk_coverage(SimpleNamespace(coverage=[1, 0.5], risk=[0, 0], aurc=0)),
        "curve.coverage[1] is 0.5, after 1; give the coverage in rising order",
    ),
    "no area": (
        lambda: plots.risk_coverage(SimpleNamespace(coverage=[1], risk=[0])),
        "curve.aurc is None; give the area",
    ),
    "accuracy": (lambda: plots.per_class_accuracy([0.5, NAN], [1, 1]), "accuracy[1] is nan"),
    "weight": (lambda: plots.per_class_accuracy([0.5], [-1]), "weight[0] is -1"),
    "traced": (lambda: jax.jit(lambda p: plots.jacobian(p) and 0)(P), "p is traced; draw outside of jax.jit"),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_an_error_repeats_the_call_and_says_what_to_write(call, message):
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert str(error.value).startswith("jsoftmax.plots.")
    assert message in str(error.value)


def boxes(texts):
    return [t.get_window_extent() for t in texts if t.get_visible() and t.get_text()]


def assert_legible(figure):
    """As drawn, names along an axis do not overlap, and nothing lies outside the figure."""
    figure.draw_without_rendering()
    for axes in figure.axes:
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            for one, other in pairwise(boxes(labels)):
                assert not one.overlaps(other), [label.get_text() for label in labels]
        if axes.images:  # a number is within its cell
            widest = sorted(axes.texts, key=lambda t: len(t.get_text()))[-20:]
            cell = axes.get_window_extent().width / len(axes.images[0].get_array())
            assert all(max(box.width, box.height) <= 1.02 * cell for box in boxes(widest))
    drawn = figure.get_tightbbox()
    assert drawn.x0 >= -0.01
    assert drawn.y0 >= -0.01
    assert drawn.x1 <= figure.get_figwidth() + 0.01
    assert drawn.y1 <= figure.get_figheight() + 0.01


NAMES = {
    "digits": [str(k) for k in range(10)],
    "words": WORDS,
    "30 words": [f"{a} {b}" for a in WORDS for b in WORDS[:3]],
    "100 long words": [f"the {a} and the {b}" for a in WORDS for b in WORDS],
    "400 ids": [str(k) for k in range(400)],
    "signs": ["$", "a\nb", "$x$", "_", "^", "\\", "%", "#", "{", " "],
}


TICKS = [(function, kind) for function in ("matrix", "bars") for kind in NAMES]
TICKS += [
    ("top", "100 long words"),
    ("accuracies", "30 words"),
    ("accuracies", "signs"),
    ("jacobian", "words"),
]


@pytest.mark.share(4)
@pytest.mark.parametrize(("function", "kind"), TICKS)
def test_names_do_not_collide(function, kind):
    names = NAMES[kind]
    classes = len(names)
    p = np.random.default_rng(0).dirichlet(np.ones(classes))
    draw = {
        "matrix": lambda ax: plots.confusion_matrix(counts(classes), names=names, ax=ax),
        "bars": lambda ax: plots.distribution(p, names=names, label=2, ax=ax),
        "top": lambda ax: plots.distribution(p, names=names, label=2, top=7, ax=ax),
        "accuracies": lambda ax: plots.per_class_accuracy(p / p.max(), np.ones(classes), names=names, ax=ax),
        "jacobian": lambda ax: plots.jacobian(p, names=names, ax=ax),
    }[function]
    assert_legible(draw(None).figure)
    small = draw(new_axes(3.0, 2.8)).figure
    small.draw_without_rendering()
    for labels in (small.axes[0].get_xticklabels(), small.axes[0].get_yticklabels()):
        assert not any(one.overlaps(other) for one, other in pairwise(boxes(labels)))


def test_the_other_pictures_are_legible():
    assert_legible(plots.reliability_diagram(BINS).figure)
    assert_legible(plots.risk_coverage(CURVE).figure)
    assert_legible(plots.confusion_matrix(counts(60), most=60).figure)


def test_learning_curves_say_with_dropout():
    history = [Epoch(1.0, 0.5, 0.9, 0.6), Epoch(0.5, 0.8, 0.6, 0.7)]
    for dropout, label in ((0.2, "training, with dropout"), (0.0, "training")):
        figure = figures.learning_curves(history, dropout)
        assert [text.get_text() for text in figure.axes[0].get_legend().texts] == [label, "test"]
        assert_legible(figure)
