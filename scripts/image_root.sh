#!/usr/bin/env bash
# Makes the root of an image: a bundle's folder and what its programs need of this machine's C library
# and packages, and nothing else. Run where `setup.sh --runtime` has installed them, as root.
#   scripts/image_root.sh BUNDLE ROOT    ROOT/BUNDLE is where the bundle will be found
# Of each package it also brings the licence, and the entry in var/lib/dpkg/status.d by which scanners
# find what is in an image.
set -euo pipefail

[ $# -eq 2 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
bundle=$1
root=$2
[ ! -e "$root" ] || { echo "image_root.sh: $root exists" >&2; exit 1; }

mkdir -p "$root"/{dev,proc,sys,run,etc,usr,var/lib/dpkg/status.d} "$root$(dirname "$bundle")"
for name in bin lib lib64 sbin; do
  mkdir "$root/usr/$name"
  ln -s "usr/$name" "$root/$name"
done
install -d -m 1777 "$root/tmp"
cp -r "$bundle" "$root$bundle"

# `name => path (address)`, or for the loader `path (address)`.
needed=$(LD_LIBRARY_PATH="$bundle/lib" ldd "$bundle"/bin/*)
if grep 'not found' <<<"$needed" >&2; then
  echo "image_root.sh: setup.sh --runtime does not install the libraries above" >&2
  exit 1
fi
mapfile -t libraries < <(sed -nE 's/^\s*(.* => )?(\/[^ ]+) \(0x.*/\2/p' <<<"$needed" | sort -u |
  grep -v "^$bundle/")
packages=(base-files)
for library in "${libraries[@]}"; do
  mkdir -p "$root$(dirname "$library")"
  cp -L "$library" "$root$library"
  real=$(realpath "$library") # a package may name a file without the /usr of a merged root
  owner=$({ dpkg-query -S "$real" || dpkg-query -S "${real#/usr}"; } 2>/dev/null | head -n 1)
  [ -n "$owner" ] || { echo "image_root.sh: no package has $library" >&2; exit 1; }
  packages+=("${owner%%:*}")
done
for package in $(printf '%s\n' "${packages[@]}" | sort -u); do
  dpkg-query -s "$package" >"$root/var/lib/dpkg/status.d/$package"
  mkdir -p "$root/usr/share/doc/$package"
  cp -L "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package/"
done

cp -L /etc/os-release "$root/usr/lib/os-release"
ln -s ../usr/lib/os-release "$root/etc/os-release"
cp -L /etc/debian_version "$root/etc/" # by which NVIDIA's runtime knows where libraries go
cp -r /etc/ld.so.conf /etc/ld.so.conf.d "$root/etc/"
echo "$bundle/lib" >"$root/etc/ld.so.conf.d/ferrite.conf"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
printf '%s\n' root:x:0:0:root:/:/sbin/nologin ferrite:x:65532:65532:ferrite:/:/sbin/nologin \
  >"$root/etc/passwd"
printf '%s\n' root:x:0: ferrite:x:65532: >"$root/etc/group"
ldconfig -r "$root"
du -sh "$root" | cut -f1
