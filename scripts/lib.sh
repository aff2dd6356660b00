# shellcheck shell=bash disable=SC2034
# Shared by the scripts of a release, which source it after `set -euo pipefail`.
#
# dist/bin/TRIPLE/   the program, mode 711            dist/share/   manual page, completions, licences
# dist/              the artefacts, each made by scripts/package-KIND from the folders above

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
ROOT=$PWD
NAME=codex-responses-api-proxy
DIST=${DIST:-$ROOT/dist}
TRIPLES=${TRIPLES:-"x86_64-unknown-linux-musl aarch64-unknown-linux-musl"}

# No setting of the builder may affect an artefact.
umask 022
export LC_ALL=C TZ=UTC
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_RUSTFLAGS CFLAGS TAPE GZIP XZ_OPT

step() { printf '\n== %s\n' "$*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }

# need COMMAND PACKAGE: ends with the name of the Debian package if the command is missing.
need() { command -v "$1" >/dev/null || fail "$1 is missing; Debian's package is $2"; }

VERSION=$(sed -n '/^\[package\]$/,/^\[/ s/^version = "\(.*\)"$/\1/p' Cargo.toml)
[ -n "$VERSION" ] || fail "Cargo.toml has no version"

# The commit and its time: from git or, in a source tarball, from a file.
if [ -e .git ]; then
    COMMIT=$(git rev-parse HEAD)
    SOURCE_DATE_EPOCH=$(git log -1 --format=%ct HEAD)
else
    COMMIT=$(sed -n 's/.*"sha1": "\([0-9a-f]*\)".*/\1/p' .cargo_vcs_info.json)
    SOURCE_DATE_EPOCH=$(sed -n 's/.*"committed": \([0-9]*\).*/\1/p' .cargo_vcs_info.json)
    [ -n "$SOURCE_DATE_EPOCH" ] || fail "neither a git work tree nor an unpacked source tarball"
fi
export SOURCE_DATE_EPOCH

# The names of a triple's processor for rpm, and for Debian and OCI.
processor_of() { echo "${1%%-*}"; }
debian_arch() { case $1 in x86_64-*) echo amd64 ;; aarch64-*) echo arm64 ;; *) fail "no name for $1" ;; esac; }

program_of() { echo "$DIST/bin/$1/$NAME"; }

# pack_tar FOLDER NAME FILE: the entry NAME of FOLDER as FILE (.tar.gz), the same bytes each time.
pack_tar() {
    tar --create --directory "$1" --sort=name --format=ustar --owner=0 --group=0 --numeric-owner \
        --mtime="@$SOURCE_DATE_EPOCH" "$2" | gzip -9 -n >"$3"
}

# plain_modes FOLDER: sets modes that do not depend on the umask of the checkout.
plain_modes() { chmod -R u=rwX,go=rX "$1"; }

# A temporary folder, which is removed at the end of the script.
make_work() {
    WORK=$(mktemp -d "${TMPDIR:-/tmp}/relay-release.XXXXXX")
    trap 'rm -rf "$WORK"' EXIT
}

# system_tree TRIPLE FOLDER ZSH_FOLDER: writes the files that the .deb and the .rpm install.
system_tree() {
    local triple=$1 to=$2 zsh=$3 share=$DIST/share
    install -d -m 755 "$to"/usr/{bin,lib/systemd/system,lib/sysusers.d,share/man/man1} "$to/$zsh" \
        "$to"/usr/share/{bash-completion/completions,fish/vendor_completions.d} "$to/etc"
    # The folder of the key, which only root can read. The service manager passes the key on.
    install -d -m 700 "$to/etc/$NAME"
    # The relay's user cannot read the program, so no process of that user can attach at its start.
    install -m 711 "$(program_of "$triple")" "$to/usr/bin/$NAME"
    install -m 644 "packaging/$NAME.service" "$to/usr/lib/systemd/system/"
    install -m 644 "packaging/$NAME.sysusers" "$to/usr/lib/sysusers.d/$NAME.conf"
    gzip -9 -n <"$share/$NAME.1" >"$to/usr/share/man/man1/$NAME.1.gz"
    install -m 644 "$share/$NAME.bash" "$to/usr/share/bash-completion/completions/$NAME"
    install -m 644 "$share/$NAME.fish" "$to/usr/share/fish/vendor_completions.d/"
    install -m 644 "$share/_$NAME" "$to/$zsh/"
}

# one_time FOLDER: sets the times of all files in it to the time of the commit.
one_time() { find "$1" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +; }
