//! Sets the commit and the target that `--version` prints. Leaves the unwind tables out of a static
//! program.

use std::env::var;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

/// The linker script that discards the sections of the unwind tables.
const TABLES: &str = "packaging/no-unwind-tables.ld";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    leave_out_unwind_tables();
    let commit = working_copy().or_else(packaged).unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=COMMIT={commit}");
    println!("cargo:rustc-env=TARGET={}", var("TARGET").unwrap_or_default());
    // Tests that need root are ignored unless root builds them. The program does not depend on it.
    println!("cargo:rustc-check-cfg=cfg(root)");
    for name in ["USER", "LOGNAME", "HOME", "SUDO_USER"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let is_root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    if is_root && var("PROFILE").is_ok_and(|profile| profile == "debug") {
        println!("cargo:rustc-cfg=root");
    }
}

/// Leaves the unwind tables out of a static release build. In a release build a panic aborts, so no
/// code reads the tables. Only the static build is known to link without them.
fn leave_out_unwind_tables() {
    println!("cargo:rerun-if-changed={TABLES}");
    let is = |name: &str, value: &str| var(name).is_ok_and(|has| has == value);
    if is("CARGO_CFG_TARGET_ENV", "musl") && is("PROFILE", "release") {
        let folder = var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rustc-link-arg-bins=-Wl,--no-eh-frame-hdr,-T,{folder}/{TABLES}");
    }
}

/// The commit of the working copy; `None` if this folder is not the root of one. If another
/// repository contained the sources as a subfolder, git would report the commit of that one.
fn working_copy() -> Option<String> {
    if !Path::new(".git").exists() {
        return None;
    }
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    // One of these files changes whenever HEAD moves. Cargo treats a missing file as changed, so
    // only files that exist are named.
    for name in ["HEAD", "logs/HEAD"].into_iter().chain(branch.as_deref()) {
        let path = git(&["rev-parse", "--git-path", name])?;
        if Path::new(&path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "HEAD"]).as_deref().and_then(short)
}

/// The commit that cargo recorded in the package; `None` outside a package.
fn packaged() -> Option<String> {
    let info = fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let (_, commit) = info.split_once("\"sha1\": \"")?;
    short(commit)
}

/// The first 12 digits. The length of git's own short form depends on the other objects of the
/// clone.
fn short(commit: &str) -> Option<String> {
    commit.get(..12).map(str::to_owned)
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
