"""Data sets to and from the Hugging Face Hub. See ``--help``."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.command import options, run_command
from data.convert import zip_store
from data.errors import ConfigError, DataError
from data.formats.lerobot import is_lerobot
from data.formats.lerobot_meta import read_outline
from data.opening import open_episodes
from data.zarr_read import reason

USAGE = """python -m data.hub push PATH repo=user/name [private=true] [revision=main]
python -m data.hub pull repo=user/name out=DST [revision=main]

To and from a data set repository of the Hugging Face Hub; everything else in Deft takes local paths. A LeRobot folder
is pushed as it is, with the tag by which LeRobot finds its version; a zarr directory as one zip file; a file as it is.
What is pulled is a folder with the repository's files, and is opened by the path that is printed. Log in with
'hf auth login' or HF_TOKEN; HF_ENDPOINT names another hub than huggingface.co.

Options (key=value):
  repo             its name, user/name
  out              pull: the new folder; must not exist. A pull that was interrupted goes on when it is called again
  private: false   push: of a repository that is new
  revision: main   branch, or (pull) tag or commit"""


def push(path: Path, repo: str, private: bool = False, revision: str = "main") -> str:
    """Uploads the data set at ``path``; returns the repository's address.

    Raises:
        DataError: no data set there, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    open_episodes(path)  # nothing is pushed that cannot be read
    api = HfApi()
    with _told(f"{repo} cannot be written"):
        url = str(api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True))
        if is_lerobot(path):
            api.upload_folder(
                repo_id=repo, folder_path=path, repo_type="dataset", revision=revision,
                delete_patterns=["data/**", "videos/**", "meta/**"],
            )  # fmt: skip
            tag = str(read_outline(path).info["codebase_version"])
            with contextlib.suppress(RevisionNotFoundError):  # it moves
                api.delete_tag(repo, tag=tag, repo_type="dataset")
            api.create_tag(repo, tag=tag, revision=revision, repo_type="dataset")
            return url
        with tempfile.TemporaryDirectory(prefix=".deft-", dir=path.resolve().parent) as folder:
            file = path
            if path.is_dir():
                name = path.resolve().name
                file = zip_store(path, Path(folder) / f"{name.removesuffix('.zarr')}.zarr.zip")
            api.upload_file(
                path_or_fileobj=file, path_in_repo=file.name, repo_id=repo, repo_type="dataset", revision=revision
            )
    return url


def pull(repo: str, out: Path, revision: str = "main") -> list[Path]:
    """Downloads a repository to ``out``, which appears there complete; returns the data sets in it.

    Raises:
        DataError: something is at ``out`` already, no such repository, or nothing in it that can be read.
    """
    from huggingface_hub import HfApi

    if out.exists():
        raise DataError(f"{out} exists already; choose another path.")
    asked = f"{repo}@{revision}".replace("/", "--")  # what is left of another repository is not gone on with
    draft = out.with_name(f".{out.name}.{asked}.partial")
    with _told(f"{repo} cannot be read"):
        HfApi().snapshot_download(repo, repo_type="dataset", revision=revision, local_dir=draft)
    shutil.rmtree(draft / ".cache", ignore_errors=True)
    draft.rename(out)
    found, why = [], ""
    for path in [out] if is_lerobot(out) else sorted(p for p in out.iterdir() if not p.name.startswith(".")):
        try:
            open_episodes(path)
            found.append(path)
        except DataError as e:
            why = why or f" {e}" if path.suffix in (".zip", ".zarr", ".hdf5", ".h5") or path == out else why
    if not found:
        names = sorted(p.name for p in out.iterdir())
        raise DataError(f"{out} holds {repo}, but nothing there is a data set that Deft reads: {names}.{why}")
    return found


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        raise DataError(f"{what}: {reason(e)}. Is the name right, and are you logged in (hf auth login)?") from e
    except Exception as e:  # its HTTP client's own
        if type(e).__module__.partition(".")[0] not in ("httpx", "requests", "httpcore"):
            raise
        raise DataError(f"{what}: the hub cannot be reached ({reason(e)}).") from e


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit status."""
    words = [w for w in argv if "=" not in w]
    defaults = {"repo": None, "out": None, "private": False, "revision": "main"}
    given = options([w for w in argv if "=" in w], defaults)
    repo, out = given["repo"], given["out"]
    if not isinstance(repo, str) or words[:1] not in (["push"], ["pull"]):
        raise ConfigError("python -m data.hub push PATH repo=user/name, or pull repo=user/name out=DST.")
    if words[0] == "push":
        if len(words) != 2:
            raise ConfigError(f"Which data set? Give one path, got {len(words) - 1}.")
        print(push(Path(words[1]), repo, given["private"], given["revision"]))
        return 0
    if len(words) != 1 or not isinstance(out, str):
        raise ConfigError("Where to? python -m data.hub pull repo=user/name out=DST")
    for path in pull(repo, Path(out), given["revision"]):
        print(path)
    return 0


if __name__ == "__main__":
    run_command(main, USAGE)
