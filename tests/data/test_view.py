"""python -m data.view: the page holds everything, shows it in a browser, and rerun opens its recording."""

import base64
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from data import view
from data.episodes import EpisodeStore
from data.errors import ConfigError, DataError
from data.page.plots import plot
from data.spec import FieldSpec
from tests.data.conftest import TASK, make_episode
from tests.data.lerobot_files import lerobot_folder

PACKAGES = Path(os.environ.get("DEFT_CHROMIUM", Path.home() / ".cache" / "deft-chromium"))
N = 24


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Two episodes with pictures of odd sides, depth, a cloud, and a name that is HTML."""
    depth = FieldSpec((5, 7), "float32", "depth")
    path = tmp_path_factory.mktemp("odd") / "<b>odd.zarr"
    store = EpisodeStore.create(
        path, dataclasses.replace(TASK, obs={**TASK.obs, "depth": depth}), {"note": "</script>"}
    )
    for i in range(2):
        rows = {**make_episode(N, i), "success": np.arange(N) > 20}
        rows["depth"] = np.random.default_rng(i).uniform(0.2, 2, (N, 5, 7)).astype("f4")
        store.append(rows, {"seed": 7 + i})
    return path


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.films, self.lines, self.open, self.urls, self._svg = {}, {}, [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.urls += [v for k, v in attrs if k in ("src", "href")]
        if tag not in ("meta", "input", "line", "rect", "polyline"):
            self.open.append(tag)
        if tag == "video":
            self.films[a["data-key"]] = base64.b64decode(a["src"].removeprefix("data:video/mp4;base64,"), validate=True)
        if tag == "svg":
            self._svg = self.lines.setdefault(a["data-key"], [])
        if tag == "polyline":
            self._svg.append([tuple(map(float, p.split(","))) for p in a["points"].split()])

    def handle_endtag(self, tag):
        if tag not in ("line", "rect", "polyline"):
            assert self.open.pop() == tag


def test_the_page_holds_the_episode(odd, tmp_path):
    av = pytest.importorskip("av")
    out = tmp_path / "page.html"
    assert view.main([str(odd), f"out={out}", "episode=1"]) == 0
    text = out.read_text()
    page, episode = Page(text), EpisodeStore.open(odd).episode(1)
    assert page.open == []
    assert all(u.startswith("data:") for u in page.urls)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]*", "", text)
    assert "&lt;b&gt;odd.zarr: episode 1 of 2" in text
    assert "success from step 21 on" in text
    assert {k: len(v) for k, v in page.lines.items()} == {"state": 3, "action": 2, "reward": 1, "success": 1}
    heights = np.array(page.lines["reward"][0])[:, 1]
    assert np.corrcoef(heights, episode["reward"])[0, 1] < -0.999  # up is less on a screen
    for key, film in page.films.items():
        (tmp_path / "film.mp4").write_bytes(film)
        with av.open(str(tmp_path / "film.mp4")) as file:
            frames = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
            assert file.streams.video[0].codec_context.name == "h264"
            assert float(file.streams.video[0].average_rate) == 80
        assert len(frames) == N
        assert frames[0].shape == ((4, 6, 3) if key == "image" else (6, 8, 3))
    assert set(page.films) == {"image", "depth"}
    cloud = json.loads(re.search(r"clouds = (\[.*?\]);", text)[1])[0]
    points = np.frombuffer(base64.b64decode(cloud["points"]), "<u2").reshape(N, 6, 3) / 65535 * cloud["span"]
    want = episode["cloud"] - episode["cloud"].min((0, 1))
    np.testing.assert_allclose(points, want, atol=1e-4)


def test_a_plot_leaves_out_what_is_not_finite():
    rows = np.arange(10.0)[:, None]
    rows[4] = np.nan
    page = Page(plot("<x>", rows, rows[:, 0] > 7))
    assert [len(run) for run in page.lines["<x>"]] == [4, 5]
    page = Page(plot("flat", np.zeros((1, 40))))
    assert len(page.lines["flat"]) == 32


def test_what_cannot_be_shown(odd, tmp_path):
    with pytest.raises(DataError, match="has 2 episodes, 0 to 1; there is no 2"):
        view.main([str(odd), f"out={tmp_path / 'x.html'}", "episode=2"])
    with pytest.raises(ConfigError, match=r"out=x.htm must be the name of a new file that ends in .html"):
        view.main([str(odd), "out=x.htm"])
    (tmp_path / "x.html").touch()
    with pytest.raises(DataError, match=r"x.html exists already"):
        view.main([str(odd), f"out={tmp_path / 'x.html'}"])


def test_a_lerobot_folder_says_its_task(tmp_path):
    lerobot_folder(tmp_path / "cubes")
    view.main([str(tmp_path / "cubes"), f"out={tmp_path / 'x.html'}"])
    text = (tmp_path / "x.html").read_text()
    assert "“pick”" in text
    assert set(Page(text).films) == {"rgb_top", "rgb_wrist", "grid"}


def test_rerun_opens_the_recording(odd, tmp_path):
    pytest.importorskip("rerun", reason="rerun is not installed (extra 'rerun')")
    view.main([str(odd), f"out={tmp_path / 'x.rrd'}", "rerun=true"])
    command = [sys.executable, "-m", "rerun", "rrd", "stats", str(tmp_path / "x.rrd")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    for key in ("action", "cloud", "depth", "image", "reward", "state", "success"):
        assert f"/{key}:" in said
    assert f"num_rows = {7 * N + 1}" in said


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
@pytest.mark.skipif(not (PACKAGES / "node_modules/@sparticuz/chromium").exists(), reason=f"no Chromium in {PACKAGES}")
def test_the_page_in_a_browser(odd, tmp_path):
    view.main([str(odd), f"out={tmp_path / 'x.html'}"])
    script = Path(__file__).with_name("page.mjs")
    command = ["node", str(script), str(PACKAGES), str(tmp_path / "x.html")]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)
    assert said["errors"] == []
    assert said["asked"] == [f"file://{tmp_path / 'x.html'}"]
    first, moved, turned = said["first"], said["moved"], said["turned"]
    assert (first["now"], moved["now"]) == ("step 0 of 24, 0.00 s", "step 3 of 24, 0.04 s")
    assert moved["cursor"] > first["cursor"]
    assert first["points"] == 6
    assert len({first["cloud"], moved["cloud"], turned["cloud"]}) == 3
    for _, duration, width, at in moved["videos"]:
        assert duration == pytest.approx(N / 80, abs=0.01)
        assert width > 0
        assert at == pytest.approx(3.5 / 80, abs=1e-3)
