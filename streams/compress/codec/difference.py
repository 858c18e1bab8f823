"""How different two images look: SSIMULACRA 2 from half the size on, where most of its weight is.

SSIMULACRA 2 (Cloudinary, BSD licence: github.com/cloudinary/ssimulacra2) compares structure (SSIM) and edges at several
scales in XYB, the colours of JPEG XL; its weights were fitted to what people said of compressed photos.
"""

from typing import Any

import pyvips
from PIL import Image

# Its weights for each scale, each half the size of the one before: band of XYB, measure, norm. Its first scale is left
# out, which is two thirds of the time, and so is what changes no sum by more than a hundredth.
X, Y, B = range(3)
SSIM, ARTIFACTS = range(2)
_Weights = dict[tuple[int, int, int], float]
WEIGHTS: tuple[_Weights, ...] = (
    {(Y, SSIM, 4): 6.683678146179332},
    {
        (X, SSIM, 4): 1.8422455520539298,
        (X, ARTIFACTS, 4): 11.441172603757666,
        (Y, SSIM, 1): 225.20515300849274,
        (Y, SSIM, 4): 19.213238186143016,
    },
    {
        (X, SSIM, 4): 1.8787594979546387,
        (X, ARTIFACTS, 4): 10.94906990605142,
        (Y, SSIM, 1): 176.39317598450694,
        (Y, SSIM, 4): 24.43300999870476,
        (B, SSIM, 4): 8.826982764996862,
        (B, ARTIFACTS, 4): 23.19243343998926,
    },
    {
        (Y, SSIM, 4): 34.77906344483772,
        (Y, ARTIFACTS, 4): 44.835625328877896,
        (B, SSIM, 1): 95.1080498811086,
        (B, ARTIFACTS, 4): 171.2667255897307,
    },
)
MIN_SIDE = 8
# Shortest side of an image of which three of the four scales are seen.
SMALLEST = 8 * MIN_SIDE
MEAN = 4  # column of libvips' stats()
SIGMA, C2 = 1.5, 0.0009
# Opsin absorbance of JPEG XL (opsin_params.h): the cones' responses to linear sRGB, and the bias of each.
CONES = [[0.30, 0.622, 0.078], [0.23, 0.692, 0.078], [0.24342268924547819, 0.20476744424496821, 0.5518098665095536]]
BIAS = 0.0037930732552754493

_TO_CONES = pyvips.Image.new_from_array(CONES)
_TO_LINEAR = pyvips.Image.new_from_array(
    [[v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (step / 255 for step in range(256))]]
).cast("float")
_KERNEL = pyvips.Image.gaussmat(SIGMA, 0.01, separable=True, precision="float")


class Original:
    """An RGB image that others are compared with. Raises RuntimeError."""

    def __init__(self, image: Image.Image) -> None:
        self._scales = [(values, _blurred(values.bandjoin(values * values))) for values in _scales(image)]

    def difference(self, image: Image.Image) -> float:
        """0 for the same pixels, more for what looks worse. ``image``: RGB, of the same size. Raises RuntimeError."""
        try:
            return sum(
                _weighted(weights, *original, values)
                for weights, original, values in zip(WEIGHTS, self._scales, _scales(image), strict=False)
            )
        except pyvips.Error as error:
            raise RuntimeError(f"libvips: {error}") from error


def _scales(image: Image.Image) -> list[Any]:
    """The bands of each scale that have weights, positive and scaled as there; fewer of a tiny image."""
    linear = pyvips.Image.new_from_memory(image.tobytes(), *image.size, 3, "uchar").maplut(_TO_LINEAR)
    scales = []
    for weights in WEIGHTS:
        linear = linear.shrink(2, 2, ceil=True).copy_memory()
        if min(linear.width, linear.height) < MIN_SIDE:
            break
        long, middle, short = ((linear.recomb(_TO_CONES) + BIAS) ** (1 / 3) - BIAS ** (1 / 3)).copy_memory().bandsplit()
        luma = (long + middle) / 2
        xyb = [(long - middle) * 7 + 0.42, luma + 0.01, short - luma + 0.55]
        first, *others = (xyb[band].cast("float") for band in _bands(weights))
        scales.append((first.bandjoin(others) if others else first).copy_memory())
    return scales


def _bands(weights: _Weights) -> list[int]:
    return sorted({band for band, _, _ in weights})


def _blurred(values: Any) -> Any:
    return values.convsep(_KERNEL, precision="float").copy_memory()


def _weighted(weights: _Weights, before: Any, blurred_before: Any, after: Any) -> float:
    count = after.bands
    means_before, squares_before = _parts(blurred_before, count)
    means, squares, products = _parts(_blurred(after.bandjoin([after * after, after * before])), count)
    apart = means - means_before
    shared = products - means * means_before
    spread = squares - means * means + squares_before - means_before * means_before
    # 1 - SSIM, whose luminance term has no denominator there; edges that the original lacks: blocks, rings, noise.
    structure = 1 - (1 - apart * apart) * (2 * shared + C2) / (spread + C2)
    edges = ((after - means).abs() + 1) / ((before - means_before).abs() + 1) - 1
    far = structure.bandjoin(edges)
    far = (far > 0).ifthenelse(far, 0)
    squared = far * far
    statistics = far.bandjoin(squared * squared).stats()
    total = 0.0
    for (band, measure, norm), weight in weights.items():
        row = 1 + measure * count + _bands(weights).index(band)
        mean = statistics(MEAN, row if norm == 1 else row + 2 * count)[0]
        total += weight * mean ** (1 / norm)
    return total


def _parts(image: Any, count: int) -> list[Any]:
    """Its bands, ``count`` at a time."""
    return [image.extract_band(first, n=count) for first in range(0, image.bands, count)]
