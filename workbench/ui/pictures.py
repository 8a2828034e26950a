"""Three images side by side: what a model was given, what it made of it, what was wanted."""

from __future__ import annotations

import io
from base64 import b64encode
from functools import lru_cache
from math import isfinite
from typing import TYPE_CHECKING

from PIL import Image as Pillow

from workbench.ui.language import current, text

if TYPE_CHECKING:
    from workbench.preview import Image, Preview


def strip(preview: Preview | None) -> str:
    """Return the images as HTML, each with how close it is to the one wanted; "" for none."""
    return "" if preview is None else _strip(preview, current())


@lru_cache(maxsize=4)
def _strip(preview: Preview, _language: str) -> str:
    step, made = preview.step + 1, _decibels(preview.output_psnr_db)
    shown = (
        (preview.input, text("picture.given", quality=_decibels(preview.input_psnr_db))),
        (preview.output, text("picture.made", step=step, quality=made)),
        (preview.target, text("picture.wanted")),
    )
    figures = "".join(
        f'<figure><img alt="{caption}" src="data:image/png;base64,{_png(image)}">'
        f"<figcaption>{caption}</figcaption></figure>"
        for image, caption in shown
    )
    return f'<div class="wb-pictures">{figures}</div>'


def _decibels(value: float) -> str:
    return f"{value:.1f} dB" if isfinite(value) else text("picture.same")


def _png(image: Image) -> str:
    file = io.BytesIO()
    Pillow.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(file, "PNG")
    return b64encode(file.getvalue()).decode()
