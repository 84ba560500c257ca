#!/usr/bin/env bash
# Install robomimic 0.2.0, which Diffusion Policy pins, torchvision, and dill, by which it saves, beside Deft's own torch,
# as judges of what is read of Diffusion Policy's checkpoints (tests/policies/test_diffusion_policy_kinds.py).
#
#   benchmarks/peers/install_robomimic.sh [DEFT_VENV] [PEERS_VENV]      (default: .venv .venv-peers)
#
# PEERS_VENV is a thin layer over DEFT_VENV, as install_lerobot.sh makes it, and may be the same; the packages come
# without their dependencies, which would pull another torch.
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

[[ -x "$peers/bin/python" ]] || "$deft/bin/python" -m venv --without-pip "$peers"
peers_site="$("$peers/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
echo "import site; site.addsitedir('$deft_site')" > "$peers_site/deft_layer.pth"

"$peers/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    robomimic==0.2.0 six==1.17.0 dill==0.3.8 "torchvision==$torchvision"
"$peers/bin/python" -c 'import robomimic, torch; print(f"robomimic {robomimic.__version__} beside torch {torch.__version__}")'
