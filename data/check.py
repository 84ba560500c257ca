"""What is wrong with a data set. See ``--help``."""

from __future__ import annotations

from collections.abc import Sequence

from data.command import READING, READING_HELP, Bar, options, run_command
from data.errors import ConfigError
from data.opening import open_with
from data.survey import GAP, JUMP, SATURATED, STILL_SECONDS, STILL_STEPS, survey

USAGE = f"""python -m data.check PATH [key=value ...]

One line for each problem; the exit status is 1 if there are any. PATH is a data set of any format.

  unreadable   rows that cannot be decoded
  NaN          values that are not finite
  constant     actions that are the same in a whole episode, a dimension that is so in all of them
  saturated    actions at their limit in more than {SATURATED:.0%} of an episode's steps, of more than three values
  frozen       pictures or clouds that stay the same for {STILL_STEPS} steps and {STILL_SECONDS:g} s
  jump         a state that moves by more than {JUMP:g} times what 95 % of its steps stay below
  gap          a timestamp that goes on by more than {GAP:g} times the median, or not at all
  short        episodes of a single step

Options (key=value):
{READING_HELP}"""


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    paths = [w for w in argv if "=" not in w]
    if len(paths) != 1:
        raise ConfigError(f"Which data set? Give one path, got {len(paths)}.")
    source = open_with(paths[0], options([w for w in argv if "=" in w], dict(READING)))
    bar = Bar("looking at episodes", source.n_episodes)
    problems = survey(source, bar.update).problems
    for problem in problems:
        print(f"{problem.kind:<11} {problem}")
    odd = {p.episode for p in problems if p.episode >= 0}
    print(
        f"{len(problems)} problems in {len(odd)} of {source.n_episodes} episodes" if problems else "no problems found"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    run_command(main, USAGE)
