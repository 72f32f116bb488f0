"""The backend of a call: which of several ways to compute the same result."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jsoftmax.border._call import Call

Backend = str | Sequence[str] | None


def of_call(call: Call, names: tuple[str, ...], refused: Callable[[], str | None]) -> str:
    """The backend of the call: the first of `names` by default.

    Of a sequence, it is the first that can compute the call. "mosaic" cannot if ``refused()`` says why not.
    """
    given = call.arguments.get("backend")
    if given is None:
        return names[0]
    asked = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)
    if not asked:
        raise call.error(ValueError, "backend is an empty sequence", f"write {names[0]!r}, or leave it out")
    for name in asked:
        if name not in names:
            problem = f"there is no backend {name!r}"
            raise call.error(ValueError, problem, f"write one of {', '.join(map(repr, names))}")
    reason = refused() if "mosaic" in asked else None
    for name in asked:
        if name != "mosaic" or reason is None:
            return name
    problem = f"backend 'mosaic' cannot compute this call: {reason}"
    raise call.error(ValueError, problem, f"leave it out, or write backend=('mosaic', {names[0]!r})")
