"""Chromium as the judge of images: its ImageDecoder (WebCodecs) shows every frame, as the page would."""

import base64
import io
from dataclasses import dataclass
from typing import Any

from playwright.sync_api import Browser, Page

from streams.compress.codec.animation import read_frames

MAX_PIXELS = 1_000_000
# Tolerances, of 255: composing with alpha rounds; lossy formats are compared as written at quality 100.
COMPOSED = {"gif": 0, "png": 2, "webp": 2, "avif": 3}
WRITTEN = {"gif": 0, "png": 2, "webp": 4, "avif": 8}
# ImageDecoder exists only on pages of a secure origin.
ADDRESS = "https://judge.example/"
SCRIPT = """
async (pairs) => {
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const flat = (image, colour) => {
    const canvas = new OffscreenCanvas(image.displayWidth, image.displayHeight);
    const context = canvas.getContext("2d", {colorSpace: "srgb"});
    context.fillStyle = colour;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, canvas.width, canvas.height).data;
  };
  const seen = async (file, type) => {
    const decoder = new ImageDecoder({data: bytes(file), type, colorSpaceConversion: "default"});
    await decoder.tracks.ready;
    await decoder.completed;
    const track = decoder.tracks.selectedTrack;
    const frames = [];
    if (!track.animated) {  // as <img> shows it, which converts colours in another place than ImageDecoder
      const bitmap = await createImageBitmap(new Blob([bytes(file)], {type}));
      const image = Object.assign(bitmap, {displayWidth: bitmap.width, displayHeight: bitmap.height});
      frames.push({size: [image.width, image.height], duration: 0,
                   over: ["white", "black"].map((colour) => flat(image, colour))});
    } else for (let index = 0; index < track.frameCount; index++) {
      const {image} = await decoder.decode({frameIndex: index});
      frames.push({size: [image.displayWidth, image.displayHeight], duration: (image.duration || 0) / 1000,
                   over: ["white", "black"].map((colour) => flat(image, colour))});
      image.close();
    }
    decoder.close();
    return {frames, repeats: track.animated ? track.repetitionCount : 0};
  };
  // Which frames are seen at the same time: by number, or by the clock where equal frames have become one.
  const together = (a, b) => {
    if (a.length === b.length) return a.map((frame, index) => [frame, b[index]]);
    const pairs = [];
    let i = 0, j = 0, endA = a[0].duration, endB = b[0].duration;
    while (i < a.length && j < b.length) {
      pairs.push([a[i], b[j]]);
      const now = Math.min(endA, endB);
      if (endA <= now && ++i < a.length) endA += a[i].duration;
      if (endB <= now && ++j < b.length) endB += b[j].duration;
    }
    return pairs;
  };
  const told = ({frames, repeats}) => ({
    sizes: frames.map((f) => f.size), durations: frames.map((f) => f.duration),
    plays: repeats === Infinity ? 0 : repeats + 1,
  });
  const answers = [];
  for (const [one, other] of pairs) {
    try {
      const a = await seen(...one), b = {frames: [], repeats: 0};
      for (const file of other) { const s = await seen(...file); b.frames.push(...s.frames); b.repeats = s.repeats; }
      const errors = [];
      for (const [left, right] of together(a.frames, b.frames)) {
        let worst = 0, sum = 0, number = 0;
        left.over.forEach((pixels, which) => {
          const others = right.over[which];
          if (pixels.length !== others.length) { worst = 255; return; }
          for (let at = 0; at < pixels.length; at++) {
            const apart = Math.abs(pixels[at] - others[at]);
            sum += apart; number++;
            if (apart > worst) worst = apart;
          }
        });
        errors.push([worst, number ? sum / number : 255]);
      }
      answers.push({one: told(a), other: told(b), errors});
    } catch (error) { answers.push({failed: String(error)}); }
  }
  return answers;
}
"""
PIXELS = """
async ([file, type, points]) => {
  const data = Uint8Array.from(atob(file), (c) => c.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([data], {type}));
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", {colorSpace: "srgb"});
  context.drawImage(bitmap, 0, 0);
  return [bitmap.width, bitmap.height, points.map(([x, y]) => [...context.getImageData(x, y, 1, 1).data])];
}
"""


@dataclass(frozen=True)
class Seen:
    """An animation in the browser: sizes in pixels, durations in milliseconds, plays (0: for ever)."""

    sizes: list[tuple[int, int]]
    durations: list[float]
    plays: int


@dataclass(frozen=True)
class Compared:
    """Two animations in the browser. ``errors``: of each pair of frames that are seen at the same time, over white and
    black, the largest and the mean difference of a sample, of 255."""

    one: Seen
    other: Seen
    errors: list[tuple[float, float]]

    def same_frames(self, tolerance: float) -> bool:
        return bool(self.errors) and all(worst <= tolerance for worst, _ in self.errors)

    @property
    def same_times(self) -> bool:
        """Whether they take the same time and play equally often; a single frame has no time."""
        if 1 in (len(self.one.sizes), len(self.other.sizes)):
            return True
        return sum(self.one.durations) == sum(self.other.durations) and self.one.plays == self.other.plays


def stills(name: str, data: bytes) -> list[tuple[bytes, str]]:
    """Each frame of an animation as the codec composes it, as a PNG."""
    files = []
    for image in read_frames(name.upper(), data, MAX_PIXELS, only_first=False).images:
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1)
        files.append((buffer.getvalue(), "png"))
    return files


def judge_page(browser: Browser) -> Page:
    """A page in which ``compared`` and ``pixels`` run."""
    page = browser.new_page()
    page.route(ADDRESS + "**", lambda route: route.fulfill(body="<title>judge</title>", content_type="text/html"))
    page.goto(ADDRESS)
    return page


def compared(page: Page, pairs: list[tuple[tuple[bytes, str], list[tuple[bytes, str]]]]) -> list[Compared | str]:
    """For each pair: a file and its type as in ``gif``, and the same of another file, or of a still for each frame.
    A string is why the browser can't show one of them."""
    sent = [[_file(*one), [_file(*other) for other in others]] for one, others in pairs]
    return [
        Compared(_seen(answer["one"]), _seen(answer["other"]), [(worst, mean) for worst, mean in answer["errors"]])
        if "errors" in answer
        else str(answer["failed"])
        for answer in page.evaluate(SCRIPT, sent)
    ]


def _seen(told: dict[str, Any]) -> Seen:
    return Seen([(width, height) for width, height in told["sizes"]], told["durations"], told["plays"])


def pixels(page: Page, data: bytes, kind: str, points: list[tuple[int, int]]) -> list[tuple[int, ...]]:
    """What a page shows at each point (RGBA), in sRGB."""
    _, _, colours = page.evaluate(PIXELS, [*_file(data, kind), [list(point) for point in points]])
    return [tuple(colour) for colour in colours]


def _file(data: bytes, kind: str) -> list[str]:
    return [base64.b64encode(data).decode(), f"image/{kind}"]
