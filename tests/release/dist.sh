#!/usr/bin/env bash
# What scripts/release has put into dist/: the programs, the packages, what lies in them, and how a user
# verifies them. Nothing is installed. Says what is missing on this machine.
set -euo pipefail
cd "$(dirname "$0")/../.."
dist=$(cd "${DIST:-dist}" && pwd)
name=codex-responses-api-proxy
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }
missing=()
# has COMMAND PACKAGE
has() { command -v "$1" >/dev/null || { missing+=("$2"); false; }; }

version=$(sed -n '/^\[package\]$/,/^\[/ s/^version = "\(.*\)"$/\1/p' Cargo.toml)
commit=$(sed -n 's/^commit: //p' "$dist/BUILDINFO")
epoch=$(sed -n 's/^source-date-epoch: //p' "$dist/BUILDINFO")

if has shellcheck shellcheck; then
    find scripts tests/release packaging/deb -type f ! -name '*.py' -exec shellcheck -x {} +
fi

for triple in x86_64-unknown-linux-musl aarch64-unknown-linux-musl; do
    processor=${triple%%-*}
    tarball=$dist/$name-$version-$triple.tar.gz
    # The program as a user gets it.
    mkdir "$work/$processor"
    tar --extract --file "$tarball" --directory "$work/$processor"
    folder=$work/$processor/$name-$version-$triple
    program=$folder/$name
    [ "$(stat -c %a "$program")" = 711 ] || fail "$triple: mode of the program"
    [ "$(stat -c %s "$program")" -le 2044723 ] || fail "$triple: the program is too large"
    ! readelf --dynamic --wide "$program" | grep -c NEEDED >/dev/null || fail "$triple: the program needs a library"
    ! strings -a "$program" | grep -nE "$HOME|/registry/|$PWD" || fail "$triple: a path of the builder's is in it"
    runner=
    if [ "$processor" != "$(uname -m)" ]; then
        runner=qemu-$processor-static
        has "$runner" qemu-user-static || runner=none
    fi
    if [ "$runner" != none ]; then
        said=$($runner "$program" --version)
        [ "$said" = "$name $version (${commit:0:12}, $triple, rustls 0.23 with ring)" ] || fail "$triple: $said"
        # Starts, listens, and ends at SIGTERM.
        echo sk-test-of-no-use-0123456789abcdef |
            $runner "$program" --upstream-url http://127.0.0.1:9 2>"$work/said.$processor" &
        relay=$!
        for _ in $(seq 200); do grep -q protections "$work/said.$processor" && break; sleep 0.05; done
        grep -q 'listening on 127.0.0.1' "$work/said.$processor" ||
            { cat "$work/said.$processor" >&2; fail "$triple: the packed program does not start"; }
        kill $relay
        wait $relay || fail "$triple: the packed program did not end in order"
    fi
    # Names in order, one owner, one time.
    tar --list --verbose --numeric-owner --full-time --utc --file "$tarball" |
        awk '{ print $2, $4, $5, $6 }' >"$work/list"
    [ "$(cut -d ' ' -f 1-3 "$work/list" | sort -u)" = "0/0 $(date --utc --date "@$epoch" '+%F %T')" ] ||
        fail "$triple: owners or times in the tarball"
    cut -d ' ' -f 4 "$work/list" | LC_ALL=C sort --check || fail "$triple: the tarball is not sorted"
    for file in LICENSE THIRD-PARTY.txt README.md SECURITY.md CHANGELOG.md man/$name.1 completions/$name.bash \
        completions/_$name completions/$name.fish systemd/$name.service systemd/$name.conf; do
        [ -s "$folder/$file" ] || fail "$triple: $file is not in the tarball"
    done
    # The list of packages, where scanners look for it, and as a document of its own.
    objcopy=objcopy
    [ "$processor" = "$(uname -m)" ] || objcopy=$processor-linux-gnu-objcopy
    if has "$objcopy" "binutils for $processor" && has python3 python3; then
        cp "$program" "$work/program"
        "$objcopy" -O binary --only-section=.dep-v0 --set-section-flags .dep-v0=alloc "$work/program" "$work/section"
        python3 -c 'import sys, zlib; sys.stdout.buffer.write(zlib.decompress(open(sys.argv[1], "rb").read()))' \
            "$work/section" | jq -r '.packages[] | select(.root != true) | "\(.name) \(.version)"' | sort >"$work/embedded"
        jq -r '.components[] | "\(.name) \(.version)"' "$dist/$name-$version-$triple.cdx.json" | sort >"$work/listed"
        cmp "$work/embedded" "$work/listed" || fail "$triple: the lists of packages differ"
        grep -q '^rustls ' "$work/listed" || fail "$triple: rustls is not listed"
    fi
    jq -e --arg sum "$(sha256sum "$program" | cut -d ' ' -f 1)" '.bomFormat == "CycloneDX"
        and .metadata.component.hashes[0].content == $sum
        and ([.components[] | .purl, .hashes[0].content] | all)
        and ([.components[]."bom-ref"] + [.metadata.component."bom-ref"]) as $refs
            | [.dependencies[] | .ref, .dependsOn[]] | unique - $refs == []' \
        "$dist/$name-$version-$triple.cdx.json" >/dev/null || fail "$triple: the CycloneDX document"
done
folder=$work/x86_64/$name-$version-x86_64-unknown-linux-musl

# The manual page and the completions, as those who read them do.
if has mandoc mandoc; then
    mandoc -T lint -W warning "$folder/man/$name.1" | grep -vE 'missing date|lower case character' >"$work/lint" || true
    [ ! -s "$work/lint" ] || { cat "$work/lint" >&2; fail "the manual page"; }
fi
if has man man-db; then
    MANWIDTH=80 man --warnings -l "$folder/man/$name.1" 2>"$work/warnings" | col -b >"$work/page"
    [ ! -s "$work/warnings" ] || { cat "$work/warnings" >&2; fail "man warns about the manual page"; }
    grep -q -- '--allow-uid' "$work/page" || fail "the manual page lacks a flag"
fi
bash -euc '. "$1"; COMP_WORDS=(relay --allow-u); COMP_CWORD=1; compopt() { :; }
    _codex_responses_api_proxy; [ "${COMPREPLY[*]}" = --allow-uid ]' - "$folder/completions/$name.bash" ||
    fail "bash does not complete"
if has zsh zsh; then
    # shellcheck disable=SC2016  # for zsh
    zsh -fc 'fpath=($1 $fpath); autoload -Uz compinit && compinit -D -u
        [ "${_comps[codex-responses-api-proxy]}" = _codex-responses-api-proxy ] && autoload -Uz +X _codex-responses-api-proxy' \
        - "$folder/completions" || fail "zsh does not load the completions"
    zsh -n "$folder/completions/_$name" || fail "zsh cannot read the completions"
fi
if has fish fish; then
    # shellcheck disable=SC2016  # for fish
    HOME=$work fish --no-config -c 'source $argv[1]; complete -C "codex-responses-api-proxy --allow-u"' \
        "$folder/completions/$name.fish" | grep -c '^--allow-uid' >/dev/null || fail "fish does not complete"
fi

# The unit: systemd reads it without a word, and gives it this exposure at most.
if has systemd-analyze systemd; then
    sed 's|^ExecStart=[^ ]*|ExecStart=/bin/true|' "packaging/$name.service" >"$work/$name.service"
    said=$(systemd-analyze verify --man=no "$work/$name.service" 2>&1 || echo "it does not verify")
    [ -z "$said" ] || fail "the unit: $said"
    systemd-analyze security --offline=true --threshold=18 --no-pager "$work/$name.service" >"$work/exposure" ||
        { grep ✗ "$work/exposure" >&2; fail "the unit's exposure is above 1.8"; }
    tail -n 1 "$work/exposure"
fi

# The .deb and the .rpm.
if has dpkg-deb dpkg; then
    for arch in amd64 arm64; do
        deb=$dist/${name}_${version}_$arch.deb
        dpkg-deb --contents "$deb" >"$work/contents"
        grep -qE "^-rwx--x--x root/root .* ./usr/bin/$name$" "$work/contents" || fail "$arch: mode of the program"
        [ "$(dpkg-deb --field "$deb" Version Architecture | tr '\n' ' ')" = "Version: $version Architecture: $arch " ] ||
            fail "$arch: the package's fields"
        if has lintian lintian; then
            said=$(lintian --allow-root --fail-on error,warning --tag-display-limit 0 "$deb" 2>&1) ||
                { echo "$said" >&2; fail "$arch: lintian"; }
        fi
    done
    mkdir "$work/deb"
    dpkg-deb --extract "$dist/${name}_${version}_amd64.deb" "$work/deb"
    cmp "$work/deb/usr/bin/$name" "$folder/$name" || fail "the .deb has another program than the tarball"
fi
if has rpm rpm; then
    for processor in x86_64 aarch64; do
        rpm=$dist/$name-$version-1.$processor.rpm
        rpm -qp --queryformat '[%{FILEMODES:perms} %{FILEUSERNAME} %{FILENAMES}\n]' "$rpm" >"$work/contents" 2>/dev/null
        rpm -qlp "$rpm" 2>/dev/null | grep -xc "/usr/lib/systemd/system/$name.service" >/dev/null || fail "$processor: no unit"
        grep -qx -- "-rwx--x--x root /usr/bin/$name" "$work/contents" || fail "$processor: mode of the program"
        [ "$(rpm -qp --queryformat '%{VERSION} %{ARCH} %{BUILDTIME}' "$rpm" 2>/dev/null)" = "$version $processor $epoch" ] ||
            fail "$processor: the package's fields"
    done
fi

# As a user verifies a download: the signature by the published key, then the sums.
(cd "$dist" && sha256sum --quiet --check SHA256SUMS) || fail "the checksums"
unlisted=$(cd "$dist" && comm -13 <(awk '{ print $2 }' SHA256SUMS | sort) \
    <(find . -maxdepth 1 -type f ! -name 'SHA256SUMS*' -printf '%P\n' | sort))
[ -z "$unlisted" ] || fail "without a checksum: $unlisted"
if has minisign minisign; then
    minisign -G -W -f -p "$work/public" -s "$work/secret" >/dev/null
    mkdir "$work/signed"
    cp "$dist/BUILDINFO" "$work/signed/"
    DIST=$work/signed MINISIGN_KEY=$work/secret scripts/sign-sums >/dev/null
    (cd "$work/signed" && minisign -V -q -p "$work/public" -m SHA256SUMS) || fail "the signature"
    echo >>"$work/signed/SHA256SUMS"
    ! (cd "$work/signed" && minisign -V -q -p "$work/public" -m SHA256SUMS 2>/dev/null) ||
        fail "a signature of other bytes is taken"
fi
[ ${#missing[@]} -eq 0 ] || echo "skipped for want of: $(printf '%s\n' "${missing[@]}" | sort -u | paste -s -d ' ')"
echo "dist: ok"
