"""Pictures of distributions and of metrics, on matplotlib axes; needs ``pip install "jsoftmax[plots]"``.

Every function draws on `ax`, or else on a new figure, and returns the axes. A new figure has the style of
this package, ``jsoftmax.style``; on given axes, the style is yours. A new figure belongs to pyplot where the
program has loaded pyplot or runs in IPython, so that a notebook and ``plt.show()`` show it; anywhere else it
is a plain figure, which ``ax.figure.savefig("name.png")`` writes. No function changes ``rcParams``.

>>> from jsoftmax import plots
>>> ax = plots.confusion_matrix([[9, 1], [2, 8]], names=["cat", "dog"])
>>> ax.figure.savefig("confusion.png")  # doctest: +SKIP

The colours are those of Okabe and Ito. What the colour of a bar or of a line says, its place, a marker,
hatching or dashes say as well.
"""

from importlib.util import find_spec

if find_spec("matplotlib") is None:
    raise ImportError('jsoftmax.plots draws with matplotlib: pip install "jsoftmax[plots]"')

from jsoftmax.plots._calibration import reliability_diagram, risk_coverage
from jsoftmax.plots._classes import distribution, per_class_accuracy
from jsoftmax.plots._matrices import confusion_matrix, jacobian

__all__ = [
    "confusion_matrix",
    "distribution",
    "jacobian",
    "per_class_accuracy",
    "reliability_diagram",
    "risk_coverage",
]
