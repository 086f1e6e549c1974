#!/bin/sh
# Tries the set-up on a bare Debian, in chroots: root from nothing, twice, and after damage; a user
# who may not install anything, and who goes on once it is there; a user with password-less sudo.
#
#     scripts/try-in-chroot.sh [SUITE] [TARGET]       (bookworm, build; or test, run)
#
# Needs root and debootstrap.  What is committed (HEAD) is tried.  Packages come from where this
# machine's apt and pip get theirs.  The chroots are kept for a look, below $CHROOTS (default
# /var/tmp/gazer-chroots): remove them when done.  Mounts are gone when this ends.
set -eu
suite=${1:-bookworm}
target=${2:-build}
top=${CHROOTS:-/var/tmp/gazer-chroots}/$suite

if [ -z "${GAZER_IN_NAMESPACE:-}" ]; then
    GAZER_IN_NAMESPACE=1 exec unshare --mount sh "$0" "$suite" "$target"
fi
cd "$(dirname "$0")/.."

mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1)
[ -n "$mirror" ] || { echo "no mirror in this machine's apt configuration" >&2; exit 1; }

mounts() {
    mount --rbind /dev "$1/dev"
    mount -t proc proc "$1/proc"
}

inside() { # inside USER COMMAND: with nothing in the environment but what pip needs
    as=0:0 home=/root
    [ "$1" = root ] || as=1000:1000 home=/home/user
    env -i HOME=$home PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        $(env | grep -E '^(PIP_CERT|PIP_INDEX_URL|SSL_CERT_FILE|https?_proxy)=[^ ]*$') \
        chroot --userspec="$as" "$root" sh -euc "cd; $2" </dev/null
}

base() { # Debian's smallest, with python3, make, git and a user
    root=$top/base
    [ ! -e "$root/done" ] || return 0
    rm -rf "$root"
    debootstrap --variant=minbase --include=ca-certificates "$suite" "$root" "$mirror"
    cp /etc/resolv.conf /etc/hosts "$root/etc/"
    apt-config dump | grep -E '^Acquire::(Check|http|https)[^ ]* "[^"]+"' \
        >"$root/etc/apt/apt.conf.d/80host" || true
    for file in /etc/pip.conf "${PIP_CERT:-}" "${SSL_CERT_FILE:-}"; do
        [ ! -f "$file" ] || install -D "$file" "$root$file"
    done
    mounts "$root"
    inside root 'export DEBIAN_FRONTEND=noninteractive; apt-get -qq update
        apt-get -qq install -y --no-install-recommends python3 make git >/dev/null 2>&1
        useradd -m user; apt-get clean; rm -rf /var/lib/apt/lists/*'
    umount -R "$root/dev" "$root/proc"
    touch "$root/done"
}

fresh() { # fresh NAME: a new copy of it
    root=$top/$1
    rm -rf "$root"
    cp -a "$top/base" "$root"
    mounts "$root"
    git bundle create -q "$root/gazer.bundle" HEAD
    inside root 'python3 --version; if command -v cc sudo; then exit 1; fi'
}

title() { printf '\n### %s\n' "$*"; }

expect() { # expect CODE USER COMMAND
    code=0
    inside "$2" "$3" || code=$?
    [ "$code" = "$1" ] || { echo "### FAILED: exit code $code, not $1" >&2; exit 1; }
}

at_once() { # at_once USER: nothing left to do, and quickly
    started=$(date +%s%N)
    expect 0 "$1" 'cd gazer && make build >/tmp/said 2>&1; cat /tmp/said; test ! -s /tmp/said'
    echo "a second time: $((($(date +%s%N) - started) / 1000000)) ms"
}

clone='git clone -q -c advice.detachedHead=false /gazer.bundle gazer; cd gazer'
base

title "root, from nothing"
fresh root
expect 0 root "$clone; make $target"
at_once root
title "root: .venv deleted; its Python deleted; a package lost; moved"
for damage in 'rm -rf .venv' 'rm .venv/bin/python3*' 'rm -rf .venv/lib/python3*/site-packages/dnslib'
do
    expect 0 root "cd gazer; $damage; make build"
    at_once root
done
expect 0 root 'mv gazer "a path"; cd "a path"; make build; cd ..; mv "a path" gazer; make -C gazer build'
if [ "$target" = test ]; then
    title "root: what continuous integration does"
    expect 0 root 'cd gazer; git clean -qfdx; CI=true bash .ci/run'
fi
title "root: pip install ."
expect 0 root 'python3 -m venv /tmp/v; /tmp/v/bin/pip install -q ./gazer; ls -l /tmp/v/bin/*gazer
    /tmp/v/bin/python -c "import gazer.text; print(gazer.text.__file__)"'

title "a user who may not install: the line to run, and exit 1 (which make makes 2)"
fresh user
expect 1 user "$clone; sh scripts/setup.sh build 2>/tmp/said"
expect 2 user "cd gazer; make $target"
title "root runs that line; the user goes on"
inside root 'grep apt-get /tmp/said | sed "s/sudo //g" >/tmp/line; sh -e /tmp/line >/dev/null 2>&1'
expect 0 user "cd gazer; make $target"
at_once user

title "a user with password-less sudo"
fresh sudo
inside root 'apt-get -qq update; apt-get -qq install -y sudo >/dev/null 2>&1
    echo "user ALL=(ALL) NOPASSWD: ALL" >/etc/sudoers.d/user'
expect 0 user "$clone; make $target"
at_once user
title "the same, with sudo make from nothing; then without sudo, after a change"
expect 0 user "cd gazer; make clean; sudo make $target; find . ! -user user | grep . && exit 9
    echo >>gazer/text.pyx; make build"
at_once user

title "all as it should be"
