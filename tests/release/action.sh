#!/usr/bin/env bash
# The steps of action.yml, run outside GitHub in front of a stub upstream: start, use, take over,
# stop, and what they refuse. As root the relay becomes nobody, as it does with a runner's sudo.

# shellcheck source=tests/clients/common.sh
. "$(dirname "$0")/../clients/common.sh"
python3 -c 'import yaml' 2>/dev/null || { echo "SKIPPED: python3 has no yaml (python3-yaml)"; exit 0; }
start --grace 1
program=$work/program
install -m 755 target/debug/codex-responses-api-proxy "$program"
sum=$(sha256sum "$program" | cut -d ' ' -f 1)
name=codex-responses-api-proxy

chmod 755 "$work"
mkdir -p "$work/temp" "$work/home" "$work/bin" "$work/tmp" "$work/action/scripts"
# Where every user can read it.
cp action.yml "$work/action/"
cp -r scripts/action "$work/action/scripts/"
# A release that a server has, and the only curl command that is asked for it.
processor=$(uname -m)
version=9.8.7
top=$name-$version-$processor-unknown-linux-musl
mkdir -p "$work/release/$top"
install -m 711 "$program" "$work/release/$top/$name"
tar czf "$work/release/$top.tar.gz" -C "$work/release" "$top"
(cd "$work/release" && sha256sum -- *.tar.gz >SHA256SUMS)
cat >"$work/bin/curl" <<END
#!/usr/bin/env bash
while [ \$# -gt 1 ]; do [ "\$1" != --output ] || to=\$2; shift; done
case \$1 in
    https://github.example/owner/name/releases/download/v$version/*) exec cp "$work/release/\${1##*/}" "\$to" ;;
    *) exit 22 ;;
esac
END
chmod 755 "$work/bin/curl"

# Programs that a step may run, which write down their environment and arguments.
touch "$work/environments"
chmod 666 "$work/environments"
for tool in cat chmod dirname id install ln mkdir mktemp rm sed sha256sum tar; do
    printf '#!/bin/bash\n{ printenv; echo "$@"; } >>"%s"\nexec %s "$@"\n' "$work/environments" \
        "$(command -v "$tool")" >"$work/bin/$tool"
    chmod 755 "$work/bin/$tool"
done

# action FILE NAME=VALUE…: runs it, its outputs in FILE.out and what it says in FILE.log.
action() {
    local file=$work/$1
    shift
    # shellcheck disable=SC2086
    env -i ${github-} PATH="$work/bin:$PATH" HOME="$work/home" TMPDIR="$work/tmp" RUNNER_TEMP="$work/temp" \
        GITHUB_RUN_ID=4711 GITHUB_RUN_ATTEMPT=2 GITHUB_SERVER_URL=https://github.example \
        ACTION_REPOSITORY=owner/name ACTION_REF="${ref-}" \
        STEP_PREFIX="${as-}" python3 tests/release/composite.py "$work/action" "$@" >"$file.out" 2>"$file.log"
}
output() { sed -n "s|^$2=||p" "$work/$1.out"; }
flags=$(printf -- '--ca-file=%s/ca.pem\n\n--access-log\n' "$work")
# GitHub's token endpoint and OpenAI's: the access token is the key that the stub upstream knows.
request_token="eyRequest.$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')"
REQUEST_TOKEN=$request_token KEY=$key python3 tests/release/tokens.py >"$work/tokens.log" &
pids+=($!)
wait_for "$work/tokens.log" '^[0-9]'
tokens=$(head -1 "$work/tokens.log")
oidc=(oidc-audience=https://api.openai.com/v1 identity-provider-id=idp_1 service-account-id=sa_2
    "upstream-url=$upstream" "flags=$flags
--oidc-token-url=http://127.0.0.1:$tokens/oauth/token")
usual=("api-key=$key" "upstream-url=$upstream" "flags=$flags")

# works FILE: the relay of these outputs relays; sets $info and $pid.
works() {
    info=$(output "$1" server-info)
    pid=$(jq .pid "$info")
    pids+=("$pid")
    [ "$(output "$1" base-url)" = "http://127.0.0.1:$(output "$1" port)/v1" ] || fail "$1: base-url"
    # By default the relay is for the runner's user alone. The words of $as are several.
    # shellcheck disable=SC2086
    ${as-} curl --silent --fail --noproxy '*' -H 'Content-Type: application/json' -d '{"stream":true}' \
        "$(output "$1" base-url)/responses" | grep -q 'Hello' || fail "$1: no response"
    ! cat "/proc/$pid/environ" "/proc/$pid/cmdline" | grep -qaF -e "$key" ||
        fail "$1: the key is in its environment or arguments"
    grep -q '"event":"start"' "$work/$1.log" || fail "$1: the start line is not shown"
    [ -z "$(find "$work/tmp" -mindepth 1)" ] || fail "$1: the program is left behind"
}

# stopped FILE: a step that stops it does.
stopped() {
    action "$1" mode=stop || { cat "$work/$1.log" >&2; fail "$1"; }
    if [ -e "/proc/$pid" ] || [ -s "$info" ]; then fail "$1: the relay is still there"; fi
}

users=
if [ "$(id -u)" -eq 0 ]; then users='root runner'; else users=self; fi
for user in $users; do
    as='' to=(user=)
    case $user in
        # With sudo, or as root in a container.
        root) to=() ;;
        # Without sudo: the relay stays the runner's user.
        runner)
            as='setpriv --reuid 21001 --regid 21001 --clear-groups'
            chown -R 21001:21001 "$work/temp" "$work/home" "$work/tmp"
            ;;
    esac
    action "start-$user" "${usual[@]}" "${to[@]}" "path=$program" "sha256=$sum" ||
        { cat "$work/start-$user.log" >&2; fail "start as $user"; }
    works "start-$user"
    case $user in
        root) [ "$(stat -c %U "/proc/$pid")" = nobody ] || fail "the relay is not nobody's" ;;
        runner) [ "$(stat -c %u "/proc/$pid")" = 21001 ] || fail "the relay is another user's" ;;
    esac
    stopped "stop-$user"
    action "stop-again-$user" mode=stop || fail "a relay that has ended cannot be stopped"

    # By release, with its own sums and with a sum of the caller's.
    action "release-$user" "${usual[@]}" "${to[@]}" "version=$version" || fail "by release"
    works "release-$user"
    stopped "release-stop-$user"
    ref=v$version action "ref-$user" "${usual[@]}" "${to[@]}" \
        "sha256=$(cut -d ' ' -f 1 "$work/release/SHA256SUMS")" || fail "by the action's own ref"
    works "ref-$user"
    stopped "ref-stop-$user"

    # codex-action's check of a proxy that runs already: both names, a process that lives, an open
    # port.
    action "takeover-$user" "${usual[@]}" "${to[@]}" mode=takeover "path=$program" "sha256=$sum" ||
        { cat "$work/takeover-$user.log" >&2; fail "takeover"; }
    works "takeover-$user"
    [ "$info" = "$work/home/.codex/4711.json" ] || fail "takeover: $info"
    cmp "$info" "$work/home/.codex/4711-2.json" || fail "takeover: the other name"
    [ "$(tr '\0' '\n' <"/proc/$pid/cmdline" | head -1 | xargs basename)" = "$name" ] || fail "takeover: its name"
    stopped "takeover-stop-$user"

    # Without a key: GitHub's token and OpenAI's come from a stub.
    github="ACTIONS_ID_TOKEN_REQUEST_URL=http://127.0.0.1:$tokens/github?a=b
        ACTIONS_ID_TOKEN_REQUEST_TOKEN=$request_token"
    action "oidc-$user" "${oidc[@]}" "${to[@]}" "path=$program" "sha256=$sum" ||
        { cat "$work/oidc-$user.log" >&2; fail "oidc"; }
    works "oidc-$user"
    for process in "$pid" $(pgrep --parent "$pid"); do
        ! cat "/proc/$process/environ" "/proc/$process/cmdline" | grep -qaF -e "$request_token" ||
            fail "the request token is in the environment or arguments of $process"
    done
    github=
    stopped "oidc-stop-$user"
done

# refuses WHY NAME=VALUE…: no relay starts, the reason is an annotation.
n=0
refuses() {
    local why=$1
    shift
    n=$((n + 1))
    : >"$work/temp/$name/relay.log"
    if action "refused-$n" "$@"; then
        pids+=("$(jq .pid "$(output "refused-$n" server-info)")")
        fail "not refused: $why"
    fi
    grep -q "^::error::.*$why" "$work/refused-$n.log" || { cat "$work/refused-$n.log" >&2; fail "another reason: $why"; }
    [ -z "$(find "$work/tmp" -mindepth 1)" ] || fail "the program is left behind: $why"
    [ ! -s "$work/temp/$name/server-info.json" ] || fail "a relay runs: $why"
}
as=''
[ "$(id -u)" -eq 0 ] || usual+=(user=)
wrong=$(printf %064d 0)
refuses "api-key is empty" "${usual[@]}" api-key= "path=$program" "sha256=$sum"
[ "$(id -u)" -eq 0 ] || oidc+=(user=)
refuses "needs the permission id-token: write" "${oidc[@]}" "path=$program" "sha256=$sum"
refuses "not both" "${oidc[@]}" "api-key=$key" "path=$program" "sha256=$sum"
github="ACTIONS_ID_TOKEN_REQUEST_URL=http://127.0.0.1:$tokens/github ACTIONS_ID_TOKEN_REQUEST_TOKEN=$request_token"
refuses "exit code 2" "${oidc[@]}" service-account-id= "path=$program" "sha256=$sum"
grep -q "all needed; add --service-account-id" "$work/refused-$n.log" || fail "the missing input is not named"
github=
refuses "path wants sha256" "${usual[@]}" "path=$program"
refuses "is not the file with this sha256" "${usual[@]}" "path=$program" "sha256=$wrong"
refuses "is not the file with this sha256" "${usual[@]}" "version=$version" "sha256=$wrong"
refuses "sha256 takes 64 digits" "${usual[@]}" "path=$program" sha256=abc
refuses "give version or path" "${usual[@]}" "path=$program" "sha256=$sum" version=1.2.3
refuses "version is missing" "${usual[@]}"
refuses "version is missing" "${usual[@]}" version=../../1
refuses "cannot be had" "${usual[@]}" version=1.2.3
refuses "mode is start, takeover or stop" "${usual[@]}" mode=begin "path=$program" "sha256=$sum"
refuses "exit code 2" "${usual[@]}" flags=--nonsense "path=$program" "sha256=$sum"
grep -q "invalid option '--nonsense'" "$work/refused-$n.log" || fail "the relay's own reason is not shown"
# shellcheck disable=SC2016
refuses "exit code 2" "${usual[@]}" 'flags=$(touch /tmp/x)' "path=$program" "sha256=$sum"
# Another first digit, whichever it is.
sed -i 's/^[1-9a-f]/0/; t; s/^0/1/' "$work/release/SHA256SUMS"
refuses "is not the file with this sha256" "${usual[@]}" "version=$version"
[ -s "$work/environments" ] || fail "no program was watched"
! grep -qF -e "$request_token" "$work/environments" ||
    fail "the request token is in a program's environment or arguments"
! grep -qF -e "$key" "$work/environments" || fail "the key is in a program's environment or arguments"
check_key
echo "action: ok"
