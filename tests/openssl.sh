#!/usr/bin/env bash
# The post-quantum key exchange with a real server: OpenSSL 3.5 or later. Where this machine has an
# older one, the packages of a later Debian release are unpacked into a folder, not installed.
# Says "skipped" and succeeds where neither can be had.
set -euo pipefail
cd "$(dirname "$0")/.."
skip() { echo "skipped: no OpenSSL with ML-KEM here: $*"; exit 0; }

has_ml_kem() { "$1" list -kem-algorithms 2>/dev/null | grep -qi 'X25519MLKEM768'; }

openssl=$(command -v openssl || true)
if [ -z "$openssl" ] || ! has_ml_kem "$openssl"; then
    suite=trixie
    command -v apt-get >/dev/null || skip "no apt-get"
    folder=$PWD/target/openssl-$suite
    if ! [ -x "$folder/openssl" ]; then
        mkdir -p "$folder"/{lists/partial,cache/archives/partial,packages,root}
        # The mirror that this machine uses.
        mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' | sort -u |
            grep -vE 'security|updates|backports' | head -n 1 | cut -d ' ' -f 1)
        [ -n "$mirror" ] || skip "no mirror is known"
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" \
            >"$folder/sources.list"
        apt=(apt-get -qq -o "Dir::Etc::sourcelist=$folder/sources.list"
            -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$folder/lists"
            -o "Dir::Cache=$folder/cache" -o APT::Sandbox::User=root)
        "${apt[@]}" update || skip "$suite cannot be read"
        (cd "$folder/packages" && "${apt[@]}" download openssl libssl3t64 libc6 zlib1g libzstd1) ||
            skip "its packages cannot be had"
        for package in "$folder"/packages/*.deb; do dpkg -x "$package" "$folder/root"; done
        # With its own loader and libraries: those of this machine are older.
        libraries=$(dirname "$(find "$folder/root" -name 'libssl.so.3' | head -n 1)")
        loader=$(find "$libraries" -name 'ld-linux-*.so.*' | head -n 1)
        printf '#!/bin/sh\nOPENSSL_CONF=/dev/null exec %q --library-path %q %q "$@"\n' \
            "$loader" "$libraries" "$folder/root/usr/bin/openssl" >"$folder/openssl"
        chmod +x "$folder/openssl"
    fi
    openssl=$folder/openssl
    has_ml_kem "$openssl" || skip "that of $suite does not run"
fi
"$openssl" version
OPENSSL_WITH_ML_KEM=$openssl cargo test --locked --test relay -- --ignored openssl_with_ml_kem
