#!/usr/bin/env bash
# Gets the program, checks it, and makes a copy that the runner's user cannot replace. This step has
# no key.

# shellcheck source=scripts/action/common.sh
. "${0%/*}/common.sh"

[ "$(uname -s)" = Linux ] || fail "the program runs on Linux alone"
case $(uname -m) in
    x86_64) triple=x86_64-unknown-linux-musl ;;
    aarch64 | arm64) triple=aarch64-unknown-linux-musl ;;
    *) fail "there is no program for $(uname -m)" ;;
esac
[ -z "$RELAY_SHA256" ] || [[ $RELAY_SHA256 =~ ^[0-9a-f]{64}$ ]] ||
    fail "sha256 takes 64 digits of 0-9 a-f"
mkdir -p "$STATE"
chmod 700 "$STATE"

# In /tmp, whose sticky bit keeps others from renaming the folder. The next step removes it.
folder=$(as_starter mktemp -d)
trap '[ $? -eq 0 ] || as_starter rm -rf -- "$folder"' EXIT

# check FILE SUM: compares the checksum of a copy that only its owner can change.
check() { echo "$2  $1" | as_starter sha256sum --check --status -; }

if [ -n "$RELAY_PATH" ]; then
    [ -z "$RELAY_VERSION" ] || fail "give version or path, not both"
    [ -n "$RELAY_SHA256" ] || fail "path wants sha256: \`sha256sum $RELAY_PATH\` prints it"
    as_starter install -m 700 "$RELAY_PATH" "$folder/$NAME"
    check "$folder/$NAME" "$RELAY_SHA256" || fail "$RELAY_PATH is not the file with this sha256"
else
    version=${RELAY_VERSION:-$ACTION_REF}
    version=${version#v}
    [[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.]+)?$ ]] ||
        fail "version is missing: give a release such as 0.1.0, or path"
    [ -n "$ACTION_REPOSITORY" ] || fail "version wants the action to be used by OWNER/NAME@REF; else give path"
    file=$NAME-$version-$triple.tar.gz
    url=$GITHUB_SERVER_URL/$ACTION_REPOSITORY/releases/download/v$version
    fetch() { curl --fail --silent --show-error --location --proto '=https' --retry 3 --max-time 120 \
        --output "$STATE/$1" "$url/$1" || fail "$url/$1 cannot be had"; }
    fetch "$file"
    sum=$RELAY_SHA256
    if [ -z "$sum" ]; then
        fetch SHA256SUMS
        sum=$(awk -v file="$file" '$2 == file || $2 == "*" file { print $1 }' "$STATE/SHA256SUMS")
        [[ $sum =~ ^[0-9a-f]{64}$ ]] || fail "SHA256SUMS of $version does not name $file"
    fi
    as_starter install -m 600 "$STATE/$file" "$folder/$file"
    check "$folder/$file" "$sum" || fail "$file is not the file with this sha256"
    as_starter tar --extract --gzip --file "$folder/$file" --directory "$folder" --strip-components 1 \
        --no-same-owner --no-same-permissions "${file%.tar.gz}/$NAME"
    as_starter chmod 700 "$folder/$NAME"
fi
as_starter "$folder/$NAME" --version
echo "program=$folder/$NAME" >>"$GITHUB_OUTPUT"
