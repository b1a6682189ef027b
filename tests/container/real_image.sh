#!/usr/bin/env bash
# Builds the image on a small Debian base made here, and runs a training in it: make test-container. Needs root, and
# apt-get install podman runc netavark aardvark-dns iptables mmdebstrap. What it needs to reach packages (certificates,
# pip's settings and local folders of wheels) is taken from this machine and mounted for the build only.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
engine=${ENGINE:-podman}
base=localhost/runner-test-base:bookworm
for program in "$engine" runc mmdebstrap; do
    command -v "$program" >/dev/null || { echo "there is no $program on this machine; see $0" >&2; exit 1; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Machines that may not raise limits, or that have the first version of control groups, need these.
cat > "$work/containers.conf" <<'CONF'
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
CONF
export CONTAINERS_CONF=${CONTAINERS_CONF:-$work/containers.conf}

if ! "$engine" image exists "$base"; then
    packages=ca-certificates,python3,python3-pip,python-is-python3
    mmdebstrap --quiet --variant=minbase --include="$packages" \
        --customize-hook='rm "$1"/usr/lib/python3*/EXTERNALLY-MANAGED' bookworm "$work/base.tar"
    "$engine" import --quiet "$work/base.tar" "$base"
fi

# The settings of pip on this machine as a file, and mounts for it, for the certificates and for each folder it names.
mapfile -t mounts < <("$python" - "$work/pip.conf" <<'PYTHON'
import os, re, subprocess, sys
listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
settings = dict(re.findall(r"^(?:global|install|:env:)\.([\w-]+)='(.*)'$", listed, re.MULTILINE))
certificates = os.environ.get("SSL_CERT_FILE") or settings.get("cert")
if certificates:
    settings["cert"] = certificates
with open(sys.argv[1], "w") as file:
    lines = [f"{key} = {value}".replace("\\n", "\n  ") for key, value in settings.items() if key != "config-file"]
    file.write("\n".join(["[global]", *lines, ""]))
words = " ".join(settings.values()).replace("\\n", " ").split()
paths = {word for word in words if word.startswith("/") and word != os.devnull}
# A local index names files beside it.
paths |= {os.path.dirname(word.removeprefix("file://").rstrip("/")) for word in words if word.startswith("file://")}
roots = {path for path in paths if os.path.exists(path)}
mounted = [f"{path}:{path}:ro" for path in sorted(roots)] + [f"{sys.argv[1]}:/etc/pip.conf:ro"]
print("\n".join(word for mount in mounted for word in ("-v", mount)))
PYTHON
)
started=$SECONDS
"$python" -m runner.image build --engine "$engine" --base-image "$base" --tag test -- \
    --network host --build-arg EXTRAS=sagemaker,serve,eval "${mounts[@]}"
echo "built in $((SECONDS - started)) s; $("$engine" image inspect --format '{{.Size}}' lora-runner:test) bytes"

started=$SECONDS
RUNNER_TEST_ENGINE=$engine RUNNER_TEST_IMAGE=lora-runner:test "$python" -m pytest -q tests/container/test_real_image.py
echo "tested in $((SECONDS - started)) s"
