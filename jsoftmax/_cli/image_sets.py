"""The sets of images that `--data` knows by name, in MNIST's format; their users download the files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import ascii_lowercase, ascii_uppercase, digits

BARE = "mnist"  # the set of files with bare names, such as train-images-idx3-ubyte

Names = Mapping[int, str]  # the name of the class of each label


@dataclass(frozen=True)
class ImageSet:
    """One value of `--data`: it may be several sets, each of four files."""

    page: str  # where to download the files
    file: str = "train-images-idx3-ubyte"  # one of them
    sets: Mapping[str, Names | None] = field(default_factory=dict)  # by the name in the files; empty: any
    preferred: str | None = None  # of several sets in one folder
    transposed: bool = False  # the files store the columns of an image as its rows


# EMNIST's merged sets have no letter that looks the same in both cases but for the capital one.
MERGED = dict(enumerate(digits + ascii_uppercase + "abdefghnqrt"))
# お き す つ な は ま や れ を, in Latin letters, which every font has.
KANA = dict(enumerate(("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")))

IMAGE_SETS = {
    "mnist": ImageSet("https://ossci-datasets.s3.amazonaws.com/mnist"),
    "emnist": ImageSet(
        "https://www.nist.gov/itl/products-and-services/emnist-dataset",
        "emnist-balanced-train-images-idx3-ubyte",
        {
            "emnist-balanced": MERGED,
            "emnist-bymerge": MERGED,
            "emnist-byclass": dict(enumerate(digits + ascii_uppercase + ascii_lowercase)),
            "emnist-letters": dict(enumerate(ascii_uppercase, 1)),
            "emnist-digits": dict(enumerate(digits)),
            "emnist-mnist": dict(enumerate(digits)),
        },
        preferred="emnist-balanced",
        transposed=True,
    ),
    "kmnist": ImageSet("https://github.com/rois-codh/kmnist", sets={BARE: KANA, "kmnist": KANA}),
    "fashion-mnist": ImageSet(
        "https://github.com/zalandoresearch/fashion-mnist", sets={BARE: None, "fashion-mnist": None}
    ),
}
