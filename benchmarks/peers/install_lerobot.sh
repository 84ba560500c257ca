#!/usr/bin/env bash
# Install LeRobot 0.4.4 beside Deft's own torch, for the speed comparisons in benchmarks/.
#
#   benchmarks/peers/install_lerobot.sh [DEFT_VENV] [PEERS_VENV]      (default: .venv .venv-peers)
#
# PEERS_VENV is a thin layer: it sees every package of DEFT_VENV (torch, diffusers, accelerate, Deft's own
# dependencies) and adds LeRobot's. Both sides of a benchmark therefore run in one process, on one torch.
# LeRobot pins torch < 2.11 and would pull CUDA wheels, so it and torchvision come without dependencies, and
# what its diffusion policy, data set and train script import is named here.
# torchcodec, by which LeRobot reads video, wants FFmpeg's libraries by their plain names: PEERS_VENV/lib/ffmpeg links to
# those that come with PyAV (LD_LIBRARY_PATH; lerobot_data.py sets it).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
deft="${1:-.venv}"
peers="${2:-.venv-peers}"
[[ -x "$deft/bin/python" ]] || { echo "no Python in $deft: install Deft there first" >&2; exit 1; }

torch_version="$("$deft/bin/python" -c 'import torch; print(torch.__version__)')"
deft_site="$("$deft/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
case "$torch_version" in
    2.13.*) torchvision=0.28.0 ;;
    *) echo "torch $torch_version: name its torchvision in $0" >&2; exit 1 ;;
esac

# Without pip: pip and setuptools are seen through the layer, so that no older copy hides Deft's.
[[ -x "$peers/bin/python" ]] || "$deft/bin/python" -m venv --without-pip "$peers"
peers_site="$("$peers/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
# addsitedir rather than a bare path: editable installs in DEFT_VENV stay importable too.
echo "import site; site.addsitedir('$deft_site')" > "$peers_site/deft_layer.pth"

constraints="$(mktemp)"
trap 'rm -f "$constraints"' EXIT
echo "torch==$torch_version" > "$constraints"
pip_install() { "$peers/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

pip_install --no-deps lerobot==0.4.4 "torchvision==$torchvision" torchcodec==0.12.0
# LeRobot's own requirements stay unmet on purpose, so pip need not list them. Its policies import transformers where
# there is one, and break on Deft's newer one: the releases that LeRobot pins hide it.
pip_install --no-warn-conflicts --constraint "$constraints" \
    "transformers>=4.57.1,<5" "huggingface_hub>=0.34.2,<0.36" "diffusers>=0.27.2,<0.36" \
    draccus==0.10.0 datasets==4.0.0 av==15.1.0 "pyserial>=3.5,<4" "deepdiff>=7.0.1,<9" "jsonlines>=4,<5" "termcolor>=2.4,<4"

mkdir -p "$peers/lib/ffmpeg"
av_libs="$("$peers/bin/python" -c 'import av, pathlib; print(pathlib.Path(av.__file__).resolve().parents[1] / "av.libs")')"
for file in "$av_libs"/*; do
    name="$(basename "$file")"
    ln -sf "$file" "$peers/lib/ffmpeg/$name"
    if [[ "$name" =~ ^(lib(av|sw)[a-z]+)-[0-9a-f]+(\.so\.[0-9]+) ]]; then
        ln -sf "$file" "$peers/lib/ffmpeg/${BASH_REMATCH[1]}${BASH_REMATCH[3]}"
    fi
done

"$peers/bin/python" - "$torch_version" <<'PY'
import sys

import torch

if torch.__version__ != sys.argv[1]:
    sys.exit(f"torch {torch.__version__} hides Deft's {sys.argv[1]}: remove it from the peers venv")
sys.path.insert(0, "benchmarks/peers")
import lerobot_diffusion

print(f"LeRobot {lerobot_diffusion.version()} beside torch {torch.__version__}")
PY
