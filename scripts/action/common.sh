# shellcheck shell=bash disable=SC2034
# Sourced by the scripts beside it, the steps of action.yml.

set -euo pipefail
set +x
NAME=codex-responses-api-proxy
STATE=$RUNNER_TEMP/$NAME

fail() { echo "::error::$NAME: $*"; exit 1; }

# as_root COMMAND…: with sudo that asks nothing, where this is not root.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo -n "$@"
    fi
}

# as_starter COMMAND…: as root if the relay is to become another user.
as_starter() {
    if [ -n "$RELAY_USER" ]; then
        as_root "$@"
    else
        "$@"
    fi
}

# The server-info files that a relay of this job may have, one a line.
server_infos() {
    local home=${RELAY_CODEX_HOME:-$HOME/.codex}
    printf '%s\n' "$STATE/server-info.json" "$home/$GITHUB_RUN_ID.json"
}

# number NAME FILE: a member of the one-line JSON object in the file.
number() { sed -n "s/^{.*\"$1\":\([0-9]\{1,10\}\)[,}].*/\1/p" "$2"; }
