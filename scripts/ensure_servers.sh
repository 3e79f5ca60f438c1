#!/bin/sh
# Makes sure that the servers of the test suite are installed, none of them started. The tests
# start their own, on free ports (tests/servers/). Node.js runs the publisher in another language.
set -eu

here=$(dirname "$0")
missing=
brew=

# need "Debian package" "Homebrew formula" program-or-pattern...
need() {
    debian=$1 formula=$2
    shift 2
    for program in "$@"; do
        case $program in
            /*) [ ! -x "$program" ] || return 0 ;;
            *) ! command -v "$program" >/dev/null || return 0 ;;
        esac
    done
    missing="$missing $debian" brew="$brew $formula"
}

# Debian keeps RabbitMQ's own script, PostgreSQL's programs and MariaDB's server out of PATH.
need rabbitmq-server rabbitmq /usr/lib/rabbitmq/bin/rabbitmq-server rabbitmq-server
need redis-server redis redis-server
need postgresql postgresql /usr/lib/postgresql/*/bin/postgres postgres
need mariadb-server-core mariadb /usr/sbin/mariadbd mariadbd
# mariadb-install-db calls it, and no package of the server has it.
need mariadb-client-core mariadb my_print_defaults
need nodejs node node
need npm node npm
# Its network namespaces are the machines of several supervisors; elsewhere they share this one.
[ "$(uname)" = Darwin ] || need iproute2 none ip
# It gives a Redis a clock of its own.
[ "$(uname)" = Darwin ] || need libfaketime none /usr/lib/*/faketime
# Its systemd-analyze checks the unit of deploy/systemd; no test starts systemd itself.
[ "$(uname)" = Darwin ] || need systemd none systemd-analyze

[ -n "$missing" ] || exit 0
if [ "$(uname)" = Darwin ]; then
    echo "Missing servers for the tests. Please install them:  brew install$brew" >&2
    exit 1
fi
# shellcheck disable=SC2086 # a list of package names
exec "$here/apt_install.sh" $missing
