"""python -m data.relabel, and the rules it takes."""

import numpy as np
import pytest

from data import relabel
from data.episodes import EpisodeStore
from data.errors import ConfigError, DataError
from data.opening import open_episodes
from data.rules import Rule
from tests.data.others import LENGTHS, robomimic_file

RNG = np.random.default_rng(0)
ROWS = {
    "a": RNG.normal(size=(6, 4)).astype("f4"),
    "b": RNG.normal(size=(6, 4)),
    "c": RNG.normal(size=6),
    "flag": RNG.random(6) < 0.5,
    "image": RNG.integers(0, 256, (6, 5, 5, 3)).astype("u1"),
}
A, B, C, FLAG, IMAGE = ROWS.values()
KNOWN = {k: v.shape[1:] for k, v in ROWS.items()}


@pytest.mark.parametrize(("text", "value"), [
    ("c < 0.1", C < 0.1),
    ("-0.5 < c <= 0.5", (C > -0.5) & (C <= 0.5)),
    ("norm(a[:3] - b[1:]) < 2", np.linalg.norm(A[:, :3] - B[:, 1:], axis=1) < 2),
    ("a[-1] * c ** 2 + step", A[:, -1] * C**2 + np.arange(6)),
    ("norm(a - c)", np.linalg.norm(A - C[:, None], axis=1)),
    ("any(a > 1) or not flag and c > 0", (A > 1).any(1) | (~FLAG & (C > 0))),
    ("sum(image) / 75", IMAGE.reshape(6, -1).sum(1) / 75),
    ("image[0][0][1] - image[4][4][1]", IMAGE[:, 0, 0, 1].astype(float) - IMAGE[:, 4, 4, 1]),
    ("last(c) - first(c)", np.full(6, C[-1] - C[0])),
    ("ever(c > 0.3)", np.logical_or.accumulate(C > 0.3)),
    ("1", np.ones(6)),
    ("step == 5", np.arange(6) == 5),
    ("max(abs(a)) % 1", np.abs(A).max(1) % 1),
])  # fmt: skip
def test_rules_mean_what_numpy_means(text, value):
    rule = Rule(text, KNOWN)
    got = rule({k: ROWS[k] for k in rule.keys} or ROWS)
    np.testing.assert_allclose(got, value, rtol=1e-6)
    assert got.shape == (6,)
    assert (got.dtype == bool) == (np.asarray(value).dtype == bool)


@pytest.mark.parametrize(("text", "why"), [
    ("a < 1", r"gives \(T, 4\), expected \(T,\)"),
    ("a[:3] - b", r"at 'a\[:3\] - b': \(T, 3\) and \(T, 4\) do not go together\. Shapes of a step: \{'a': \(4,\), 'b'"),
    ("a[4]", r"at 'a\[4\]': \(T, 4\) has no such value"),
    ("c[0]", r"\(T,\) has no such value"),
    ("a[c]", "take whole numbers"),
    ("flag - flag", "numpy boolean subtract"),
    ("nrm(a)", "Did you mean 'norm'"),
    ("norm(a, 2)", "'norm' takes one value"),
    ("imag > 1", "there is no key 'imag'. Did you mean 'image'"),
    ("c <", "cannot be read"),
    ("a.__class__", "only keys, numbers, operators"),
    ("(lambda: 1)()", "only keys, numbers, operators"),
    ("[c for c in a]", "only keys, numbers, operators"),
    ("'text'", "only keys, numbers, operators"),
    ("__import__('os').system('true')", "only keys, numbers, operators"),
    ("open(c)", "Known: abs"),
])  # fmt: skip
def test_what_is_no_rule(text, why):
    with pytest.raises(ConfigError, match=why):
        Rule(text, KNOWN)(ROWS)


def test_success_and_reward(tmp_path, capsys):
    rows = robomimic_file(tmp_path / "a.hdf5")
    words = [str(tmp_path / "a.hdf5"), f"out={tmp_path / 'x.zarr'}"]
    assert relabel.main([*words, "success=object[0] > 1.2", "reward=penalty", "text=lift the cube"]) == 0
    got = EpisodeStore.open(tmp_path / "x.zarr")
    want = rows["object"][:, 0] > 1.2
    np.testing.assert_array_equal(got.array("success")[:], want)
    np.testing.assert_array_equal(got.array("reward")[:], want.astype("f4") - 1)
    np.testing.assert_array_equal(got.array("object")[:], rows["object"])
    assert got.attrs["tasks"] == ["lift the cube"]
    assert not got.array("task_index")[:].any()
    n = sum(part.any() for part in np.split(want, np.cumsum(LENGTHS)[:-1]))
    assert f"success in {n} of 3 episodes\n" in capsys.readouterr().err
    assert relabel.main([str(tmp_path / "x.zarr"), f"out={tmp_path / 'y.hdf5'}", "reward=-norm(object[:3])"]) == 0
    np.testing.assert_allclose(
        open_episodes(tmp_path / "y.hdf5").array("reward")[:], -np.linalg.norm(rows["object"][:, :3], axis=1), rtol=1e-6
    )


@pytest.mark.parametrize("at", ["last", "achieved"])
def test_goals_in_hindsight(tmp_path, at):
    rows = robomimic_file(tmp_path / "a.hdf5")
    rule = "object[0] > 1.2" if at == "achieved" else "norm(object - goal) < 0.1"
    words = [str(tmp_path / "a.hdf5"), f"out={tmp_path / 'x.zarr'}", "goal=object", f"from={at}", f"success={rule}"]
    relabel.main([*words, "reward=sparse"])
    got = open_episodes(tmp_path / "x.zarr")
    assert got.task is not None
    assert (got.task.obs["goal"].kind, got.task.obs["goal"].shape) == ("goal", (10,))
    for i, part in enumerate(np.split(rows["object"], np.cumsum(LENGTHS)[:-1])):
        reached = np.flatnonzero(part[:, 0] > 1.2)
        step = int(reached[0]) if at == "achieved" and len(reached) else len(part) - 1
        episode = got.episode(i)
        np.testing.assert_array_equal(episode["goal"], np.tile(part[step], (len(part), 1)))
        if at == "last":
            np.testing.assert_array_equal(np.flatnonzero(episode["reward"]), [len(part) - 1])


def test_what_does_not_fit(tmp_path):
    robomimic_file(tmp_path / "a.hdf5")

    def run(*words):
        return relabel.main([str(tmp_path / "a.hdf5"), f"out={tmp_path / 'x.zarr'}", *words])

    with pytest.raises(DataError, match=r"a.hdf5 has no 'success', which reward=sparse goes by; give success=RULE"):
        run("reward=sparse")
    with pytest.raises(ConfigError, match=r"success='object\[0\]' gives numbers \(float32\), expected true or false"):
        run("success=object[0]")
    with pytest.raises(DataError, match=r"reward='1 / .object.0. > 9.' is not finite in episode 0 at step 0"):
        run("reward=1 / (object[0] > 9)")
    with pytest.raises(DataError, match=r"has no data/objct\. Did you mean 'object'"):
        run("goal=objct")
    with pytest.raises(ConfigError, match="from=first must be last or achieved"):
        run("goal=object", "from=first")
    assert [p.name for p in tmp_path.iterdir()] == ["a.hdf5"]
    relabel.main([str(tmp_path / "a.hdf5"), f"out={tmp_path / 'x.zarr'}", "goal=object"])
    with pytest.raises(DataError, match=r"goal=robot0_eef_pos has steps of \(3,\) float64, but its goal is \(10,\)"):
        relabel.main([str(tmp_path / "x.zarr"), f"out={tmp_path / 'y.zarr'}", "goal=robot0_eef_pos"])
