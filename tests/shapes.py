"""Named real shapes for tests and benchmarks: the vocabularies of well-known models, and the grid."""

VOCABULARIES = {
    "GPT-2": 50257,
    "Llama-3": 128256,
    "Qwen": 151936,
    "Gemma": 256000,
}
GRID = (2, 10, 100, 256, 1000, 4096, 8192, 32000, 32768, 65536, 100000, 131072, 262144)
CLASSES = tuple(sorted({*GRID, *VOCABULARIES.values()}))
SMALL = ((1, 10), (32, 10), (256, 1000))
ELEMENTS = 2**25
# The shapes for a device: rows of logits, the most important first, and heads as rows, features, classes.
DEVICE_ROWS = tuple((8192, n) for n in (131072, *VOCABULARIES.values()))
DEVICE_HEADS = (
    (8192, 4096, 128256),
    (4096, 2304, 256000),
    (1024, 4096, 128256),
    (4096, 4096, 128256),
    (16384, 4096, 128256),
    (8192, 3584, 151936),
    (8192, 768, 50257),
)


def model(classes):
    """The model with this number of classes, or an empty string."""
    return next((name for name, n in VOCABULARIES.items() if n == classes), "")
