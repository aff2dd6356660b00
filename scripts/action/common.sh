# shellcheck shell=bash disable=SC2034
# Sourced by the other scripts of this folder, which are the steps of action.yml.

set -euo pipefail
set +x
NAME=codex-responses-api-proxy
# A job with `id-token: write` has it in the environment of each step. No program of ours gets it from
# there.
request_token=${ACTIONS_ID_TOKEN_REQUEST_TOKEN-}
unset ACTIONS_ID_TOKEN_REQUEST_TOKEN
STATE=$RUNNER_TEMP/$NAME

fail() { echo "::error::$NAME: $*"; exit 1; }

# as_root COMMAND…: runs it as root; without root, by sudo that asks for no password.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo -n "$@"
    fi
}

# as_starter COMMAND…: runs it as root if the relay will become another user.
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

# number NAME FILE: prints a member of the one-line JSON object in the file.
number() { sed -n "s/^{.*\"$1\":\([0-9]\{1,10\}\)[,}].*/\1/p" "$2"; }
