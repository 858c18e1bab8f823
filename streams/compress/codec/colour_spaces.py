"""Colour spaces that a file names by numbers instead of a profile: cICP, gAMA and cHRM of PNG, nclx of AVIF and HEIF.

Each becomes an ICC profile of three primaries and a curve, so that there is only one conversion to sRGB.
HDR becomes a table of colours. The reference is what Chromium 153 shows: equal within 1 of 255, within 20 for HDR.
"""

import math
import operator
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import ImageFilter

# x and y of red, green, blue and white (ITU-T H.273, table 2).
Primaries = tuple[float, float, float, float, float, float, float, float]
D65, C, E = (0.3127, 0.3290), (0.310, 0.316), (1 / 3, 1 / 3)
SRGB: Primaries = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, *D65)
PRIMARIES: dict[int, Primaries] = {
    1: SRGB,
    4: (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, *C),
    5: (0.64, 0.33, 0.29, 0.60, 0.15, 0.06, *D65),
    6: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *D65),
    7: (0.630, 0.340, 0.310, 0.595, 0.155, 0.070, *D65),
    8: (0.681, 0.319, 0.243, 0.692, 0.145, 0.049, *C),
    9: (0.708, 0.292, 0.170, 0.797, 0.131, 0.046, *D65),
    10: (1.0, 0.0, 0.0, 1.0, 0.0, 0.0, *E),
    11: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, 0.314, 0.351),
    12: (0.680, 0.320, 0.265, 0.690, 0.150, 0.060, *D65),
    22: (0.630, 0.340, 0.295, 0.605, 0.155, 0.077, *D65),
}
# From samples to light, as an ICC curve of type 3: (a x + b) ** g from d on, c x below (H.273, table 3).
Curve = tuple[float, float, float, float, float]
SRGB_CURVE: Curve = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
CURVES: dict[int, Curve] = {
    4: (2.2, 1.0, 0.0, 0.0, 0.0),
    5: (2.8, 1.0, 0.0, 0.0, 0.0),
    7: (1 / 0.45, 1 / 1.1115, 0.1115 / 1.1115, 1 / 4.0, 0.0912),
    8: (1.0, 1.0, 0.0, 0.0, 0.0),
    13: SRGB_CURVE,
    17: (2.6, (52.37 / 48) ** (1 / 2.6), 0.0, 0.0, 0.0),
}
# The curves of video: browsers show them in a PNG as a television does (BT.1886), in AVIF and HEIF as if sRGB.
VIDEO = frozenset((1, 6, 11, 14, 15))
BT1886: Curve = (2.4, 1.0, 0.0, 0.0, 0.0)
PQ, HLG = 16, 18
# Tone mapping. In units of reference white (203 cd/m2, ITU-R BT.2408): up to 1 light is halved; from there to the peak
# (1,000 cd/m2) a Bézier curve leads to white. SHOULDER is the x of its middle point, fitted to what Chromium shows.
REFERENCE_WHITE, PEAK = 203.0, 1000.0
SDR_SHARE, SHOULDER = 0.5, 1.65
HLG_GAMMA = 1.2  # of a display of 1,000 cd/m2 (ITU-R BT.2100, table 5)
# Steps a side of the table of colours; between them Pillow interpolates.
HDR_STEPS = 49
# libpng (PNG_GAMMA_THRESHOLD) and browsers take a gamma as near as this to that of sRGB for sRGB.
SRGB_GAMMA, NEAR_GAMMA = 0.45455, 0.05
# The white of ICC profiles (ICC.1:2022, 7.2.16), and the Bradford adaptation to it (annex E).
D50 = (0.9642, 1.0, 0.8249)
BRADFORD = ((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296))

Matrix = Sequence[Sequence[float]]
Vector = Sequence[float]
UNSPECIFIED, SRGB_CODE, BT2020 = 2, 1, 9


@dataclass(frozen=True)
class Hdr:
    """High dynamic range: its primaries, and PQ or HLG."""

    primaries: Primaries
    transfer: int


ColourSpace = bytes | Hdr


def by_numbers(primaries: int, transfer: int, *, video: Curve) -> ColourSpace | None:
    """The ICC profile of code points of H.273, or HDR; None for those that browsers ignore. ``video`` is the curve for
    VIDEO."""
    named = PRIMARIES.get(SRGB_CODE if primaries == UNSPECIFIED else primaries)
    if named is None:
        return None
    if transfer in (PQ, HLG):
        return Hdr(named, transfer)
    curve = video if transfer in VIDEO else SRGB_CURVE if transfer == UNSPECIFIED else CURVES.get(transfer)
    return profile(named, curve) if curve else None


def of_png(chunks: Mapping[bytes, bytes], embedded: bytes | None) -> ColourSpace | None:
    """By the chunk that decides: cICP, then iCCP, sRGB, gAMA with cHRM (PNG 3rd edition, 13.14). ``embedded`` is the
    profile of iCCP. None is sRGB."""
    cicp = chunks.get(b"cICP", b"")
    if (
        len(cicp) == 4
        and cicp[2:] == b"\0\1"
        and cicp[:2] != b"\2\2"
        and (space := by_numbers(cicp[0], cicp[1], video=BT1886))
    ):
        return space
    if embedded:
        return embedded
    gamma = int.from_bytes(chunks.get(b"gAMA", b"")) / 100_000
    if b"sRGB" in chunks or not gamma:
        return None
    chromaticities = chunks.get(b"cHRM", b"")
    primaries = SRGB
    if len(chromaticities) == 32:
        white_x, white_y, *others = (value / 100_000 for value in struct.unpack(">8I", chromaticities))
        found = (*others, white_x, white_y)
        if len(found) == 8 and all(found[1::2]):
            primaries = found
    is_srgb = all(abs(one - other) < 0.001 for one, other in zip(primaries, SRGB, strict=True))
    if is_srgb and abs(gamma / SRGB_GAMMA - 1) <= NEAR_GAMMA:
        return None
    try:
        return profile(primaries, (1 / gamma, 1.0, 0.0, 0.0, 0.0))
    except (ZeroDivisionError, struct.error):
        return None  # primaries on one line, or gammas that no profile can hold


@lru_cache(maxsize=16)
def profile(primaries: Primaries, curve: Curve) -> bytes:
    """An ICC profile (ICC.1:2022, version 4) of three primaries and one curve."""
    columns = list(zip(*_product(_adapted(primaries[6:]), _to_xyz(primaries)), strict=True))
    parametric = b"para" + bytes(4) + struct.pack(">HH", 3, 0) + b"".join(map(_fixed, curve))
    white = b"XYZ " + bytes(4) + b"".join(map(_fixed, D50))
    text = b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", 2, 28) + b"\0s"
    tags = {b"desc": text, b"cprt": text, b"wtpt": white}
    for name, column in zip((b"r", b"g", b"b"), columns, strict=True):
        tags[name + b"XYZ"] = b"XYZ " + bytes(4) + b"".join(map(_fixed, column))
        tags[name + b"TRC"] = parametric
    at = 128 + 4 + 12 * len(tags)
    table, bodies = b"", b""
    for name, body in tags.items():
        table += name + struct.pack(">II", at + len(bodies), len(body))
        bodies += body + bytes(-len(body) % 4)
    header = struct.pack(">I4xI4s4s4s12x4s28x", at + len(bodies), 0x04200000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    header += b"".join(map(_fixed, D50))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + bodies


@lru_cache(maxsize=8)
def hdr_table(space: Hdr) -> ImageFilter.Color3DLUT:
    """The look-up table from RGB of ``space`` to sRGB: tone-mapped by the largest of red, green and blue in BT.2020."""
    to_2020 = _product(_inverse(_to_xyz(PRIMARIES[BT2020])), _to_xyz(space.primaries))
    to_srgb = _product(_inverse(_to_xyz(SRGB)), _to_xyz(PRIMARIES[BT2020]))
    luminance = _to_xyz(space.primaries)[1]
    to_light = _pq if space.transfer == PQ else _hlg
    light_of = [to_light(step / (HDR_STEPS - 1)) for step in range(HDR_STEPS)]

    def shown(*samples: float) -> tuple[float, float, float]:
        light = [light_of[round(sample * (HDR_STEPS - 1))] for sample in samples]
        if space.transfer == HLG:
            gain = PEAK * sum(map(operator.mul, luminance, light)) ** (HLG_GAMMA - 1)
            light = [value * gain for value in light]
        wide = _apply(to_2020, light)
        highest = max(*wide, 1e-9) / REFERENCE_WHITE
        scale = _rolled_off(highest) / (highest * REFERENCE_WHITE)
        red, green, blue = (_srgb_sample(value * scale) for value in _apply(to_srgb, wide))
        return red, green, blue

    return ImageFilter.Color3DLUT.generate(HDR_STEPS, shown)


def _rolled_off(light: float) -> float:
    """Tone-mapped light, 1 at the peak; ``light`` is in units of reference white."""
    peak = PEAK / REFERENCE_WHITE
    if light <= 1 or light >= peak:
        return light * SDR_SHARE if light <= 1 else 1.0
    height = SDR_SHARE * SHOULDER  # on the straight line's tangent
    a, b, c = 1 - 2 * SHOULDER + peak, 2 * (SHOULDER - 1), 1 - light
    t = (math.sqrt(b * b - 4 * a * c) - b) / (2 * a)
    return (1 - t) ** 2 * SDR_SHARE + 2 * t * (1 - t) * height + t * t


def _pq(sample: float) -> float:
    """Light in cd/m2 (BT.2100, table 4)."""
    power = sample ** (32 / 2523)
    return 10_000 * math.pow(max(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power), 16384 / 2610)


def _hlg(sample: float) -> float:
    """Light of the scene, 0 to 1 (BT.2100, table 5)."""
    if sample <= 0.5:
        return sample**2 / 3
    return (math.exp((sample - 0.55991073) / 0.17883277) + 0.28466892) / 12


def _srgb_sample(light: float) -> float:
    """Not clipped, so that interpolation between two colours of the table is right up to the edge."""
    return light * 12.92 if light <= 0.0031308 else 1.055 * float(light ** (1 / 2.4)) - 0.055


def _fixed(value: float) -> bytes:
    """s15Fixed16Number."""
    return struct.pack(">i", round(value * 65_536))


def _to_xyz(primaries: Primaries) -> list[list[float]]:
    """From RGB to XYZ, white of luminance 1."""
    pairs = list(zip(primaries[0::2], primaries[1::2], strict=True))
    red, green, blue, white = ([x, y, 1 - x - y] for x, y in pairs)
    columns = [list(row) for row in zip(red, green, blue, strict=True)]
    scale = _apply(_inverse(columns), [value / white[1] for value in white])
    return [[value * by for value, by in zip(row, scale, strict=True)] for row in columns]


def _adapted(white: Vector) -> list[list[float]]:
    """From XYZ under ``white`` (x, y) to XYZ under D50, by Bradford's method."""
    x, y = white
    source = _apply(BRADFORD, [x / y, 1.0, (1 - x - y) / y])
    target = _apply(BRADFORD, D50)
    scale = [[target[i] / source[i] if i == j else 0.0 for j in range(3)] for i in range(3)]
    return _product(_inverse(BRADFORD), _product(scale, BRADFORD))


def _apply(matrix: Matrix, vector: Vector) -> list[float]:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def _product(one: Matrix, other: Matrix) -> list[list[float]]:
    columns = list(zip(*other, strict=True))
    return [[sum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in one]


def _inverse(matrix: Matrix) -> list[list[float]]:
    (a, b, c), (d, e, f), (g, h, i) = matrix
    minors = [[e * i - f * h, c * h - b * i, b * f - c * e], [f * g - d * i, a * i - c * g, c * d - a * f],
              [d * h - e * g, b * g - a * h, a * e - b * d]]  # fmt: skip
    determinant = a * minors[0][0] + b * minors[1][0] + c * minors[2][0]
    return [[value / determinant for value in row] for row in minors]
