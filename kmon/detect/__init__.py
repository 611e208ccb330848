"""Detection: what is abnormal now, over all monitors (`sweep`), along one (`expected_series`), or in any series."""

from kmon.detect.compare import Compare
from kmon.detect.contract import SCORES, Detector, Points, SeriesDetector, detector, load_detector, series_detector
from kmon.detect.cube import Cube, observe
from kmon.detect.fleet import Fleet, Mask, Outlook
from kmon.detect.own import OwnWindows
from kmon.detect.series import expected_measures, expected_series
from kmon.detect.shelf import Shelf
from kmon.detect.silence import Silence
from kmon.detect.since import expected_since
from kmon.detect.surprise import SeriesScores, Surprise
from kmon.detect.sweeps import Family, Scored, Sweep, due_windows, read_ahead, sweep

__all__ = [
    "SCORES",
    "Compare",
    "Cube",
    "Detector",
    "Family",
    "Fleet",
    "Mask",
    "Outlook",
    "OwnWindows",
    "Points",
    "Scored",
    "SeriesDetector",
    "SeriesScores",
    "Shelf",
    "Silence",
    "Surprise",
    "Sweep",
    "detector",
    "due_windows",
    "expected_measures",
    "expected_series",
    "expected_since",
    "load_detector",
    "observe",
    "read_ahead",
    "series_detector",
    "sweep",
]
