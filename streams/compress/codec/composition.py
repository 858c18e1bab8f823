"""Composes the frames of an animation on a canvas, as specified by GIF, APNG and WebP.

They agree: the canvas is transparent at first; a frame is laid over it or replaces its area; once its time is over the
area is kept, cleared, or put back.
"""

from collections.abc import Iterable, Iterator

from PIL import Image

from streams.compress.codec.containers import Dispose, Part

CLEAR = (0, 0, 0, 0)


def composed(size: tuple[int, int], frames: Iterable[tuple[Part, Image.Image]]) -> Iterator[Image.Image]:
    """The visible image at each frame, as RGBA of ``size``; ``frames`` are parts with their decoded images (RGBA)."""
    canvas = Image.new("RGBA", size, CLEAR)
    for part, image in frames:
        box = (part.left, part.top, min(part.left + image.width, size[0]), min(part.top + image.height, size[1]))
        shown = canvas.copy()
        if box[0] < box[2] and box[1] < box[3]:
            image = image.crop((0, 0, box[2] - box[0], box[3] - box[1]))
            if part.blend:
                shown.alpha_composite(image, box[:2])
            else:
                shown.paste(image, box)
        yield shown
        if part.dispose is Dispose.PREVIOUS:
            continue
        canvas = shown
        if part.dispose is Dispose.CLEAR and box[0] < box[2] and box[1] < box[3]:
            canvas = shown.copy()
            canvas.paste(CLEAR, box)
