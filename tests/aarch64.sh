#!/usr/bin/env bash
# The program for aarch64 on a kernel of its own, Debian's, in qemu-system: with seccomp, Landlock and
# memfd_secret(2) in force, so that a system call that its lists lack kills it here. Needs
# qemu-system-aarch64, aarch64-linux-gnu-gcc, cpio and Debian's packages; takes some minutes.

set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-musl
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }

# The kernel and a shell, taken from packages of another architecture that are not installed.
apt=(apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root
    -o "Dir::State=$work/state" -o "Dir::State::status=$work/state/status" -o "Dir::Cache=$work/cache")
mkdir -p "$work"/{state/lists/partial,cache/archives/partial,packages,root/{bin,dev,etc,proc,sys,tmp}}
touch "$work/state/status"
"${apt[@]}" update
kernel=$(apt-cache "${apt[@]:2}" depends linux-image-cloud-arm64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p')
(cd "$work/packages" && "${apt[@]}" download "$kernel" busybox-static)
for package in "$work"/packages/*.deb; do dpkg-deb --extract "$package" "$work/packages"; done

cargo build --locked --release --target $target
# The tests need no whole-program optimisation.
tests=$(CARGO_PROFILE_RELEASE_LTO=false CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    cargo test --locked --no-run --release --target $target --target-dir target/aarch64 --test relay 2>&1 |
    sed -n 's/.*Executable.*(\(.*\))$/\1/p')
[ -n "$tests" ] || fail "the tests were not built"

root=$work/root
cp "$work/packages/bin/busybox" "$root/bin"
cp target/$target/release/codex-responses-api-proxy "$root/bin/relay"
aarch64-linux-gnu-strip -o "$root/bin/tests" "$tests"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
echo 'nameserver 127.0.0.1' >"$root/etc/resolv.conf"
printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin RELAY_BINARY=/bin/relay TMPDIR=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir /dev/pts
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
ln -s /proc/self/fd /dev/fd
ip link set lo up
ulimit -n 8192
uname -srm
(echo sk-of-no-use_0123456789 | relay & sleep 5; killall relay) 2>&1
tests --test-threads 2 sandbox:: forwarding:: access:: lifecycle:: log:: routing:: preconnect:: key:: \
    dialing:: upstream_failures::a_ truncation::a_ reflection::a_ 2>&1
echo "ended with $?"
# Those that keep 64 connections busy, each alone: an emulated processor is slow.
tests --test-threads 1 memory:: 2>&1
echo "ended with $?"
poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/initrd"

timeout 900 qemu-system-aarch64 -M virt -cpu max,pauth-impdef=on -smp 2 -m 1024 -nographic -no-reboot -nic none \
    -kernel "$work"/packages/boot/vmlinuz-* -initrd "$work/initrd" \
    -append 'console=ttyAMA0 quiet panic=-1 secretmem.enable=1' </dev/null | tee "$work/log"
grep -q 'protections: key in memfd_secret pages.*; seccomp; Landlock' "$work/log" || fail "not confined"
[ "$(grep -c '^ended with 0' "$work/log")" -eq 2 ] || fail "tests, under a kernel of their own"
echo "aarch64: ok"
