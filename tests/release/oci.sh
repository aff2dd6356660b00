#!/usr/bin/env bash
# The container image of dist/: its layout and digests, that two runs give the same bytes, and that
# the program starts from the unpacked layer alone, as the image's user, without a shell and without
# /etc.
set -euo pipefail
cd "$(dirname "$0")/../.."
dist=${DIST:-$PWD/dist}
name=codex-responses-api-proxy
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }
version=$(sed -n '0,/^version = "\(.*\)"$/s//\1/p' Cargo.toml)
image=$dist/$name-$version-oci.tar
[ -f "$image" ] || fail "$image is missing; run scripts/release"

mkdir "$work/layout"
tar xf "$image" -C "$work/layout"
cd "$work/layout"
[ "$(jq -r .imageLayoutVersion oci-layout)" = 1.0.0 ] || fail "oci-layout"
(cd blobs/sha256 && for blob in *; do echo "$blob  $blob"; done | sha256sum --check --status -) ||
    fail "a blob has another digest"
blob() { echo "blobs/sha256/${1#sha256:}"; }
# Every descriptor: its blob is there and has this size.
jq -r '.. | objects | select(.digest? and .size?) | "\(.digest) \(.size)"' index.json blobs/sha256/* 2>/dev/null |
    sort -u >"$work/descriptors" || true
while read -r digest size; do
    [ "$(stat -c %s "$(blob "$digest")")" = "$size" ] || fail "$digest"
done <"$work/descriptors"
[ "$(jq -r '.manifests[].annotations."org.opencontainers.image.ref.name"' index.json | tr '\n' ' ')" = \
    "$version $version-amd64 $version-arm64 " ] || fail "the names of index.json"
both=$(blob "$(jq -r '.manifests[0].digest' index.json)")
[ "$(jq -r '.manifests[].platform | .os + "/" + .architecture' "$both" | tr '\n' ' ')" = \
    "linux/amd64 linux/arm64 " ] || fail "the platforms"

# unpack ARCHITECTURE: checks the image of this architecture and unpacks its layer into $root.
unpack() {
    local manifest config layer
    manifest=$(blob "$(jq -r ".manifests[] | select(.platform.architecture == \"$1\").digest" "$both")")
    config=$(blob "$(jq -r .config.digest "$manifest")")
    layer=$(blob "$(jq -r '.layers | if length == 1 then .[0].digest else "several" end' "$manifest")")
    [ "$(jq -r '[.architecture, .os, .config.User, .config.Entrypoint] | @json' "$config")" = \
        "[\"$1\",\"linux\",\"65532:65532\",[\"/$name\"]]" ] || fail "the configuration for $1"
    [ "$(jq -r '.rootfs.diff_ids[0]' "$config")" = "sha256:$(gzip -dc "$layer" | sha256sum | cut -d ' ' -f 1)" ] ||
        fail "the layer of $1 is another"
    root=$work/root-$1
    mkdir "$root"
    tar xzpf "$layer" -C "$root"
    [ "$(stat -c %a "$root/$name")" = 711 ] || fail "the program's mode"
    for folder in etc bin usr; do
        [ ! -e "$root/$folder" ] || fail "more than the program"
    done
}

# run TOOL…: starts the program in $root as a container runtime does, in namespaces of its own with
# nothing but a loopback, a /proc and the key; asks it with --probe, and ends it.
run() {
    mkdir -p "$root/proc" "$root/run"
    install -m 400 -o 65532 -g 65532 /dev/stdin "$root/run/key" <<<"sk-of-this-test-0123456789"
    install -m 600 -o 65532 -g 65532 /dev/null "$root/run/info"
    # shellcheck disable=SC2016
    timeout 120 unshare --mount --net --pid --ipc --uts --fork --kill-child --propagation private bash -euc '
        root=$1 name=$2; shift 2
        ip link set lo up
        mount -t proc proc "$root/proc"
        inside() {
            exec env -i "$(command -v chroot)" --userspec=65532:65532 --groups= "$root" "$@"
        }
        (inside "$@" "/$name" --port 8080 --key-file /run/key --server-info /run/info --access-log) 2>"$root/log" &
        pid=$!
        for _ in {1..600}; do [ ! -s "$root/run/info" ] || break; sleep 0.05; done
        (inside "$@" "/$name" --probe 8080) || { cat "$root/log"; exit 1; }
        # Another port: no relay.
        ! (inside "$@" "/$name" --probe 8081) 2>/dev/null
        kill "$pid"
        wait "$pid"
        ! (inside "$@" "/$name" --probe 8080) 2>/dev/null
    ' _ "$root" "$name" "$@" || { cat "$root/log" >&2; fail "the program does not run in $root"; }
    grep -q '"event":"start"' "$root/log" || fail "no start line"
}

unpack amd64
amd64=$root
unpack arm64
arm64=$root
can_unshare() { [ "$(id -u)" -eq 0 ] && unshare --mount --net --pid --fork true 2>/dev/null; }
if ! can_unshare; then
    echo "SKIPPED: the program is not run from the image: this is not root, or has no namespaces"
else
    case $(uname -m) in x86_64) own=$amd64 foreign=$arm64 ;; *) own=$arm64 foreign=$amd64 ;; esac
    root=$own
    run
    emulator=qemu-$([ "$foreign" = "$arm64" ] && echo aarch64 || echo x86_64)-static
    if command -v "$emulator" >/dev/null; then
        root=$foreign
        install -m 755 "$(command -v "$emulator")" "$root/emulator"
        # The emulator reads the program, which the kernel needs no permission for.
        chmod 755 "$root/$name"
        run /emulator
    else
        echo "SKIPPED: $(basename "$foreign"): there is no $emulator"
    fi
fi

# The script gives the same bytes each time, with another umask too.
if [ -d "$dist/bin" ]; then
    for mask in 022 077; do
        mkdir "$work/$mask"
        ln -s "$dist/bin" "$dist/share" "$work/$mask/"
        (cd - >/dev/null && umask "$mask" && DIST=$work/$mask scripts/package-oci)
    done
    cmp "$work"/0*/*.tar || fail "two runs give other bytes"
fi

# What others make of it.
if command -v skopeo >/dev/null; then
    skopeo copy --quiet --all "oci-archive:$image:$version" "dir:$work/copied" || fail "skopeo copy"
    [ "$(skopeo inspect --override-arch arm64 --config "oci-archive:$image:$version" | jq -r .architecture)" = arm64 ] ||
        fail "skopeo inspect"
else
    echo "SKIPPED: there is no skopeo"
fi
if command -v umoci >/dev/null; then
    umoci unpack --rootless --image "$work/layout:$version-amd64" "$work/bundle" >/dev/null || fail "umoci unpack"
    cmp "$work/bundle/rootfs/$name" "$amd64/$name" || fail "umoci unpacks another program"
    [ "$(jq -r '.process.args | @json' "$work/bundle/config.json")" = "[\"/$name\"]" ] || fail "umoci's config.json"
else
    echo "SKIPPED: there is no umoci"
fi
echo "oci: ok"
