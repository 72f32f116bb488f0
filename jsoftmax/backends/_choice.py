"""Decides which form of a computation runs on CPU, on a GPU and on a TPU: the only module that does.

The plain form, array operations only, is correct for every request. A platform has its own form only where
that saves much time or memory, or where the call asks for a kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from jsoftmax.backends import _kernels
from jsoftmax.backends._block_sizes import SHORTEST_IN_BLOCKS, block_size, root_size, row_block_size
from jsoftmax.backends._request import IS_OLD_XLA, Form, Plan, Request
from jsoftmax.transforms import _modes
from jsoftmax.transforms._sharding import is_known, on_one_device, spec

# Limits on CPU, as numbers of classes. A "bare" sum has no select or comparison among its operations.
MOST_UNROLLED = 32  # XLA's reduction library is slow for shorter rows, and most of them have a leading class
LEAST_UNROLLED = 2**16  # in logits: of fewer, it saves less than a millisecond, and takes longer to compile
LONGEST_BESIDE_LABEL = 512  # a longer row rarely has a leading class, and then a bare sum is enough
LONGEST_WHOLE = 32768  # XLA sums longer rows several times slower, and stores what two sums share
LONGEST_CHAIN = 1024  # for longer rows XLA stores what the two sums of the softmax share
FEWEST_IN_CHAINS = 4096  # of fewer rows of 16 bits, XLA stores the exponentials in float32:
LEAST_STORED = 2**23  # so many take longer to store than to compute again
MOST_REUSED = 2**24  # in bytes: larger arrays may get new memory at every call, which is slow to write
# On a GPU, XLA fuses a softmax over the last axis into one kernel up to this many classes. On a TPU, that
# form reads the logits once more than the form for longer rows.
LONGEST_FUSED = 16384


def choose(request: Request) -> Plan:
    """The form for each platform."""
    gpu, tpu = _on_accelerators(request)
    _, gpu_kernel, tpu_kernel = choose_kernel(request)
    return Plan(_on_cpu(request), gpu_kernel or gpu, tpu_kernel or tpu)


def choose_kernel(request: Request) -> Plan:
    """The kernel for each platform; None where it has none for this request, or none is asked for."""
    return Plan(None, _kernel(request, "gpu"), _kernel(request, "tpu"))


def _kernel(request: Request, platform: _kernels.Platform) -> Form | None:
    """The kernel of a platform, if kernels are asked for and this one does not refuse the request."""
    x, axes = request.x, request.axes
    if request.kernel is None or request.sharded or not _modes.kernels() or not on_one_device(x, *axes):
        return None
    refused = _kernels.refuses(request.kernel, x, axes, platform)
    return Form(f"{platform} kernel") if refused is None else None


def kernels(function: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """``function(platform, …)``, which calls a kernel of that platform, as functions of forms by name."""
    return {f"{platform} kernel": partial(function, platform) for platform in ("gpu", "tpu")}


def _on_cpu(request: Request) -> Form | None:
    what = request.what
    if what == "label":
        return Form("read") if request.is_whole_row else None
    if what == "maximum":
        return Form("by class") if request.bare and request.is_strided else None
    if what == "largest class":
        if not (request.is_large and request.is_whole_row):
            return None
        size = root_size(request.classes)
        return Form("entries first") if size is None else Form("block of the largest", size)
    if what in ("rows", "gradient of rows", "gradient of a map"):
        return _in_row_blocks(request) if request.is_large else None
    if what == "sums":
        return _sums_on_cpu(request)
    if what == "rest":
        return _rest_on_cpu(request)
    if what in ("softmax", "log_softmax"):
        return _map_on_cpu(request)
    if what == "gradient with targets":
        return Form("unrolled") if _sums_class_by_class(request) else None
    if what == "masked logits":
        return _masks_on_cpu(request)
    if what == "masked entries":
        return Form("conditional") if request.is_large else None
    if what == "derivative of a map":
        return _derivative_of_map_on_cpu(request)
    return None


def _masks_on_cpu(request: Request) -> Form | None:
    x = request.x
    fits = request.is_large and x.size * x.dtype.itemsize <= MOST_REUSED
    is_whole = fits and on_one_device(x, *range(x.ndim))
    return Form("stored mask") if request.bare and is_whole and not _modes.in_cache() else None


def _rest_on_cpu(request: Request) -> Form | None:
    if not (request.bare and request.is_large and request.is_whole_row):
        return None
    classes, result_used_for = request.classes, request.result_used_for
    if request.with_sums and (classes <= MOST_UNROLLED or request.is_strided):
        return None
    size = block_size(classes)
    if _stores_for_gradient(request) and (size or classes <= LONGEST_BESIDE_LABEL):
        return Form("stored beside the label", size or 0)
    if classes <= MOST_UNROLLED or request.is_strided:
        return Form("by class", terms_used_again=result_used_for != "nothing")
    if request.for_label and classes <= LONGEST_BESIDE_LABEL:
        return Form("beside the label")
    if size:
        return Form("blocks", size, terms_used_again=result_used_for == "exponentials")
    return Form("whole") if classes <= LONGEST_WHOLE else None


def _stores_for_gradient(request: Request) -> bool:
    """Whether the rest is for the loss of a label with its gradient, which can reuse the exponentials."""
    is_for_both = request.for_label and request.result_used_for == "exponentials"
    return is_for_both and request.is_wide and not request.is_strided


def _sums_on_cpu(request: Request) -> Form | None:
    if not (is_known(request.x) and request.x.size):
        return None
    x, axes = request.x, request.axes
    if _sums_class_by_class(request):
        return Form("unrolled")
    if request.is_strided and request.classes > 1:
        return Form("by class")
    longest = max(axes, key=lambda axis: x.shape[axis], default=0)
    cuttable = bool(axes) and on_one_device(x, longest) and not _modes.in_cache()
    return Form("loop") if cuttable and x.shape[longest] > LONGEST_WHOLE else None


def _sums_class_by_class(request: Request) -> bool:
    """Whether sums of exponentials are unrolled: the rows are short, and many."""
    many = request.is_large and request.x.size >= LEAST_UNROLLED
    return many and request.is_whole_row and 1 < request.classes <= MOST_UNROLLED


def _map_on_cpu(request: Request) -> Form | None:
    if not request.is_large:
        return None
    if request.what == "log_softmax":
        return Form("from the sums")
    x, classes = request.x, request.classes
    if not request.bare or not request.is_whole_row:
        return None
    if not request.is_wide:  # else XLA stores the exponentials in the memory of the probabilities
        return None if _is_chain_of_16_bits(request) else Form("from the sums")
    if x.ndim - 1 not in request.axes:
        is_chain = MOST_UNROLLED < classes < SHORTEST_IN_BLOCKS
        is_slow = request.is_first or request.is_strided
        return None if is_chain and not is_slow else Form("from the sums")
    if classes <= LONGEST_CHAIN:
        return None  # the plain form is one chain, which XLA's library fuses
    size = block_size(classes)
    return Form("from the sums") if size is None else Form("stored blocks", size)


def _derivative_of_map_on_cpu(request: Request) -> Form | None:
    if not request.is_large:
        return None
    if request.is_first:
        return Form("sums apart")
    # Logits of 16 bits are kept, and p computed again.
    can_be_chain = request.bare and not request.is_wide and _library_takes(request)
    of_softmax = request.result_used_for == "exponentials"
    is_chain = _is_chain_of_16_bits(request) if of_softmax else request.classes < SHORTEST_IN_BLOCKS
    return Form("one chain") if can_be_chain and is_chain else None


def _library_takes(request: Request) -> bool:
    """Whether XLA's library runs several sums of a row as one kernel."""
    return request.x.ndim - 1 in request.axes and request.x.dtype != "float16"


def _is_chain_of_16_bits(request: Request) -> bool:
    """Whether the softmax of 16-bit logits runs as one chain in XLA's library."""
    is_cut = request.x.ndim - 1 in request.axes and request.x.size < FEWEST_IN_CHAINS * request.classes
    return not is_cut or request.x.size < LEAST_STORED


def _in_row_blocks(request: Request) -> Form | None:
    """Blocks of rows, unless they save nothing: XLA stores no array, and the classes are close."""
    x, what = request.x, request.what
    # For the gradient of a map in 16 bits, XLA stores the probabilities, in float32.
    is_map_in_16_bits = what == "gradient of a map" and not request.is_wide and not _library_takes(request)
    stores = not request.bare or (is_map_in_16_bits and not (IS_OLD_XLA and x.dtype == "bfloat16"))
    far = request.is_strided
    is_short = request.classes <= MOST_UNROLLED and (not far or (request.bare and what == "rows"))
    size = None if is_short or not (far or stores) else row_block_size(request, closer=far)
    name = "row blocks, closer" if request.bare and far else "row blocks"
    return None if size is None else Form(name, size)


def _on_accelerators(request: Request) -> tuple[Form | None, Form | None]:
    """The forms for a GPU and for a TPU."""
    x, axes, what = request.x, request.axes, request.what
    if request.sharded:
        return None, None
    # Merging parts of a row loses up to 3 ulp over a row. Only 16-bit logits allow that: float32 logits take
    # two passes. So do classes that a mesh shards: XLA would gather the parts of a row, but reduces sums.
    one_pass = x.dtype.itemsize == 2 and all(spec(x)[axis] is None for axis in axes)
    is_fused = one_pass and axes == (x.ndim - 1,) and x.shape[-1] <= LONGEST_FUSED
    if what == "state" and one_pass:
        return Form("one pass", _pieces(x.shape, axes)), Form("one pass", 1)
    if what == "softmax" and one_pass:
        return Form("one kernel" if is_fused else "from the sums"), Form("from the sums")
    if what == "log_softmax" and is_fused:
        return Form("one kernel"), None
    if what == "gradient with targets":
        return Form("sums in one pass"), Form("sums in one pass")
    if what == "derivative of a map":
        return Form("one kernel" if is_fused else "sums in one pass"), Form("sums in one pass")
    return None, None


def _pieces(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """The number of pieces of a row on GPU. XLA itself would cut finer, and store the part of each piece.

    The pieces are equal, of 1024 to 4096 classes; 1 if a row has no such pieces or is short.
    """
    classes = shape[axes[0]] if len(axes) == 1 else 0
    if classes <= LONGEST_FUSED:
        return 1
    counts = range(-(-classes // 4096), classes // 1024 + 1)
    return next((count for count in counts if classes % count == 0), 1)
