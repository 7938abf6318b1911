"""GenEval: whether the objects, counts, colours and places a prompt names are in the picture, by an object detector.

The parts are usable alone: `rules.judge` judges detections of any detector, `aggregate.overall` adds judgements up.
"""

from .rows import ROWS

__all__ = ["ROWS"]
