"""An episode to look at. See ``--help``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from data.command import READING, READING_HELP, options, run_command
from data.errors import ConfigError, DataError
from data.opening import open_with
from data.page.build import page
from data.page.rerun_log import log_episode

USAGE = f"""python -m data.view PATH out=page.html [episode=0] [key=value ...]
python -m data.view PATH rerun=true [out=episode.rrd] [episode=0]

An episode of a data set of any format: its cameras, depth and point clouds, actions and states against time, reward and
success, what the data set says. As one HTML file that needs nothing else and can be sent to a colleague; or in rerun.

Options (key=value):
  out            the page, or rerun's recording; must not exist
  episode: 0     its number
  rerun: false   in rerun (pip install 'deft[rerun]'): into out=x.rrd, or without out at once, in the browser
{READING_HELP}"""


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    paths = [w for w in argv if "=" not in w]
    given = options([w for w in argv if "=" in w], {"out": None, "episode": 0, "rerun": False, **READING})
    name, wanted = given["out"], ".rrd" if given["rerun"] else ".html"
    if len(paths) != 1 or not isinstance(name, (str, type(None))):
        raise ConfigError("Which data set? python -m data.view PATH out=page.html")
    out = None if name is None else Path(name)
    if (out is None and not given["rerun"]) or (out is not None and out.suffix != wanted):
        raise ConfigError(f"out={name} must be the name of a new file that ends in {wanted}.")
    if out is not None and out.exists():
        raise DataError(f"{out} exists already; choose another name.")
    source = open_with(paths[0], given)
    if given["rerun"] or out is None:
        log_episode(source, given["episode"], out)
    else:
        text = page(source, given["episode"])
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    if out is not None:
        print(f"{out}: {out.stat().st_size / 1e6:.1f} MB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    run_command(main, USAGE)
