"""Boards to calibrate with: printed at true scale, found again in pictures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from data.errors import ConfigError, nearest

KINDS = ("charuco", "chessboard", "apriltag")
MARGIN = 0.5  # of a square, white around the board
SQUARE_PIXELS = 160  # of the drawing
FEWEST = 6  # points that a board must show to be taken


class Detection(NamedTuple):
    """Where a picture shows a board: ``points`` (m, 3) m in the board's frame, at ``pixels`` (m, 2)."""

    points: Float64[np.ndarray, "m 3"]
    pixels: Float64[np.ndarray, "m 2"]


@dataclass(frozen=True)
class Board:
    """A flat pattern; its frame lies in its upper left corner, x to the right, y down.

    Attributes:
        kind: "charuco" (may be seen in part; the best choice), "chessboard" (must be seen whole), "apriltag" (a grid of
            36h11 tags, for bad light and distance).
        columns, rows: squares, or tags.
        square_m: edge of a square, or pitch of the tags, as measured on the printed board, m.
        marker_m: edge of a marker or tag, its black border included, m.
    """

    kind: str = "charuco"
    columns: int = 8
    rows: int = 5
    square_m: float = 0.03
    marker_m: float = 0.022

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"Unknown board '{self.kind}'. {nearest(self.kind, list(KINDS))}")
        if not 0 < self.marker_m < self.square_m:
            raise ConfigError(f"A board's marker_m ({self.marker_m}) lies between 0 and square_m ({self.square_m}).")
        if min(self.columns, self.rows) < (1 if self.kind == "apriltag" else 3):
            raise ConfigError(f"A {self.kind} board of {self.columns} x {self.rows} is too small.")
        if self.kind == "chessboard" and (self.columns + self.rows) % 2 == 0:
            raise ConfigError(
                f"A chessboard of {self.columns} x {self.rows} looks the same upside down: "
                "take an even number of squares one way and an odd number the other."
            )

    @cached_property
    def _pattern(self) -> Any:
        size = (self.columns, self.rows)
        if self.kind == "charuco":
            dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_5X5_250)
            return cv2.aruco.CharucoBoard(size, self.square_m, self.marker_m, dictionary)
        dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_APRILTAG_36H11)
        return cv2.aruco.GridBoard(size, self.marker_m, self.square_m - self.marker_m, dictionary)

    @cached_property
    def _detector(self) -> Any:
        if self.kind == "charuco":
            return cv2.aruco.CharucoDetector(self._pattern)
        parameters = cv2.aruco.DetectorParameters()
        parameters.cornerRefinementMethod = cv2.aruco.CORNER_REFINE_SUBPIX
        return cv2.aruco.ArucoDetector(self._pattern.getDictionary(), parameters)

    @property
    def pixels_per_metre(self) -> float:
        """Of ``draw``."""
        return SQUARE_PIXELS / self.square_m

    def draw(self) -> UInt8[np.ndarray, "h w"]:
        """The board with a white margin of half a square, and its name in it."""
        margin, n = round(MARGIN * SQUARE_PIXELS), SQUARE_PIXELS
        image = np.full((self.rows * n + 2 * margin, self.columns * n + 2 * margin), 255, np.uint8)
        inner = image[margin:-margin, margin:-margin]
        if self.kind == "charuco":
            inner[:] = self._pattern.generateImage((self.columns * n, self.rows * n), marginSize=0)
        elif self.kind == "chessboard":
            i, j = np.indices((self.rows * n, self.columns * n)) // n
            inner[(i + j) % 2 == 0] = 0
        else:
            tag = round(self.marker_m * self.pixels_per_metre)
            for k in range(self.columns * self.rows):
                marker = cv2.aruco.generateImageMarker(self._pattern.getDictionary(), k, tag)
                y, x = (k // self.columns) * n, (k % self.columns) * n
                inner[y : y + tag, x : x + tag] = marker
        text = f"{self.kind} {self.columns} x {self.rows}, {1000 * self.square_m:g} mm (measure it)"
        cv2.putText(image, text, (margin, image.shape[0] - margin // 4), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 128, 2)
        return image

    def write(self, path: str | Path) -> None:
        """A .pdf or .png that prints at true scale."""
        from PIL import Image

        path = Path(path)
        if path.suffix.lower() not in (".pdf", ".png"):
            raise ConfigError(f"A board is written as .pdf or .png, not as {path.name}.")
        dpi = self.pixels_per_metre * 0.0254
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(self.draw())
        if path.suffix.lower() == ".pdf":
            picture.save(path, resolution=dpi)
        else:
            picture.save(path, dpi=(dpi, dpi))

    def find(self, image: UInt8[np.ndarray, "h w 3"]) -> Detection | None:
        """The board in an RGB picture; None where too little of it shows."""
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        if self.kind == "chessboard":
            return self._find_chessboard(grey)
        if self.kind == "charuco":
            corners, ids = self._detector.detectBoard(grey)[:2]
        else:
            corners, ids = self._detector.detectMarkers(grey)[:2]
        if ids is None or len(ids) == 0:
            return None
        points, pixels = self._pattern.matchImagePoints(corners, ids)
        if points is None or len(points) < FEWEST:
            return None
        return Detection(points.reshape(-1, 3).astype(np.float64), pixels.reshape(-1, 2).astype(np.float64))

    def _find_chessboard(self, grey: np.ndarray) -> Detection | None:
        size = (self.columns - 1, self.rows - 1)
        found, corners = cv2.findChessboardCornersSB(grey, size, flags=cv2.CALIB_CB_ACCURACY | cv2.CALIB_CB_EXHAUSTIVE)
        if not found:
            return None
        grid = corners.reshape(size[1], size[0], 2)
        if _brightness(grey, grid[:2, :2]) > _brightness(grey, grid[:2, 1:3]):  # the first inner square is black
            grid = grid[::-1, ::-1]
        j, i = np.meshgrid(np.arange(1, self.columns), np.arange(1, self.rows))
        points = np.stack([j, i, np.zeros_like(i)], axis=-1).reshape(-1, 3) * self.square_m
        return Detection(points.astype(np.float64), grid.reshape(-1, 2).astype(np.float64))


def _brightness(grey: np.ndarray, corners: np.ndarray) -> float:
    """In the middle of a square."""
    x, y = corners.reshape(-1, 2).mean(axis=0)
    return float(cv2.getRectSubPix(grey, (3, 3), (float(x), float(y))).mean())
