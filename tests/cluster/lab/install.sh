#!/bin/bash
# Install, from Debian, what the lab and the tests' hosts are made with, unless it is there: install.sh [1 for accounting too]
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
tools=(slurmctld slurmd sbatch munged ip unshare nsenter gcc)
packages=(slurmctld slurmd slurm-client munge iproute2 util-linux gcc libc6-dev libslurm-dev)
if [ "${1:-0}" = 1 ]; then
  tools+=(slurmdbd mariadbd) packages+=(slurmdbd mariadb-server)
fi
type "${tools[@]}" >/dev/null 2>&1 && [ -e /usr/include/slurm/spank.h ] && exit 0
if [ "$(id -u)" != 0 ] || ! type apt-get >/dev/null 2>&1; then
  echo "lab: needs root and Debian, to install: ${packages[*]}" >&2
  exit 1
fi
log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 # RUNLEVEL=1: the packages start no services of their own
if ! { apt-get update && apt-get install -y --no-install-recommends --no-upgrade "${packages[@]}"; } </dev/null >"$log" 2>&1; then
  echo "lab: apt-get failed: $(tail -n 3 "$log")" >&2
  exit 1
fi
rm -f "$log"
