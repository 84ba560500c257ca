"""What the documentation tells people to type exists: commands, options, files."""

from __future__ import annotations

import importlib.util
import re
import shlex
from itertools import chain

import pytest
from omegaconf import OmegaConf

from configs.loader import CONFIG_DIR, OPEN, load_config
from data.errors import ConfigError
from tests.entry.commands import REPO

PAGES = sorted({REPO / "README.md", *(REPO / "docs").rglob("*.md"), REPO / "benchmarks" / "README.md"})
CONFIGS = {"train.py": "train", "eval.py": "eval"} | {
    f"real_robot.{name}": name for name in ("record", "deploy", "serve", "calibrate", "first_run", "live")
}
COMMAND = re.compile(r"(?:python3? (?:-m )?|accelerate launch .*?)([\w./]+)((?: .*)?)$")
BLOCK = re.compile(r"```[a-z]*\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)]*))?\)")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))


def inline(text):
    """Code within sentences, each on one line."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", BLOCK.sub("", text))]


def commands(page):
    """(what is run, its words) of every command on a page."""
    text = page.read_text()
    lines = chain.from_iterable(re.sub(r"\\\n\s*", " ", block).splitlines() for block in BLOCK.findall(text))
    for line in [*lines, *inline(text)]:
        if found := COMMAND.search(line):
            yield found[1], shlex.split(found[2], comments=True)


def as_typed(word):
    """An option as the shell hands it over; None for what is none, and for what the page leaves open ("...")."""
    if not re.match(r"[a-z_.]+=", word) or "..." in word:
        return None
    return word.replace("=~", "=/home/me")


def leaves(section, prefix=""):
    for key, value in section.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")


@pytest.fixture(scope="module")
def options():
    """Every option of every command, whatever is chosen of its groups."""
    known = set()
    for file in CONFIG_DIR.rglob("*.yaml"):
        group = "" if file.parent == CONFIG_DIR else f"{file.parent.name}."
        known |= set(leaves(OmegaConf.to_container(OmegaConf.load(file)), group))
    return known


@each_page
def test_commands_are_understood(page):
    for what, words in commands(page):
        if what not in CONFIGS:
            continue
        try:
            load_config(CONFIGS[what], [word for w in words if (word := as_typed(w))])
        except ConfigError as e:
            if "has no default" not in str(e):  # sentences leave out what everybody has to give
                raise


@each_page
def test_programs_are_there(page):
    for what, _ in commands(page):
        if what.endswith(".py") and "/" not in what.replace("benchmarks/", ""):
            assert (REPO / what).exists(), what
        elif what.split(".")[0] in ("data", "envs", "real_robot", "benchmarks"):
            assert importlib.util.find_spec(what), what


@each_page
def test_links_lead_somewhere(page):
    for target, anchor in LINK.findall(page.read_text()):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", file.read_text()), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, f"{target}#{anchor}"


@each_page
def test_options_exist(page, options):
    sections = {key.split(".")[0] for key in options} - set(OPEN)  # what may be in those, a driver knows
    missing = []
    for code in inline(page.read_text()):
        found = re.fullmatch(r"([a-z_]+(?:\.[a-z_]+)+)(?:=\S*)?", code)
        if found and found[1].split(".")[0] in sections and "=" in code:
            missing += [code] if found[1] not in options else []
    assert not missing


def test_every_configuration_is_one_of_these():
    assert {f.stem for f in CONFIG_DIR.glob("[!_]*.yaml")} == set(CONFIGS.values())
