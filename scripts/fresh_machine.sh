#!/usr/bin/env bash
# Proves that a clone works on a Debian that has nothing but Python, make and git.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: fresh_machine.sh [FOLDER] [-- COMMAND...]

Builds a minimal Debian 12 with debootstrap in FOLDER, clones the last commit of this repository into it
and runs COMMAND there, by default:  make demo && make test
A FOLDER that is named must be empty or absent, and is kept. Without one, a temporary folder is used and removed.

Needs root and debootstrap. The mirror, proxies, certificates and pip settings of this machine are carried over:
  APT      the Debian archives and the Acquire settings that apt uses here
  CA       /usr/local/share/ca-certificates, and the files that SSL_CERT_FILE, PIP_CERT and the like name
  ENV      PIP_*, *_proxy, *_CERT*, *_CA_BUNDLE; the index-url of pip's configuration
TEXT
}

readonly SUITE=bookworm
readonly PACKAGES=python3,make,git,ca-certificates
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly repository

main() {
    local folder='' command='make demo && make test'
    case ${1:-} in
        -h | --help) usage && exit 0 ;;
        --inside) shift && inside "$@" ;;
        -- | '') ;;
        *) folder=$1 && shift ;;
    esac
    if [ "${1:-}" = -- ]; then
        shift
        command=$*
    fi
    [ "$(id -u)" = 0 ] || fail "must run as root: sudo $0"
    command -v debootstrap >/dev/null || fail "needs debootstrap: apt-get install debootstrap"

    if [ -z "$folder" ]; then
        folder=$(mktemp -d /var/tmp/qworker-fresh.XXXXXX)
        # shellcheck disable=SC2064 # the folder of now
        trap "rm -rf --one-file-system '$folder'" EXIT
    fi
    mkdir -p "$folder"
    folder=$(cd "$folder" && pwd)
    [ -z "$(ls -A "$folder")" ] || fail "$folder is not empty"
    chmod 755 "$folder"

    build "$folder"
    git clone --quiet --no-local "$repository" "$folder/root/qworker"
    [ -z "$(git -C "$repository" status --porcelain)" ] ||
        echo "Note: what is not committed is not part of the clone." >&2

    # Mounts and processes live in namespaces that end with the command, however it ends: nothing
    # stays mounted or running, and the folder can be removed without touching this machine's /dev.
    unshare --mount --propagation private --pid --fork --kill-child \
        "${BASH_SOURCE[0]}" --inside "$folder" "$command"
}

# build FOLDER: a minimal Debian that reaches its archives the way this machine does.
build() {
    local mirror
    mirror=$(archives | awk -v suite="$SUITE" '$2 == suite { print $1; exit }')
    echo "Building Debian $SUITE in $1 ..."
    debootstrap --variant=minbase --include="$PACKAGES" "$SUITE" "$1" \
        "${mirror:-http://deb.debian.org/debian}" >"$1.log" 2>&1 || {
        tail -n 20 "$1.log" >&2
        fail "debootstrap failed"
    }
    rm -f "$1.log"

    if [ -n "$mirror" ]; then
        archives | sed 's/^/deb /' >"$1/etc/apt/sources.list"
    fi
    apt-config dump | grep -E '^Acquire::(http|https|ftp|Retries|Check|ForceIPv)' \
        >"$1/etc/apt/apt.conf.d/99host" || true
    cp -L /etc/resolv.conf /etc/hosts "$1/etc/"
    [ ! -e /etc/pip.conf ] || cp /etc/pip.conf "$1/etc/"
    if compgen -G '/usr/local/share/ca-certificates/*' >/dev/null; then
        cp -rL /usr/local/share/ca-certificates/. "$1/usr/local/share/ca-certificates/"
        chroot "$1" update-ca-certificates >/dev/null 2>&1
    fi
    local value
    while IFS='=' read -r _ value; do
        if [ -f "$value" ] && [ ! -e "$1$value" ]; then
            install -D -m 644 "$value" "$1$value"
        fi
    done < <(carried | grep -E '(CERT|CA_BUNDLE)')
}

# The archives of this machine that hold the suite, its updates and its security fixes.
archives() {
    # shellcheck disable=SC2016 # apt's own placeholders
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' \
        'Created-By: Packages' 'Origin: Debian' | grep -E " $SUITE(-updates|-security)? " | sort -u
}

# The environment that names certificates, proxies and package indexes, as NAME=value lines.
carried() {
    env | grep -E '^(PIP_[A-Z_]+|SSL_CERT_(FILE|DIR)|[A-Z_]+_CA_BUNDLE|(https?|ftp|all|no)_proxy|(HTTPS?|FTP|ALL|NO)_PROXY)=' || true
    local index
    if index=$(python3 -m pip config get global.index-url 2>/dev/null); then
        echo "PIP_INDEX_URL=$index"
    fi
}

# inside FOLDER COMMAND: runs in the namespaces; COMMAND sees the folder as its whole machine.
inside() {
    mount -t proc proc "$1/proc"
    mount --rbind /dev "$1/dev"
    mount -t tmpfs tmpfs "$1/dev/shm"
    mount -t tmpfs tmpfs "$1/tmp"
    mount -t tmpfs tmpfs "$1/run"
    local -a environment
    mapfile -t environment < <(carried)
    env -i "${environment[@]}" HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        chroot "$1" sh -c "cd /root/qworker && $2"
    exit
}

fail() {
    echo "fresh_machine.sh: $*" >&2
    exit 1
}

main "$@"
