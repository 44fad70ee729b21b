#!/bin/sh
# Install what is missing on a Debian machine, as root: packages, and a virtual environment from the locked requirements.
# Leaves .venv/bin/{holdfast,holdfastd,containerd-shim-holdfast-v1}. A second run that finds all of it done takes no time.
set -eu
cd "$(dirname "$0")/.."

packages="crun runc containerd containernetworking-plugins docker-registry busybox-static iproute2 iptables strace \
xfsprogs util-linux e2fsprogs faketime openssl"
commands="crun runc containerd docker-registry busybox ip iptables strace mkfs.xfs unshare mkfs.ext4 faketime openssl"

stamp=.setup-stamp
wanted=$(cat scripts/setup.sh requirements.txt pyproject.toml | sha256sum | cut -d' ' -f1)

missing=""
for command in $commands; do
  command -v "$command" >/dev/null 2>&1 || missing="$missing $command"
done
if [ -n "$missing" ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "setup: needs root to install:$missing" >&2
    exit 1
  fi
  echo "setup: installing packages (missing:$missing)"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # shellcheck disable=SC2086
  apt-get install -y -qq --no-install-recommends $packages >/dev/null
fi

kubectl=.tools/usr/bin/kubectl # Debian's, beside whatever other one there is
if [ ! -x $kubectl ]; then
  echo "setup: fetching kubectl"
  mkdir -p .tools
  (
    cd .tools
    apt-get download -qq kubernetes-client 2>/dev/null || { apt-get update -qq && apt-get download -qq kubernetes-client; }
    dpkg -x kubernetes-client_*.deb . && rm kubernetes-client_*.deb
  )
fi

sh scripts/tools.sh

if [ -x .venv/bin/holdfastd ] && [ "$(cat $stamp 2>/dev/null)" = "$wanted" ]; then
  exit 0
fi

python=""
for candidate in python3.11 python3.12 python3.13 python3; do
  if command -v "$candidate" >/dev/null 2>&1 &&
    "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "setup: installing python3-venv"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-venv >/dev/null
  python=python3
fi

echo "setup: making .venv with $("$python" --version)"
"$python" -m venv --clear .venv
.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
.venv/bin/python -m compileall -q src/holdfast # so that the first start is as quick as the others
printf '%s' "$wanted" >$stamp
