"""Starts writers and kills them. Imports once; forks a writer for every line "path delay_ms early" on stdin.

Answers with the last episode number the writer had announced as finished (-1 for none).
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import zarr_write
from data.episodes import EpisodeStore


def make_episode(i: int) -> dict[str, np.ndarray]:
    """Episode number ``i``, always the same."""
    rng = np.random.default_rng(i)
    n = int(rng.integers(1, 30))
    return {
        "state": rng.normal(size=(n, 8)).astype(np.float32),
        "image": rng.integers(0, 256, (n, 16, 16, 3)).astype(np.uint8),
        "action": rng.normal(size=(n, 3)).astype(np.float32),
        "success": rng.random(n) < 0.5,
    }


def write(path: str, out: int) -> None:
    zarr_write.rows_per_chunk = lambda row_bytes: 10
    store = EpisodeStore.open(path, "a")
    os.write(out, b"open\n")
    while True:
        i = store.append(make_episode(store.n_episodes), {"seed": store.n_episodes})
        os.write(out, b"%d\n" % i)


def main() -> None:
    for line in sys.stdin:
        path, delay_ms, early = line.split()
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            try:
                write(path, write_end)
            finally:
                os._exit(1)
        os.close(write_end)
        said = b"" if early == "1" else os.read(read_end, 5)
        time.sleep(float(delay_ms) / 1000)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        while part := os.read(read_end, 65536):
            said += part
        os.close(read_end)
        numbers = [int(x) for x in said.decode().split("\n")[:-1] if x != "open"]
        print(
            numbers[-1] if numbers else -1, os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, flush=True
        )


if __name__ == "__main__":
    main()
