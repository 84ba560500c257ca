"""What was recorded: look at it, label it, put it away, make a data set of it. See ``--help``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from data.command import options, table
from data.errors import ConfigError, DeftError, nearest
from real_robot.recorder import folder as folders

USAGE = """python -m real_robot.episodes list DIR
       python -m real_robot.episodes label DIR success|failure|none NUMBER ...
       python -m real_robot.episodes discard DIR NUMBER ...
       python -m real_robot.episodes restore DIR NUMBER ...
       python -m real_robot.episodes export DIR out=DATASET.zarr [hz=10] [size=[96,96]] [key=value ...]
       python -m real_robot.episodes replay DIR NUMBER         what was sent, as CSV: seconds, joints
       python -m real_robot.episodes video DIR NUMBER ... [out=FOLDER] [fps=20] [height=240]
       python -m real_robot.episodes events DIR NUMBER         what the processes said

DIR is the folder that was recorded into; episodes are told by their numbers; 3-7 stands for several.

Options of export (key=value):
  out                  the data set: new, or of an earlier export by the same options, which is added to
  include: [success, unlabelled]   of success, unlabelled, failure, truncated
  hz: 10               decisions per second
  action: sent         sent | target (before the safety layer) | teleop (the hand's wish) | measured
  max_image_age: 0.1   s; an episode in which the newest picture is older anywhere is left out
  max_gap: 0.1         s, of states and commands
  cameras: null        [front, wrist]; null: all
  sensors: null        likewise
  depth: false         depth pictures too (m)
  crop: none           none | square | [top, left, height, width]
  size: null           [height, width] of pictures
  state_key: agent_pos name of the proprioception; "state" for obs=state
  velocity: false      proprioception is (q, dq)
  trim: true           leave out the steps before anybody leads and after"""

COLUMNS = ("episode", "date", "s", "label", "missed", "dropped", "MB", "rates, Hz")


def numbers(words: Sequence[str]) -> list[int]:
    """3 5-7 -> [3, 5, 6, 7]."""
    out: list[int] = []
    for word in words:
        first, _, last = word.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise ConfigError(f"'{word}' is not the number of an episode (3, or 3-7 for several).")
        out += range(int(first), int(last or first) + 1)
    if not out:
        raise ConfigError("Which episode? Give its number, as list shows it.")
    return out


def describe(folder: Path) -> list[str]:
    """A row of ``list``."""
    meta = folders.read_meta(folder)
    done = folders.is_done(folder)
    streams = meta["streams"]
    total = {key: sum(s[key] for s in streams.values()) for key in ("missed", "dropped", "bytes")}
    rates = ", ".join(f"{k} {s['hz']:.0f}" for k, s in streams.items() if s["hz"] >= 1 and k != "clock")
    label = folders.group(meta) if done else "not finished"
    if meta["truncated"] and label != "truncated":
        label += ", truncated"
    name = f"{folders.number(folder)}{' (discarded)' if folder.parent.name == folders.DISCARDED else ''}"
    return [name, meta["date"][:19].replace("T", " "), f"{folders.seconds(meta):.1f}", label, str(total["missed"]),
            str(total["dropped"]), f"{total['bytes'] / 1e6:.1f}", rates]  # fmt: skip


def list_command(out: Path, words: Sequence[str]) -> None:
    """Every episode, discarded ones last."""
    options(words, {})
    found = [*folders.episodes(out), *folders.episodes(out, discarded=True)]
    if not found:
        raise ConfigError(f"{out} holds no episodes (episode_0000, ...).")
    print(table([COLUMNS, *(describe(folder) for folder in found)]))


def label_command(out: Path, words: Sequence[str]) -> None:
    """Labels anew."""
    word = words[0] if words else ""
    if word not in (*folders.LABELS, "none"):
        raise ConfigError(f"Label episodes success, failure or none, not '{word}'.")
    for folder in _finished(out, words[1:]):
        folders.set_label(folder, None if word == "none" else word)


def discard_command(out: Path, words: Sequence[str]) -> None:
    """Puts away."""
    for folder in _finished(out, words):
        print(f"{folder.name} -> {folders.discard(folder)}")


def restore_command(out: Path, words: Sequence[str]) -> None:
    """Brings back."""
    for n in numbers(words):
        folder = folders.find(out, n, discarded=True)
        print(f"{folder.name} -> {folders.restore(folder)}")


def _finished(out: Path, words: Sequence[str]) -> list[Path]:
    found = [folders.find(out, n) for n in numbers(words)]
    for folder in found:
        if not folders.is_done(folder):
            raise ConfigError(f"{folder.name} has not ended: it is being recorded, or the next recorder recovers it.")
    return found


def export_command(out: Path, words: Sequence[str]) -> None:
    """Makes or extends a data set."""
    from launch.terminal import Bar
    from real_robot.recorder.export import export
    from real_robot.recorder.sampling import Rule

    defaults = {f.name: f.default for f in dataclasses.fields(Rule)}
    given = options(words, {"out": None, "include": ("success", "unlabelled"), **defaults})
    path, include = given.pop("out"), given.pop("include")
    if path is None:
        raise ConfigError("Where to? out=DATASET.zarr")
    total = sum(folders.is_done(f) for f in folders.episodes(out))
    with Bar(f"episodes of {out}", total) as bar:
        chosen = (include,) if isinstance(include, str) else include
        report = export(out, path, Rule(**given), include=chosen, progress=lambda done, total: bar.update(done))
    print(f"{path}: {len(report.added)} episodes added, {len(report.before)} were there already")
    for n, why in report.left_out.items():
        print(f"left out: {n}: {why}")
    if report.changed:
        there = ", ".join(map(str, report.changed))
        print(f"in the data set, though discarded or labelled otherwise since: {there}; export anew to be rid of them")


def replay_command(out: Path, words: Sequence[str]) -> None:
    """CSV on stdout."""
    from real_robot.recorder.episode import sent

    for folder in _finished(out, words):
        for t, q in sent(folder):
            print(f"{t / 1e9:.6f}," + ",".join(f"{x:.6f}" for x in q))


def video_command(out: Path, words: Sequence[str]) -> None:
    """MP4 files."""
    from real_robot.recorder.export import film

    given = options([w for w in words if "=" in w], {"out": str(out), "fps": 20, "height": 240})
    for folder in _finished(out, [w for w in words if "=" not in w]):
        print(film(folder, Path(given["out"]) / f"{folder.name}.mp4", fps=given["fps"], height=given["height"]))


def events_command(out: Path, words: Sequence[str]) -> None:
    """Lines on stdout."""
    from real_robot.recorder.episode import Episode

    for folder in _finished(out, words):
        episode = Episode(folder)
        for t, process, level, text in episode.events():
            print(f"{(t - episode.meta['start']) / 1e9:9.3f} s  {process}  {_LEVELS.get(level, '')}{text}")


_LEVELS = {30: "warning: ", 40: "error: "}
COMMANDS: dict[str, Callable[[Path, Sequence[str]], None]] = {
    "list": list_command,
    "label": label_command,
    "discard": discard_command,
    "restore": restore_command,
    "export": export_command,
    "replay": replay_command,
    "video": video_command,
    "events": events_command,
}


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    if not argv or {"-h", "--help"} & set(argv):
        print(USAGE)
        return 0
    try:
        if argv[0] not in COMMANDS:
            raise ConfigError(f"Unknown command '{argv[0]}'. {nearest(argv[0], list(COMMANDS))}")
        if len(argv) < 2 or not Path(argv[1]).is_dir():
            if len(argv) == 2 and Path(argv[1]).is_file():
                raise ConfigError(f"{argv[1]} is no recording; what a data set holds is told by: python -m data.info")
            raise ConfigError(f"Which recording? There is no folder {argv[1] if len(argv) > 1 else ''}".rstrip())
        COMMANDS[argv[0]](Path(argv[1]), argv[2:])
    except DeftError as e:  # launch.terminal would import torch to say so
        print(f"error: {e}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # | head
        sys.stderr.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
