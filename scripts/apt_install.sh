#!/bin/sh
# Installs Debian or Ubuntu packages without a question and without starting their services, or
# says which command would do it.
# usage: scripts/apt_install.sh PACKAGE...
set -eu

if ! command -v apt-get >/dev/null; then
    echo "Missing: $*. There is no apt-get here: please install them in your system's way." >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    if sudo -n true 2>/dev/null; then
        exec sudo -n "$0" "$@"
    fi
    echo "Missing: $*. Please install them:  sudo apt-get install --no-install-recommends $*" >&2
    exit 1
fi

log=$(mktemp)
policy=/usr/sbin/policy-rc.d
clean() {
    rm -f "$log"
    [ -z "${policy_is_ours:-}" ] || rm -f "$policy"
}
trap clean EXIT
trap 'exit 130' INT TERM

# Debian's hook for "may this service start now": the tests start servers of their own, and the
# default ports belong to whoever uses this machine. What is installed starts at the next boot.
if [ ! -e "$policy" ]; then
    policy_is_ours=yes
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

echo "Installing $* ..."
export DEBIAN_FRONTEND=noninteractive
# A freshly booted machine may be in the middle of its unattended upgrades: wait for the lock.
apt="apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3"
if ! { $apt update && $apt install --yes --no-remove --no-install-recommends "$@"; } >"$log" 2>&1; then
    tail -n 40 "$log" >&2
    echo "Could not install: $*. The command was: apt-get install --no-install-recommends $*" >&2
    exit 1
fi
