#!/bin/sh
# Installs the Debian packages that the lab needs and this machine lacks, and those that are named.
set -eu
packages="ca-certificates debootstrap gcc iproute2 libc6-dev patchelf util-linux $*"
missing=""
for package in $packages; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
done
[ -z "$missing" ] && exit 0
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list of words
apt-get install -y -qq --no-install-recommends $missing
