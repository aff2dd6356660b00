#!/usr/bin/env node
// Runs the program of this machine's architecture in place of itself, as far as Node.js can: stdin,
// stdout and stderr are the program's own, signals are passed on, and the end is the program's end.
// The key goes from stdin to the program; this process reads nothing.

import { spawn } from "node:child_process";
import { constants } from "node:os";
import { fileURLToPath } from "node:url";

const NAME = "codex-responses-api-proxy";
const TRIPLES = { x64: "x86_64-unknown-linux-musl", arm64: "aarch64-unknown-linux-musl" };
const FORWARDED = ["SIGINT", "SIGTERM", "SIGHUP"];

function fail(reason) {
  console.error(`${NAME}: error: ${reason}`);
  process.exit(1);
}

const isLinux = process.platform === "linux" || process.platform === "android";
const triple = isLinux ? TRIPLES[process.arch] : undefined;
if (triple === undefined) {
  fail(`there is no program for ${process.platform} on ${process.arch}`);
}
const program = fileURLToPath(new URL(`../vendor/${triple}/${NAME}`, import.meta.url));

// Before the program starts, so that no signal ends this process alone.
let child;
for (const signal of FORWARDED) {
  process.on(signal, () => child?.kill(signal));
}

child = spawn(program, process.argv.slice(2), { stdio: "inherit" });

child.on("error", (error) => {
  fail(`cannot run ${program} (${error.code}); install the package again`);
});

child.on("exit", (code, signal) => {
  if (signal === null) {
    process.exit(code);
  }
  // The caller sees the same signal. A handler, or a caller that ignores the signal, is no obstacle.
  process.removeAllListeners(signal);
  process.kill(process.pid, signal);
  setTimeout(() => process.exit(128 + constants.signals[signal]), 100);
});
