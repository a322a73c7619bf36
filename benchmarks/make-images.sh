#!/usr/bin/env bash
# Makes images of several kinds from Debian packages: usage: make-images.sh FOLDER [NAME…]
#
# NAME is one of those below (all, if none is given); FOLDER/NAME is an OCI layout, tag 1. One that is there stays.
#
#   base      one layer: debootstrap's minbase
#   sci       base, Python, NumPy with SciPy and pandas without compilers, removals: four layers
#   science   the same with all that these packages bring: more than 30,000 files, 900 MB
#   sixty     base, and 59 more layers: a package each, some of them removals
#   edge      four small layers
#   arm64     minbase of another architecture, unpacked but not set up
#   multiarch an index of base and arm64
#   kin       kin-1 to kin-10, related: five applications over base, Python and NumPy, each in two versions
set -euo pipefail
FOLDER=$(realpath -m "${1:?usage: make-images.sh FOLDER [NAME…]}")
shift
SUITE=bookworm
HERE=$(dirname "$(readlink -f "$0")")
SEARCH_PATH=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ALL=(base sci science sixty edge arm64 multiarch kin)

say() { printf '    %s\n' "$*" >&2; }

# the machine's own Debian mirror where it has one
mirror() {
  [ "$(. /etc/os-release && echo "$ID")" = debian ] || { echo http://deb.debian.org/debian; return; }
  local found
  found=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 2>/dev/null | grep -v security | head -n 1)
  echo "${found:-http://deb.debian.org/debian}"
}

in_tree() { # TREE COMMAND: run it in the tree, mounts in a namespace of their own
  unshare --mount --fork sh -c '
    mount --make-rprivate / && mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" &&
    exec chroot "$1" sh -c "$2"' sh "$1" "$2" >> "$WORK/log" 2>&1 || { tail -n 5 "$WORK/log" >&2; return 1; }
}

apt_in_tree() { # TREE PACKAGE…: install packages, leave no lists behind
  local tree=$1
  shift
  cp --remove-destination /etc/resolv.conf "$tree/etc/resolv.conf"
  in_tree "$tree" "export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update && apt-get -qq install -y --no-install-recommends $*"
  rm -rf "$tree"/var/lib/apt/lists/* "$tree"/var/cache/apt/*.bin "$tree"/var/cache/apt/archives/*.deb "$tree/etc/resolv.conf"
}

new() { # LAYOUT: an image without layers
  umoci init --layout "$1"
  umoci new --image "$1:1"
}

tree_layer() { # LAYOUT TREE: all of the tree as one layer
  tar --numeric-owner --xattrs --xattrs-include='*' --sort=name -C "$2" -c . > "$WORK/layer.tar"
  umoci raw add-layer --image "$1:1" "$WORK/layer.tar"
  rm "$WORK/layer.tar"
}

unpack() { # LAYOUT: the image as a bundle in WORK
  rm -rf "$WORK/bundle"
  umoci unpack --image "$1:1" "$WORK/bundle" >> "$WORK/log" 2>&1
}

repack() { # LAYOUT: what changed in the bundle becomes a layer
  umoci repack --refresh-bundle --image "$1:1" "$WORK/bundle" >> "$WORK/log" 2>&1
}

minbase() { # ARCHITECTURE TREE
  [ ! -e "$2/etc/debian_version" ] || return 0
  local foreign=()
  [ "$1" = "$(dpkg --print-architecture)" ] || foreign=(--foreign)
  debootstrap "${foreign[@]}" --arch="$1" --variant=minbase "$SUITE" "$2" "$(mirror)" > "$WORK/debootstrap.log" 2>&1 ||
    { tail -n 5 "$WORK/debootstrap.log" >&2; return 1; }
  rm -rf "$2"/var/cache/apt/archives/*.deb "$2"/var/lib/apt/lists/*
}

make_base() {
  minbase "$(dpkg --print-architecture)" "$WORK/minbase"
  new "$1"
  tree_layer "$1" "$WORK/minbase"
  umoci config --image "$1:1" --config.cmd /bin/bash --config.env "$SEARCH_PATH" --config.label org.example.kind=base
}

make_sci() {
  python_stack "$1" "rm -rf usr/lib/gcc usr/include usr/bin/*lto-dump* usr/lib/python3/dist-packages/pythran \
    usr/lib/python3.11/config-* && find usr/lib -name '*.a' -delete"
}

make_science() {
  python_stack "$1" true
}

python_stack() { # LAYOUT COMMAND: four layers; COMMAND runs in the tree before the third is made
  from base "$1"
  apt_in_tree "$WORK/bundle/rootfs" python3
  repack "$1"
  apt_in_tree "$WORK/bundle/rootfs" python3-numpy python3-scipy python3-pandas
  (cd "$WORK/bundle/rootfs" && eval "$2")
  repack "$1"
  rm -rf "$WORK"/bundle/rootfs/usr/share/{doc,man,locale}
  mkdir "$WORK/bundle/rootfs/usr/share/doc"
  repack "$1"
  umoci config --image "$1:1" --config.entrypoint /usr/bin/python3 --config.cmd -V --config.env "$SEARCH_PATH" \
    --config.env KIND=python --config.label org.example.kind=python
}

make_sixty() {
  from base "$1"
  local package number=1
  mkdir -p "$WORK/debs"
  while read -r package && [ $number -lt 60 ]; do
    rm -f "$WORK"/debs/*
    (cd "$WORK/debs" && apt-get -qq download "$package" >> "$WORK/log" 2>&1) || continue
    number=$((number + 1))
    if [ $((number % 10)) = 0 ]; then # documentation goes again
      rm -rf "$WORK/gone" && mkdir -p "$WORK/gone/usr/share"
      touch "$WORK/gone/usr/share/.wh.doc"
      tar --numeric-owner -C "$WORK/gone" -c usr/share/.wh.doc > "$WORK/layer.tar"
    else
      dpkg-deb --fsys-tarfile "$WORK"/debs/*.deb > "$WORK/layer.tar"
    fi
    umoci raw add-layer --image "$1:1" "$WORK/layer.tar"
  done < <(small_packages)
  [ $number = 60 ] || { say "only $number layers: the machine's package lists are not Debian's"; return 1; }
}

# small packages that need nothing of this machine's state
small_packages() {
  apt-cache dumpavail 2>/dev/null | awk '
    /^Package: /{name=$2} /^Size: /{size=$2} /^Architecture: /{arch=$2}
    /^$/{if (name ~ /^python3-[a-m]/ && size < 60000 && arch == "all") print name; name=""}' | sort -u
}

make_edge() {
  new "$1"
  local number
  for number in 1 2 3 4; do
    rm -rf "$WORK/edge" && mkdir -p "$WORK/edge/dir-$number"
    for name in 1 2 3 4 5 6 7 8; do
      head -c 260000 /dev/urandom > "$WORK/edge/dir-$number/file-$name"
    done
    if [ "$number" -gt 1 ]; then
      touch "$WORK/edge/.wh.dir-$((number - 1))-no" && mkdir -p "$WORK/edge/dir-1" && touch "$WORK/edge/dir-1/.wh.file-$number"
    fi
    tree_layer "$1" "$WORK/edge"
  done
  umoci config --image "$1:1" --config.cmd /bin/true
}

make_arm64() {
  minbase arm64 "$WORK/arm64"
  new "$1"
  tree_layer "$1" "$WORK/arm64"
  umoci config --image "$1:1" --architecture arm64 --config.cmd /bin/bash
}

make_multiarch() {
  "$HERE/make-index.py" "$1" "$FOLDER/base" "$FOLDER/arm64"
}

KIN=("" "python3-scipy python3-decorator" "python3-pandas python3-dateutil python3-tz python3-six" "python3-sympy python3-mpmath"
  "python3-networkx" "python3-matplotlib python3-cycler python3-kiwisolver python3-pyparsing python3-pil")

make_kin() { # ten images: two versions of each of five applications over the same two layers
  local number other common="$FOLDER/kin-common.new"
  rm -rf "$common" && cp -a "$FOLDER/base" "$common"
  package_layer "$common" "" python3 python3-minimal python3.11 python3.11-minimal libpython3-stdlib libpython3.11-stdlib \
    libpython3.11-minimal python3-numpy libblas3 liblapack3 libgfortran5 libquadmath0
  for number in 1 2 3 4 5; do
    other=$((number + 5))
    rm -rf "$FOLDER/kin-$number" "$FOLDER/kin-$other"
    cp -a "$common" "$FOLDER/kin-$number" && cp -a "$common" "$FOLDER/kin-$other"
    # shellcheck disable=SC2086  # lists of names
    package_layer "$FOLDER/kin-$number" "2024-01-01" ${KIN[$number]}
    # the next version is built anew: the same packages with other times, and one more
    # shellcheck disable=SC2086
    package_layer "$FOLDER/kin-$other" "2024-06-01" ${KIN[$number]} python3-yaml
  done
  rm -rf "$common"
  mkdir "$1" # the mark that all ten are there
}

package_layer() { # LAYOUT TIME PACKAGE…: the packages' files, unpacked, as one layer; TIME is that of the build
  local layout=$1 time=$2 package
  shift 2
  rm -rf "$WORK/debs" "$WORK/tree" && mkdir -p "$WORK/debs" "$WORK/tree"
  (cd "$WORK/debs" && apt-get -qq download "$@" >> "$WORK/log" 2>&1)
  for package in "$WORK"/debs/*.deb; do dpkg-deb -x "$package" "$WORK/tree"; done
  python3 -m compileall -q "$WORK/tree/usr/lib/python3" >> "$WORK/log" 2>&1 || true
  [ -z "$time" ] || find "$WORK/tree" -exec touch -h -d "$time" {} +
  tree_layer "$layout" "$WORK/tree"
  umoci gc --layout "$layout"
}

from() { # NAME LAYOUT: begin with an image that is there, unpacked as a bundle
  make "$1"
  cp -a "$FOLDER/$1" "$2"
  unpack "$2"
}

make() { # NAME
  [ ! -e "$FOLDER/$1" ] || return 0
  case $1 in multiarch) make base && make arm64 ;; sci | science | sixty | kin) make base ;; esac
  say "making the image $1"
  rm -rf "$FOLDER/$1.new"
  "make_$1" "$FOLDER/$1.new"
  [ ! -e "$FOLDER/$1.new/blobs" ] || [ "$1" = multiarch ] || umoci gc --layout "$FOLDER/$1.new"
  mv "$FOLDER/$1.new" "$FOLDER/$1"
}

mkdir -p "$FOLDER"
WORK=$(mktemp -d "$FOLDER/work.XXXXXX")
trap 'rm -rf "$WORK"' EXIT
[ $# -gt 0 ] || set -- "${ALL[@]}"
for name; do make "$name"; done
