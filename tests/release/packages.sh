#!/usr/bin/env bash
# The .deb in a Debian that boots its own systemd, and the .rpm in a folder of its own: installed, started,
# used, removed. Nothing is installed on this machine. Needs root, debootstrap, systemd-nspawn, rpm.
set -euo pipefail
cd "$(dirname "$0")/../.."
dist=${DIST:-$PWD/dist}
name=codex-responses-api-proxy
fail() { echo "FAILED: $*" >&2; exit 1; }
skip() { echo "skipped: $*"; exit 0; }
[ "$(id -u)" -eq 0 ] || skip "this is not root"
for command in debootstrap systemd-nspawn rpm; do
    command -v $command >/dev/null || skip "$command is missing"
done
work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT

# The Debian is kept, since it takes minutes to make.
base=${DEBIAN_ROOT:-$PWD/target/debian-bookworm}
if [ ! -e "$base/.complete" ]; then
    rm -rf --one-file-system "$base"
    debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,man-db bookworm "$base" \
        >"$work/debootstrap.log" 2>&1 || { tail -n 3 "$work/debootstrap.log"; skip "Debian's packages cannot be had"; }
    touch "$base/.complete"
fi

root=$work/debian
cp -a "$base" "$root"
cp "$dist/${name}_"*_amd64.deb "$root/srv/package.deb"
install -m 755 tests/release/machine/test "$root/srv/test"
# The units of the documentation's section on systemd: 1.service, 2.socket and 2.service, 3.service. Those
# for a key that changes are read by tests/units.sh.
mkdir "$root/srv/units"
awk -v folder="$root/srv/units" '/^## / { here = $0 == "## systemd" }
    here && /^```ini$/ { inside = 1; file = ""; next }
    /^```$/ { inside = 0 }
    inside && /^# .*\.socket$/ { file = folder "/" n + 1 ".socket" }
    inside && /^# .*\.service$/ { file = folder "/" ++n ".service" }
    inside { print > file }' docs/operating.md
[ "$(ls "$root/srv/units")" = "$(printf '%s\n' 1.service 2.service 2.socket 3.service)" ] || fail "the units of the documentation"
cat >"$root/etc/systemd/system/test.service" <<'UNIT'
[Unit]
After=dbus.socket
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
TimeoutStartSec=240
ExecStart=/srv/test
StandardOutput=file:/srv/log
StandardError=inherit
UNIT
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -s ../test.service "$root/etc/systemd/system/multi-user.target.wants/test.service"
# A mount namespace of our own: its /run and its cgroups are not this machine's. Without the filter of
# systemd-nspawn, which refuses memfd_secret(2): the unit's is what is tried here.
# shellcheck disable=SC2016  # for the shell in it
timeout 300 unshare --mount --propagation private bash -euc '
    mount -t tmpfs tmpfs /run
    mount -t tmpfs tmpfs /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    SYSTEMD_SECCOMP=0 exec systemd-nspawn --quiet --register=no --keep-unit --private-network --directory "$1" --boot \
        --console=pipe' - "$root" </dev/null >"$work/console" 2>&1 || true
cat "$root/srv/log" 2>/dev/null || { tail -n 40 "$work/console"; fail "the machine did not boot"; }
grep -q '^in the machine: ok$' "$root/srv/log" || fail "the .deb, see above"

# The .rpm, in the same Debian: rpm --root runs its scripts there.
root=$work/rpm
cp -a "$base" "$root"
rpm --root "$root" --nodeps --install "$dist/$name"-*.x86_64.rpm || fail "the .rpm cannot be installed"
[ "$(stat -c '%a %u' "$root/usr/bin/$name")" = '711 0' ] || fail "the program's mode, by rpm"
[ "$(stat -c '%a %u' "$root/etc/$name")" = '700 0' ] || fail "the mode of the key's folder, by rpm"
grep -q "^$name:" "$root/etc/passwd" || fail "there is no user, by rpm"
[ ! -L "$root/etc/systemd/system/multi-user.target.wants/$name.service" ] || fail "rpm enabled it"
rpm --root "$root" --nodeps --verify $name || fail "what rpm installed is not what it knows"
chroot "$root" /usr/bin/$name --version || fail "the program does not start, by rpm"
rpm --root "$root" --erase $name
[ ! -e "$root/usr/bin/$name" ] || fail "rpm left the program"
echo "packages: ok"
