#!/bin/bash
# Install Debian's Chromium, which the tests of the page drive, unless a browser is there.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
  type "$name" >/dev/null 2>&1 && exit 0
done
if [ "$(id -u)" != 0 ] || ! type apt-get >/dev/null 2>&1; then
  echo "install_chromium: needs root and Debian, to install: chromium" >&2
  exit 1
fi
log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update && apt-get install -y --no-install-recommends --no-upgrade chromium fonts-dejavu-core; } </dev/null >"$log" 2>&1; then
  echo "install_chromium: apt-get failed: $(tail -n 3 "$log")" >&2
  exit 1
fi
rm -f "$log"
