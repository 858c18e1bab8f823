"""Salvages JPEGs and PNGs that are truncated in their last tenth, which browsers show, too."""

import io
import zlib

from PIL import Image, ImageChops, ImageFile

from streams.compress.codec.containers import png_chunks

# Share of the image that must be there; chosen, not measured.
ENOUGH = 0.9
SCAN = b"\xff\xda"
LAST_COEFFICIENT = 63
PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type


def salvaged(source: str, data: bytes) -> tuple[Image.Image, Image.Image] | None:
    """The image and a mask (L) of the same size, 0 where pixels are missing; None if too many are."""
    if source == "JPEG":
        return _jpeg(data)
    return _png(data) if source == "PNG" else None


def _decoded(source: str, data: bytes, mode: str | None = None) -> Image.Image:
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        image = Image.open(io.BytesIO(data), formats=[source])
        image.draft(mode, image.size)
        image.load()
        return image
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


def _jpeg(data: bytes) -> tuple[Image.Image, Image.Image] | None:
    """The last scan ends where it stops changing the luma; a first scan changes libjpeg's uniform grey."""
    last = data.rfind(SCAN)
    first_scan = data.find(SCAN) == last
    size = int.from_bytes(data[last + 2 : last + 4])
    spectral_end, approximation = data[last + size : last + size + 2]
    image = _decoded("JPEG", data)
    luma = _decoded("JPEG", data, "L")
    if luma.mode != "L" or spectral_end != LAST_COEFFICIENT or approximation & 15:
        return None
    before = Image.new("L", image.size, 128) if first_scan else _decoded("JPEG", data[:last], "L")
    layers = getattr(image, "layer", ())
    block = (
        (8, 8) if len(layers) == 1 else (8 * max(layer[1] for layer in layers), 8 * max(layer[2] for layer in layers))
    )
    columns, rows = (-(-side // step) for side, step in zip(image.size, block, strict=True))
    # A block that the scan has changed is one pixel from here on.
    changed = ImageChops.difference(luma, before).point([0] + [255] * 255).reduce(block)
    box = changed.point([0] + [255] * 255).getbbox()
    if box is None:
        return None
    end = changed.crop((0, box[3] - 1, columns, box[3])).getbbox() or (0, 0, columns, 1)
    if (box[3] - 1) * columns + end[2] < ENOUGH * columns * rows:
        return None
    mask = Image.new("L", image.size, 255)
    if first_scan:
        # Browsers don't show an incomplete row of blocks.
        complete = box[3] if end[2] == columns else box[3] - 1
        mask.paste(0, (0, min(image.height, complete * block[1]), *image.size))
    return image, mask


def _png(data: bytes) -> tuple[Image.Image, Image.Image] | None:
    chunks = list(png_chunks(data))
    header = dict(chunks)[b"IHDR"]
    width, height = int.from_bytes(header[:4]), int.from_bytes(header[4:8])
    depth, colour_type, interlaced = header[8], header[9], header[12]
    if interlaced:
        return None
    row = 1 + -(-width * depth * PNG_SAMPLES[colour_type] // 8)
    inflate = zlib.decompressobj()
    size = 0
    for name, body in chunks:
        if name == b"IDAT":
            size += len(inflate.decompress(body, row * height - size + 1))
    complete = min(height, size // row)
    if complete < ENOUGH * height:
        return None
    mask = Image.new("L", (width, height), 255)
    mask.paste(0, (0, complete, width, height))
    return _decoded("PNG", data), mask
