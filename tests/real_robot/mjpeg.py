"""A network camera: an MJPEG stream whose pictures say when they were taken."""

from __future__ import annotations

import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np

BITS, BLOCK = 24, 20  # ms of the monotonic clock, as black and white blocks, 6 a row
SHAPE = (4 * BLOCK, 6 * BLOCK)


def encode(ms: int) -> np.ndarray:
    bits = np.array([(ms >> k) & 1 for k in range(BITS)], np.uint8).reshape(4, 6) * 255
    return np.repeat(np.kron(bits, np.ones((BLOCK, BLOCK), np.uint8))[..., None], 3, axis=2)


def decode(picture: np.ndarray) -> int:
    middle = picture[BLOCK // 2 :: BLOCK, BLOCK // 2 :: BLOCK, 0].ravel() > 127
    return int(sum(1 << k for k, bit in enumerate(middle) if bit))


def age_ms(picture: np.ndarray, t: int) -> float:
    """By how much the stamp ``t`` (ns) is later than the picture."""
    age = (t / 1e6 - decode(picture)) % (1 << BITS)
    return age - (1 << BITS) if age > 1 << (BITS - 1) else age


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        due = time.monotonic()
        try:
            while True:
                picture = encode(int(time.monotonic() * 1000))
                data = cv2.imencode(".jpg", picture)[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n".encode()
                self.wfile.write(head + data + b"\r\n")
                due += 0.04
                time.sleep(max(0.0, due - time.monotonic()))
        except OSError:
            return

    def log_message(self, *args: object) -> None:
        pass


def serve(port: int) -> None:
    """Until it is killed; 25 pictures per second."""
    ThreadingHTTPServer(("127.0.0.1", port), _Handler).serve_forever()
