"""Images made smaller in pixels."""

from PIL import Image


def fitted(image: Image.Image, max_width: int | None, max_height: int | None) -> Image.Image:
    """``image``, as displayed and in sRGB, inside these bounds (pixels; None: no bound), in its proportions.

    The very same image if it fits. Lanczos; Pillow weighs colours by alpha, so hidden colours leave no fringe. A
    bilevel image becomes grey. From all pixels: libjpeg's scaling while decoding (``draft``) gives another picture.
    """
    scale = min(1.0, (max_width or image.width) / image.width, (max_height or image.height) / image.height)
    if scale == 1.0:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return (image.convert("L") if image.mode == "1" else image).resize(size, Image.Resampling.LANCZOS)
