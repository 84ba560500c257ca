#!/usr/bin/env bash
# Install openpi's client, unmodified, in an environment of its own; prints the path of its Python.
#
#   benchmarks/peers/install_openpi.sh [VENV]      (default: ~/.cache/deft/openpi-client-0.1.2)
#
# Its release asks for numpy<2 and forgets typing_extensions.
set -euo pipefail
venv="${1:-${XDG_CACHE_HOME:-$HOME/.cache}/deft/openpi-client-0.1.2}"
if ! "$venv/bin/python" -c "import openpi_client.websocket_client_policy" 2> /dev/null; then
  "${PYTHON:-python3.11}" -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "openpi-client==0.1.2" typing_extensions "numpy<2" >&2
fi
echo "$venv/bin/python"
