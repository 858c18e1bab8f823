"""``python -m tests.bench animations``: random animations of each format, whose frames are compared in Chromium.

Two columns count animations of which a frame differs by more than the tolerance: as the codec composes them (each frame
as a still PNG), and as it writes them in their own format at quality 100. The last one counts those whose durations or
number of plays differ. ``TEST_ANIMATIONS`` is how many of a format, 500 by default.
"""

import os
import sys

from streams.compress.codec.shrink import shrink
from tests.support.animations import FORMATS, random_animation
from tests.support.chromium import launched
from tests.support.image_decoder import COMPOSED, MAX_PIXELS, WRITTEN, compared, judge_page, stills

BATCH = 20


def main() -> None:
    count = int(os.environ.get("TEST_ANIMATIONS", "500"))
    print(
        f"{'format':8}{'animations':>12}{'frames':>8}{'composed otherwise':>20}{'written otherwise':>19}{'timing':>8}"
    )
    with launched() as browser:
        if browser is None:
            sys.exit("there is no Chromium: run `make check`, or set TEST_CHROMIUM")
        page = judge_page(browser)
        for name in FORMATS:
            frames = composed = written = timing = 0
            for start in range(0, count, BATCH):
                samples = [random_animation(name, seed) for seed in range(start, min(count, start + BATCH))]
                made = [shrink(s.data, quality=100, max_pixels=MAX_PIXELS, target_format=name).data for s in samples]
                for answer in compared(page, [((s.data, name), stills(name, s.data)) for s in samples]):
                    composed += isinstance(answer, str) or not answer.same_frames(COMPOSED[name])
                for one in compared(page, [((s.data, name), [(m, name)]) for s, m in zip(samples, made, strict=True)]):
                    if isinstance(one, str):
                        written += 1
                        continue
                    frames += len(one.one.sizes)
                    written += not one.same_frames(WRITTEN[name])
                    timing += not one.same_times
            print(f"{name:8}{count:12}{frames:8}{composed:20}{written:19}{timing:8}", flush=True)
