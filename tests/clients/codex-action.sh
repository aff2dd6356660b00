#!/usr/bin/env bash
# The step of docs/operating.md that starts the relay before an unmodified codex-action, run as it is
# written there; then the checks by which the action decides that a proxy runs already, the
# configuration that it writes, and Codex with that configuration. Needs root, as the step does.

. "$(dirname "$0")/common.sh"
[ "$(id -u)" -eq 0 ] || { echo "skipped: the step starts the relay as root"; exit 0; }
npm_install "$codex_cli"
codex=$modules/.bin/codex
start

# The runner: a user of its own with a home that the relay's users can reach.
runner=21001
chmod 755 "$work"
export HOME=$work/home GITHUB_RUN_ID=4711 GITHUB_RUN_ATTEMPT=2 OPENAI_API_KEY=$key
mkdir "$HOME" "$work/bin" "$work/empty"
chown "$runner" "$HOME"
# What a runner has and this machine may not: sudo, and a user's own number.
printf '#!/bin/sh\nexec "$@"\n' >"$work/bin/sudo"
printf '#!/bin/sh\necho %s\n' "$runner" >"$work/bin/id"
# The stub upstream in place of OpenAI.
install -m 711 target/debug/codex-responses-api-proxy "$work/relay"
cat >"$work/bin/codex-responses-api-proxy" <<END
#!/bin/sh
exec "$work/relay" --upstream-url "$upstream" --ca-file "$work/ca.pem" "\$@"
END
chmod 755 "$work/bin"/*

# as_runner COMMAND…
as_runner() { setpriv --reuid "$runner" --regid "$runner" --clear-groups --no-new-privs "$@"; }

awk '/^## GitHub Actions with codex-action/ { inside = 1 }
    inside && /name: Start the relay/ { step = 1 }
    step && /run: \|/ { body = 1; next }
    body && !/^          / { exit }
    body { print substr($0, 11) }' docs/operating.md >"$work/step.sh"
grep -q codex-responses-api-proxy "$work/step.sh" || fail "the step was not found"
# What the runner's user writes is the runner's.
sed -i "s|^printenv|chown -R $runner \"\$HOME\"; &|" "$work/step.sh"
PATH=$work/bin:$PATH bash -e "$work/step.sh" >"$work/step.out" 2>&1 || { cat "$work/step.out" >&2; fail "the step"; }
unset OPENAI_API_KEY
info=$HOME/.codex/$GITHUB_RUN_ID.json
pid=$(jq .pid "$info")
pids+=("$pid")

# Every version: the file is not empty. Newer ones: by its other name, the process lives and the port
# is open within half a second, as the runner sees it.
cat >"$work/checks.mjs" <<'END'
import { readFileSync } from "node:fs";
import { connect } from "node:net";
for (const file of process.argv.slice(2)) {
  const { pid, port } = JSON.parse(readFileSync(file, "utf8"));
  try {
    process.kill(pid, 0);
  } catch (error) {
    if (error.code !== "EPERM") throw error;
  }
  await new Promise((resolve, reject) => {
    const socket = connect({ host: "127.0.0.1", port, timeout: 500 }, () => resolve(socket.destroy()));
    socket.on("error", reject);
    socket.on("timeout", () => reject(new Error("no connection within 500 ms")));
  });
}
END
as_runner test -s "$info" || fail "the action would start a proxy of its own"
as_runner "$(command -v node)" "$work/checks.mjs" "$info" "${info%.json}-$GITHUB_RUN_ATTEMPT.json" ||
    fail "the action would take the relay for dead"
! as_runner kill "$pid" 2>/dev/null || fail "the runner can end the relay"

cat >"$HOME/.codex/config.toml" <<END
model_provider = "codex-action-responses-proxy"

[model_providers.codex-action-responses-proxy]
name = "Codex Action Responses Proxy"
base_url = "http://127.0.0.1:$(jq .port "$info")/v1"
wire_api = "responses"
END
chown -R "$runner" "$HOME" "$work/empty"
(cd "$work/empty" && CODEX_HOME="$HOME/.codex" as_runner timeout 60 "$codex" exec --skip-git-repo-check 'hi' \
    </dev/null) >"$work/codex.out" 2>"$work/codex.err.out" || { cat "$work/codex.err.out" >&2; fail "codex exec"; }
grep -q 'Hello from behind the relay.' "$work/codex.out" || fail "the response was not printed"
check_key

# The end: the file is empty, so the next run of the action starts a relay of its own.
kill "$pid"
timeout 20 bash -c 'while [ -s "$1" ]; do sleep 0.02; done' _ "$info" || fail "the file still names the relay"
echo "codex-action: ok"
