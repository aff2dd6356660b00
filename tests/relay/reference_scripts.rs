//! Re-creates published scripts for the reference implementation. Each script starts this program
//! as its callers do, sends requests, and stops the program.

use std::process::Command;

use super::lifecycle::Folder;
use super::support::port::free_port;
use super::support::relay::{binary, emulated};
use super::support::{Upstream, needs_root, ok, skipped};

/// Runs a script of bash in a folder of its own; returns what it prints. The program is on its
/// PATH, the upstream's URL in `$UPSTREAM`, a port to listen on in `$FREE_PORT`. What it starts and
/// leaves behind, it has to end itself.
fn script(name: &str, text: &str) -> Option<String> {
    let have = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
    if emulated() || !["bash", "curl", "jq"].into_iter().all(have) {
        skipped("bash, curl or jq is not installed, or the program runs under an emulator");
        return None;
    }
    let upstream = Upstream::plain(|peer| {
        while peer.request().is_some() {
            peer.write(ok("fine"));
        }
    });
    let folder = Folder::new(name);
    let program = std::fs::canonicalize(binary()).unwrap();
    let path = format!("{}:{}", folder.0.display(), std::env::var("PATH").unwrap());
    std::os::unix::fs::symlink(program, folder.file("codex-responses-api-proxy")).unwrap();
    let output = Command::new("timeout")
        .args(["60", "bash", "-euo", "pipefail", "-c", text])
        .env("PATH", path)
        .env("UPSTREAM", upstream.url())
        .env("FREE_PORT", free_port().to_string())
        .current_dir(&folder.0)
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {err}", output.status);
    Some(String::from_utf8(output.stdout).unwrap())
}

const POST: &str = "post() { curl -s -m 20 -o /dev/null -w '%{http_code}\\n' http://127.0.0.1:$1/v1/responses -d '{}'; };";

fn prints(name: &str, text: &str, want: &str) {
    if let Some(got) = script(name, &format!("{POST} {text}")) {
        assert_eq!(got, want);
    }
}

#[test]
fn a_dummy_key_on_a_pipe_that_stays_open_and_a_file_within_five_seconds() {
    prints(
        "core",
        "exec 4> >(exec codex-responses-api-proxy --server-info info --upstream-url $UPSTREAM 2> err)
         printf 'dummy\\n' >&4
         for n in $(seq 50); do [ -s info ] && break; sleep 0.1; done
         pid=$(jq -e .pid info); post $(jq -e .port info)
         kill $pid
         while [ -s info ] || kill -0 $pid 2> /dev/null; do sleep 0.1; done
         stat -c %s info",
        "200\n0\n",
    );
}

#[test]
fn a_stop_script_that_checks_everything_and_waits_for_three_seconds() {
    prints(
        "stop",
        "codex-responses-api-proxy --http-shutdown --server-info=info --upstream-url=$UPSTREAM \\
             <<< key > log 2>&1 & child=$!
         while ! [ -s info ]; do kill -0 $child; sleep 0.1; done
         [ -f info ] && ! [ -L info ] && [ $(stat -c %s info) -le 4096 ]
         pid=$(jq -e .pid info) port=$(jq -e .port info); post $port
         basename \"$(tr '\\0' '\\n' < /proc/$pid/cmdline | head -1)\"
         curl -s -m 2 -o /dev/null -w '%{http_code}\\n' http://127.0.0.1:$port/shutdown
         end=$((SECONDS + 3)); wait $child; [ $SECONDS -le $end ] && echo gone",
        "200\ncodex-responses-api-proxy\n200\ngone\n",
    );
}

#[test]
fn the_key_on_the_second_line_of_a_descriptor_and_a_port_of_the_callers() {
    prints(
        "third",
        "printf 'first\\nkey\\n' > key; exec 3< key; read -r line <&3
         port=$FREE_PORT
         (umask 077; ulimit -l 64 2> /dev/null || :
             exec codex-responses-api-proxy --port $port --upstream-url $UPSTREAM --server-info info \\
                 <&3 2> err) & child=$!
         exec 3<&-
         while ! [ -s info ]; do kill -0 $child; sleep 0.1; done
         for path in /v1/models '/v1/responses?debug=1' /shutdown; do
             curl -s -m 20 -X POST -o /dev/null -w '%{http_code}\\n' \"http://127.0.0.1:$port$path\" -d '{}'
         done
         post $port; kill $child; wait $child; echo $?",
        "403\n403\n403\n200\n0\n",
    );
}

#[test]
fn a_loop_that_waits_for_a_number_in_the_file_and_a_plain_kill() {
    prints(
        "numbers",
        "printf %s key | codex-responses-api-proxy --server-info info --upstream-url $UPSTREAM \\
             > log 2>&1 & child=$!
         for n in $(seq 100); do jq -e '.port|numbers' info > port 2> /dev/null && break; sleep 0.1; done
         post $(cat port); kill $child; wait $child; echo $?",
        "200\n0\n",
    );
}

#[test]
fn in_the_background_of_a_shell_interrupts_are_ignored_and_sigterm_ends_it() {
    prints(
        "background",
        "sh -c 'echo key | codex-responses-api-proxy --server-info info --upstream-url $UPSTREAM \\
             > log 2>&1 &'
         while ! [ -s info ]; do sleep 0.1; done
         pid=$(jq .pid info); kill -INT $pid; kill -HUP $pid; post $(jq .port info)
         kill $pid; while [ -s info ]; do sleep 0.1; done; grep -o 'ending: SIGTERM' log",
        "200\nending: SIGTERM\n",
    );
}

#[test]
fn under_nohup_a_hangup_is_ignored() {
    prints(
        "nohup",
        "echo key > key
         nohup codex-responses-api-proxy --server-info info --upstream-url $UPSTREAM < key > log 2>&1 &
         child=$!; while ! [ -s info ]; do kill -0 $child; sleep 0.1; done
         kill -HUP $child; post $(jq .port info); kill $child; wait $child; echo $?",
        "200\n0\n",
    );
}

#[test]
fn without_an_environment_and_without_standard_streams() {
    prints(
        "bare",
        "program=$(command -v codex-responses-api-proxy)
         for streams in '' '>&-' '2>&-' '>&- 2>&-'; do
             eval \"echo key | env -i $program --detach --server-info info --upstream-url $UPSTREAM\" \\
                 \"$streams\" 2>> err
             post $(jq .port info); kill $(jq .pid info); while [ -s info ]; do sleep 0.1; done
         done
         $program --upstream-url $UPSTREAM <&- 2>> err || echo $?",
        "200\n200\n200\n200\n1\n",
    );
}

#[test]
fn detach_prints_the_pid() {
    prints(
        "pid",
        "echo key | codex-responses-api-proxy --detach --server-info info --upstream-url $UPSTREAM 2> err
         pid=$(sed -n 's/^relay: .* pid \\([0-9]*\\),.*/\\1/p' err); [ $pid = $(jq .pid info) ]
         kill $pid; while [ -s info ]; do sleep 0.1; done; echo ended",
        "ended\n",
    );
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn on_a_root_that_is_read_only_it_serves_and_says_where_no_file_can_be_made() {
    needs_root();
    prints(
        "read-only",
        "mkdir root; export UPSTREAM; program=$(readlink -f codex-responses-api-proxy)
         unshare -m bash -euc '
             mount --bind / root; mount -o remount,ro,bind root
             mount -t tmpfs none root/run; mkdir root/run/relay
             echo key | chroot root '$program' --upstream-url $UPSTREAM --server-info /var/x/info \\
                 2> err && exit 1 || :
             echo key | chroot root '$program' --upstream-url $UPSTREAM --server-info /run/relay/info \\
                 2> err2 & child=$!
             while ! [ -s root/run/relay/info ]; do kill -0 $child; sleep 0.1; done
             curl -s -m 20 http://127.0.0.1:$(jq .port root/run/relay/info)/v1/responses -d x; echo
             kill $child; wait $child'
         grep -o 'Read-only file system.*' err",
        "fine\nRead-only file system (os error 30); name a file in a folder that the relay's user may write to\n",
    );
}

#[test]
fn a_port_that_another_program_holds_open_for_it() {
    if Command::new("systemd-socket-activate").arg("--version").output().is_err() {
        skipped("systemd-socket-activate is not installed");
        return;
    }
    prints(
        "activate",
        "port=$FREE_PORT
         echo key > key
         systemd-socket-activate -l 127.0.0.1:$port $(command -v codex-responses-api-proxy) \\
             --upstream-url $UPSTREAM < key 2> err & child=$!
         until grep -q -i listening err; do kill -0 $child; sleep 0.1; done
         post $port; kill $child; wait $child; echo $?",
        "200\n0\n",
    );
}

/// The lines of the first block of documentation that holds this text.
fn block(holding: &str) -> Vec<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/docs");
    let pages = std::fs::read_dir(folder).unwrap().map(|page| page.unwrap().path());
    let pages = pages.filter(|page| page.extension().is_some_and(|end| end == "md"));
    let pages = pages.map(|page| std::fs::read_to_string(page).unwrap());
    let blocks = pages.flat_map(|page| {
        page.split("```").skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()
    });
    let block = blocks.into_iter().find(|block| block.contains(holding)).expect("a block of code");
    block.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn the_command_and_the_probe_of_the_pod_work_in_a_container_like_it() {
    needs_root();
    let pod = block("kind: Pod");
    let mut lines = pod.iter().skip_while(|line| *line != "command:").skip(1);
    let command: Vec<&str> =
        lines.by_ref().map_while(|line| line.strip_prefix("- ")).skip(1).collect();
    let probe = lines.find_map(|line| line.strip_prefix("command: [/codex-responses-api-proxy,"));
    let probe = probe.unwrap().trim_end_matches(']').replace([',', '"'], "");
    let has = |text: &str| pod.iter().any(|line| line == text);
    assert!(has("runAsUser: 65534") && has("fsGroup: 65534") && has("defaultMode: 0440"));
    // What the kubelet makes of the rest: the Secret as links that lead to a file of root's and of
    // the pod's group, a root that is read-only, no capabilities, a network of its own.
    prints(
        "pod",
        &format!(
            "program=$(readlink -f codex-responses-api-proxy); install -m 711 \"$program\" relay
             chmod 755 .; export folder=$PWD
             unshare -mnp --fork --mount-proc bash -euc '
                 ip link set lo up; mount -t tmpfs none /run; mkdir -p /run/key/..data
                 echo key > /run/key/..data/OPENAI_API_KEY
                 chown -R 0:65534 /run/key; chmod 440 /run/key/..data/OPENAI_API_KEY
                 ln -s ..data/OPENAI_API_KEY /run/key/OPENAI_API_KEY
                 cp \"$folder/relay\" /run/relay; mount -o remount,ro,bind /
                 as_pod=\"setpriv --reuid 65534 --regid 65534 --clear-groups --bounding-set=-all \
                     --no-new-privs\"
                 $as_pod /run/relay {} 2> /run/err & child=$!
                 for n in $(seq 100); do $as_pod /run/relay {probe} > /dev/null 2>&1 && break; sleep 0.1; done
                 $as_pod /run/relay {probe}
                 grep -o \"key-file .* can be read by its group\" /run/err
                 setpriv --reuid 1000 curl -s -o /dev/null -w \"%{{http_code}}\\n\" -d x \
                     http://127.0.0.1:8080/v1/chat/completions
                 kill $child; wait $child'",
            command.join(" ")
        ),
        "a relay responds on 127.0.0.1:8080\nkey-file /run/key/OPENAI_API_KEY can be read by its group\n403\n",
    );
}
