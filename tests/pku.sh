#!/usr/bin/env bash
# The key's pages under protection keys, on a processor that qemu-system emulates and Debian's kernel.
# Needs qemu-system-x86_64, cpio and Debian's packages; skips, and says so, without them. QEMU names
# another program, with its arguments.

set -euo pipefail
cd "$(dirname "$0")/.."
target=x86_64-unknown-linux-musl
qemu=${QEMU:-qemu-system-x86_64}
for program in ${qemu%% *} cpio apt-get dpkg-deb; do
    command -v "$program" >/dev/null || { echo "skipped: pku: no $program"; exit 0; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*" >&2; exit 1; }

mkdir -p "$work"/{packages,root/{bin,dev,proc,sys,tmp}}
kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p')
[ -n "$kernel" ] || { echo "skipped: pku: no kernel of Debian's to be had"; exit 0; }
(cd "$work/packages" && apt-get -qq -o APT::Sandbox::User=root download "$kernel" busybox-static)
for package in "$work"/packages/*.deb; do dpkg-deb --extract "$package" "$work/packages"; done

test=$(cargo test --locked --no-run --target $target --test protection_key 2>&1 |
    sed -n 's/.*Executable.*(\(.*\))$/\1/p')
relay=target/$target/debug/codex-responses-api-proxy
[ -n "$test" ] && [ -x "$relay" ] || fail "the tests were not built"

root=$work/root
cp "$work/packages/bin/busybox" "$root/bin"
strip -o "$root/bin/tests" "$test"
strip -o "$root/bin/relay" "$relay"
cat >"$root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
ip link set lo up
# The upstream takes one connection at a time. It reads the request before it responds: otherwise the
# relay drops that connection, and the next one is refused.
while true; do nc -l -p 9 -e /bin/upstream; done &
(echo sk-of-no-use_0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmno |
    relay --port 8080 --upstream-url http://127.0.0.1:9/ --http-shutdown & sleep 4
    wget -q -O - --post-data '{}' http://127.0.0.1:8080/v1/responses
    wget -q -O - http://127.0.0.1:8080/shutdown; sleep 2) 2>&1
grep -o 'Bearer sk-of-no-use' /tmp/received
tests --nocapture 2>&1
echo "ended with $?"
poweroff -f
INIT
cat >"$root/bin/upstream" <<'UPSTREAM'
#!/bin/sh
while read -r line && [ "${#line}" -gt 1 ]; do echo "$line"; done >>/tmp/received
printf 'HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\nfrom beyond\n'
UPSTREAM
chmod +x "$root/init" "$root/bin/upstream"
(cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/initrd"

timeout 300 $qemu -M q35 -accel tcg -cpu max -smp 1 -m 512 -nographic -no-reboot -nic none \
    -kernel "$work"/packages/boot/vmlinuz-* -initrd "$work/initrd" \
    -append 'console=ttyS0 quiet panic=-1 secretmem.enable=1' </dev/null | tee "$work/log"
grep -q "key's pages closed except in use (protection key)" "$work/log" || fail "the start line"
grep -q '^from beyond' "$work/log" && grep -q '^Bearer sk-of-no-use' "$work/log" || fail "a request"
grep -q '^ended with 0' "$work/log" && ! grep -q '^skipped' "$work/log" || fail "the tests"
echo "pku: ok"
