"""The image codec: decodes, composes, converts and encodes. Runs in decoder processes only.

The numbers of formats name the standard's section beside them. These others trade time for bytes or bound the loss
that is seen; the comment beside each says how it was measured or chosen:

========================= ============================= ==========================================================
number                    where                         decides
========================= ============================= ==========================================================
``AVIF_SPEED``            ``shrink``                    CPU time of AVIF
``OPTIMISED_SAMPLES``,    ``shrink``                    CPU time of zlib on large PNGs
``LEVEL_6_SAMPLES``
``EFFORT``, ``MIN_EFFORT`` ``quantiser``                CPU time of libimagequant
``SAMPLE_PIXELS``         ``palette``, ``quantiser``    pixels that a palette is chosen from, or tried on
``QUALITIES``,            ``auto_quality``              the qualities that are tried, and the loss that is accepted
``MAX_DIFFERENCE``
``TILES``, ``TILE``       ``auto_quality``              pixels of a large image that are compared
``LOSSLESS_EFFORT``       ``encoders``                  CPU time of lossless WebP
``UNSEEN_ERROR``          ``palette``                   missing colours without dithering
``ERROR_AT_50``           ``palette``                   error of a palette at quality 50
``SHIFT_AT_50``           ``palette``                   shift of a block's mean colour at quality 50
``SMOOTH`` … ``MIN_AREA`` ``palette``                   banding in smooth areas
``FULL_CHROMA_QUALITY``   ``shrink``                    colours at full resolution
``ENOUGH``                ``truncated``                 share of a truncated image that is kept
========================= ============================= ==========================================================
"""
