#!/usr/bin/env bash
# Puts the tools that the checks of deploy/ use into build/tools. It installs, configures and starts
# nothing, and does nothing when they are there already.
#   scripts/get_check_tools.sh
#   build/tools/bin      prometheus and promtool, of the distribution's package
#   build/tools/python   Python packages (for PYTHONPATH)
#   build/tools/checkov  Checkov and what it needs (for PYTHONPATH; 200 MB)
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$PWD/build/tools
python_packages=(
  pyyaml
  # Grafana's own types of dashboards.
  'grafana-foundation-sdk==1769699998!10.1.0'
  # The schemas of Kubernetes, and models of the Prometheus operator's and KEDA's.
  kubernetes-validate==1.37.0
  cloudcoil-models-prometheus-operator==0.80.1.0 cloudcoil-models-keda==2.16.1.0
)
# Policies for manifests. Apart from the others, since what it needs clashes with what they need.
checkov_package=checkov==3.3.30

get_prometheus() {
  "$tools/bin/promtool" --version >/dev/null 2>&1 &&
    "$tools/bin/prometheus" --version >/dev/null 2>&1 && return
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  (cd "$scratch" && { apt-get download -q prometheus 2>/dev/null ||
    { apt-get update -q && apt-get download -q prometheus; }; })
  dpkg -x "$scratch"/prometheus_*.deb "$scratch/tree"
  mkdir -p "$tools/bin"
  cp "$scratch/tree/usr/bin/prometheus" "$scratch/tree/usr/bin/promtool" "$tools/bin/"
}

# get_packages FOLDER PACKAGE ...
get_packages() {
  local folder=$1 list="${*:2}"
  [ "$(cat "$folder/.packages" 2>/dev/null)" = "$list" ] && return
  rm -rf "$folder"
  python3 -m pip install --quiet --no-compile --disable-pip-version-check \
    --root-user-action=ignore --no-warn-conflicts --target "$folder" "${@:2}"
  echo "$list" >"$folder/.packages"
}

get_prometheus & jobs=($!)
get_packages "$tools/python" "${python_packages[@]}" & jobs+=($!)
get_packages "$tools/checkov" "$checkov_package" & jobs+=($!)
for job in "${jobs[@]}"; do wait "$job"; done
"$tools/bin/promtool" --version | head -n 1
echo "Python packages: ${python_packages[*]} $checkov_package"
