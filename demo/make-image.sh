#!/usr/bin/env bash
# Makes the demo's image from Debian packages: usage: make-image.sh FOLDER; the image is FOLDER/layout, tag 1.
#
# Four layers, as builds in the wild have them: a base system, a Python stack from packages, removals (whiteouts and a
# directory that is replaced), an application with hard links, attributes, odd names and a sparse file.
set -euo pipefail
FOLDER=$(realpath -m "${1:?usage: make-image.sh FOLDER}")
SUITE=bookworm
IMAGE="$FOLDER/new:1"
ROOTFS="$FOLDER/bundle/rootfs"

say() { printf '    %s\n' "$*" >&2; }

# the machine's own Debian mirror where it has one
mirror() {
  [ "$(. /etc/os-release && echo "$ID")" = debian ] || { echo http://deb.debian.org/debian; return; }
  local found
  found=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null | grep -v security | head -n 1)
  echo "${found:-http://deb.debian.org/debian}"
}

in_rootfs() { # COMMAND: run it in the image's tree, mounts in a namespace of their own
  unshare --mount --fork sh -c '
    mount --make-rprivate / && mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" &&
    exec chroot "$1" sh -c "$2"' sh "$ROOTFS" "$1"
}

layer() { # NAME: what changed in the tree becomes a layer
  umoci repack --refresh-bundle --image "$IMAGE" "$FOLDER/bundle" >/dev/null
  say "layer: $1"
}

rm -rf "$FOLDER/new" "$FOLDER/bundle" "$FOLDER/layout"
mkdir -p "$FOLDER"
umoci init --layout "$FOLDER/new"
umoci new --image "$IMAGE"
umoci unpack --image "$IMAGE" "$FOLDER/bundle" >/dev/null

debootstrap --variant=minbase "$SUITE" "$ROOTFS" "$(mirror)" > "$FOLDER/debootstrap.log" 2>&1 ||
  { tail -n 5 "$FOLDER/debootstrap.log" >&2; exit 1; }
rm -rf "$ROOTFS"/var/cache/apt/archives/*.deb
layer "Debian $SUITE"

cp /etc/resolv.conf "$ROOTFS/etc/resolv.conf"
in_rootfs 'export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update && apt-get -qq install -y --no-install-recommends python3 python3-numpy python3-sympy python3-pip' \
  > "$FOLDER/apt.log" 2>&1 || { tail -n 5 "$FOLDER/apt.log" >&2; exit 1; }
layer "Python with NumPy and SymPy"

rm -rf "$ROOTFS"/var/lib/apt/lists/* "$ROOTFS"/var/cache/apt/*.bin "$ROOTFS/usr/share/man" "$ROOTFS/etc/resolv.conf"
rm -rf "$ROOTFS/usr/share/doc" && mkdir "$ROOTFS/usr/share/doc"
echo 'documentation was removed from this image' > "$ROOTFS/usr/share/doc/README"
layer "removals"

mkdir -p "$ROOTFS/opt/app/data" "$ROOTFS/opt/app/shared"
cat > "$ROOTFS/opt/app/hello.py" <<'PY'
import platform
import numpy
print(f"hello from Python {platform.python_version()}, NumPy {numpy.__version__}: "
      f"the determinant is {numpy.linalg.det(numpy.array([[2.0, 1.0], [1.0, 3.0]])):.0f}")
PY
(
  cd "$ROOTFS/opt/app/data"
  echo linked > first && ln first second && ln first ../shared/third
  printf x > "$(printf 'latin1-\351')" && printf x > "$(printf 'new\nline')" && printf x > "$(printf 'n%.0s' $(seq 255))"
  truncate -s 32M sparse && printf end >> sparse
  ln -s ../hello.py link && ln -s /nowhere dangling && mkfifo fifo && mknod null c 1 3
  echo owned > owned && chown 12345:54321 owned && chmod 4750 owned
  echo noted > noted && setfattr -n user.note -v demo noted
  cp "$ROOTFS/bin/true" able && setcap cap_net_raw+ep able
  touch -d '2040-01-01 00:00:00.123456789' later && head -c 20000000 /dev/urandom > noise
)
layer "application"

umoci config --image "$IMAGE" --config.cmd /usr/bin/python3 --config.cmd /opt/app/hello.py --config.workingdir /opt/app \
  --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umoci gc --layout "$FOLDER/new"
rm -rf "$FOLDER/bundle"
mv "$FOLDER/new" "$FOLDER/layout"
