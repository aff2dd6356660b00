#!/usr/bin/env bash
# The ways of docs/install.md and README.md, as they are written there, each in a folder with the
# artefact that it names and nothing else, and on a machine of its own: a copy-on-write view of this
# one, without a network. The program is then run. cargo takes minutes: it is left out unless FULL
# is set.
set -euo pipefail
cd "$(dirname "$0")/../.."
dist=${DIST:-$PWD/dist}
name=codex-responses-api-proxy
fail() { echo "FAILED: $*" >&2; exit 1; }
[ "$(uname -m)" = x86_64 ] || { echo "SKIPPED: the text is for x86_64"; exit 0; }
version=$(sed -n '0,/^version = "\(.*\)"$/s//\1/p' Cargo.toml)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! { [ "$(id -u)" -eq 0 ] && mkdir "$work"/{up,work,root} && unshare --mount --net mount -t overlay overlay \
    -o "lowerdir=/,upperdir=$work/up,workdir=$work/work" "$work/root" 2>/dev/null; }; then
    echo "SKIPPED: this is not root, or there is no overlay"
    exit 0
fi
rm -rf "${work:?}"/*

# block TITLE: the lines of the first block of shell behind the line that begins with this.
block() {
    awk -v title="**$1**" 'index($0, title) == 1 { at = 1 } at && /^```$/ { exit } inside { print }
        at && /^```sh$/ { inside = 1 }' docs/install.md
}

# install TITLE ARTEFACT: follows the text.
install_by() {
    local title=$1 place=$work/$1
    shift
    mkdir -p "$place"/{up,work,root,here}
    block "$title" >"$place/text"
    case $(grep -c . "$place/text") in 1 | 2) ;; *) fail "$title: not one line or two" ;; esac
    cp "$@" "$place/here/"
    echo "$version" >"$place/version"
    # The rest happens on that machine.
    # shellcheck disable=SC2016
    unshare --mount --net --pid --ipc --fork --kill-child --propagation private \
        bash -euo pipefail -c '
        title=$1 place=$2
        ip link set lo up
        mount -t overlay overlay -o "lowerdir=/,upperdir=$place/up,workdir=$place/work" "$place/root"
        mount --rbind /dev "$place/root/dev"
        mount -t proc proc "$place/root/proc"
        mkdir -p "$place/root/mnt/here"
        mount --bind "$place/here" "$place/root/mnt/here"
        # What a machine has and this one may not: root in place of sudo; rpm on Debian asks to be
        # forced.
        printf "#!/bin/sh\nexec \"\$@\"\n" >"$place/root/usr/local/sbin/sudo"
        printf "#!/bin/sh\nexec /usr/bin/rpm --force-debian --nodeps \"\$@\"\n" >"$place/root/usr/local/sbin/rpm"
        chmod 755 "$place/root/usr/local/sbin/"{sudo,rpm}
        home=/mnt/home path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        mkdir -p "$place/root$home"
        environment=(HOME=$home PATH=$path DEBIAN_FRONTEND=noninteractive)
        if [ "$title" = cargo ]; then
            # An empty CARGO_HOME: nothing but the toolchain.
            environment+=(PATH="$home/.cargo/bin:$(rustc --print sysroot)/bin:$path")
        fi
        on() { env -i "${environment[@]}" "$(command -v chroot)" "$place/root" bash -euc "cd /mnt/here; $1"; }
        ! on "command -v codex-responses-api-proxy" || { echo "it is installed already"; exit 1; }
        on "$(cat "$place/text")"
        on "codex-responses-api-proxy --version" | grep -q "^codex-responses-api-proxy $(cat "$place/version") ("
        on "echo sk-of-this-test-0123456789 | codex-responses-api-proxy --detach --port 8080 --http-shutdown"
        on "codex-responses-api-proxy --probe 8080"
    ' _ "$title" "$place" >"$place/log" 2>&1 || { cat "$place/log" >&2; fail "$title"; }
    echo "$title: ok"
}

install_by Tarball "$dist/$name-$version-x86_64-unknown-linux-musl.tar.gz"
install_by .deb "$dist/${name}_${version}_amd64.deb"
install_by .rpm "$dist/$name-$version-1.x86_64.rpm"
install_by npm "$dist/codex-responses-api-relay-$version.tgz"
if [ -n "${FULL:-}" ]; then
    install_by cargo "$dist/$name-$version-source.tar.gz"
else
    echo "SKIPPED: cargo, which takes minutes: set FULL"
fi

# The README has the same lines.
for title in Tarball .deb .rpm npm cargo; do block "$title"; done >"$work/page"
awk '/^## Install$/ { at = 1 } at && /^```$/ { exit } inside { print } at && /^```sh$/ { inside = 1 }' README.md |
    sed 's/ *#.*//' | diff - "$work/page" || fail "README.md and docs/install.md differ"

# The wrapper for callers that say `codex responses-api-proxy`.
mkdir -p "$work/wrapper" "$work/real" "$work/programs"
printf '#!/bin/sh\necho "real $*"\n' >"$work/real/codex"
printf '#!/bin/sh\necho "relay $*"\n' >"$work/programs/$name"
chmod 755 "$work/real/codex" "$work/programs/$name"
grep -F -A 1 'printf' docs/install.md >"$work/line"
(cd "$work" && PATH=$work/real:$PATH bash -e line)
for arguments in "responses-api-proxy --port 1" "exec a b" ""; do
    # The words are several.
    # shellcheck disable=SC2086
    PATH=$work/wrapper:$work/programs:$PATH codex $arguments
done >"$work/said"
printf 'relay --port 1\nreal exec a b\nreal \n' | cmp - "$work/said" || fail "the wrapper"
echo "install: ok"
