#!/usr/bin/env bash
# Starts the relay in the background. The key, or GitHub's request token, goes from the environment of
# this step to the relay's stdin; it is in no argument, no file and no other program's environment.

# shellcheck source=scripts/action/common.sh
. "${0%/*}/common.sh"

# A running program no longer needs its file.
trap 'as_starter rm -rf -- "$(dirname "$RELAY_PROGRAM")"' EXIT
key=$RELAY_API_KEY
unset RELAY_API_KEY
oidc=()
if [ -n "$RELAY_OIDC_AUDIENCE$RELAY_IDENTITY_PROVIDER_ID$RELAY_SERVICE_ACCOUNT_ID" ]; then
    [ -z "$key" ] || fail "give api-key or the three inputs of OIDC, not both"
    [ -n "$request_token" ] || fail "GitHub gives no token: the job needs the permission id-token: write"
    key=$request_token
    oidc=(--github-oidc "--github-oidc-request-url=$ACTIONS_ID_TOKEN_REQUEST_URL")
    [ -z "$RELAY_OIDC_AUDIENCE" ] || oidc+=("--oidc-audience=$RELAY_OIDC_AUDIENCE")
    [ -z "$RELAY_IDENTITY_PROVIDER_ID" ] || oidc+=("--identity-provider-id=$RELAY_IDENTITY_PROVIDER_ID")
    [ -z "$RELAY_SERVICE_ACCOUNT_ID" ] || oidc+=("--service-account-id=$RELAY_SERVICE_ACCOUNT_ID")
fi
unset request_token
[ -n "$key" ] || fail "api-key is empty: a secret of that name is not set, or not given to this event"

log=$STATE/relay.log
: >>"$log"
case $RELAY_MODE in
    start) info=$STATE/server-info.json ;;
    takeover)
        home=${RELAY_CODEX_HOME:-$HOME/.codex}
        mkdir -p "$home"
        info=$home/$GITHUB_RUN_ID.json
        # Newer versions of the action look for this name.
        ln -sf "$GITHUB_RUN_ID.json" "$home/$GITHUB_RUN_ID-$GITHUB_RUN_ATTEMPT.json"
        ;;
    *) fail "mode is start, takeover or stop" ;;
esac
# This user creates the file: as root, the relay creates no file in a folder of another user.
: >"$info"

flags=("${oidc[@]}" --detach --port "$RELAY_PORT" --server-info "$info")
[ -z "$RELAY_USER" ] || flags+=(--user "$RELAY_USER")
[ -z "$RELAY_UPSTREAM_URL" ] || flags+=(--upstream-url "$RELAY_UPSTREAM_URL")
read -r -a users <<<"${RELAY_ALLOW_UID:-$(id -u)}"
for user in "${users[@]}"; do
    flags+=(--allow-uid "$user")
done
while read -r flag; do
    [ -z "$flag" ] || flags+=("$flag")
done <<<"$RELAY_FLAGS"

# printf is a builtin of the shell, so the key is in no argument of a process.
printf '%s\n' "$key" | as_starter "$RELAY_PROGRAM" "${flags[@]}" 2>>"$log" || {
    code=$?
    cat "$log"
    fail "the relay has not started, exit code $code"
}
unset key
cat "$log"

port=$(number port "$info")
as_starter "$RELAY_PROGRAM" --probe "$port"
{
    echo "port=$port"
    echo "base-url=http://127.0.0.1:$port/v1"
    echo "server-info=$info"
    echo "log=$log"
} >>"$GITHUB_OUTPUT"
