"""Named real shapes, shared by tests and benchmarks: the vocabularies of well-known models, and the grid."""

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


def model(classes):
    """The model with this many classes, or nothing."""
    return next((name for name, n in VOCABULARIES.items() if n == classes), "")
