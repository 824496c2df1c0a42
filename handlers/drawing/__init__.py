"""Answers drawn on their pictures. Pure functions on ``RGB`` pictures; none changes its argument.

A picture whose longer side is below ``LEAST_SIDE`` is enlarged by a whole factor first, so that
words on it can be read. Captions and legends go on a panel below the picture and hide nothing.
"""

from handlers.drawing.boxes import draw_boxes
from handlers.drawing.labels import draw_labels
from handlers.drawing.masks import draw_mask
from handlers.drawing.panel import LEAST_SIDE
from handlers.drawing.style import color, encode

__all__ = ["LEAST_SIDE", "color", "draw_boxes", "draw_labels", "draw_mask", "encode"]
