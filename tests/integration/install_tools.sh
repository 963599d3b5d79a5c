#!/bin/sh
# Installs nginx and HAProxy for tests/integration/test_proxies.py and Prometheus for test_prometheus.py,
# where it may: as root, on Debian and its kin. Elsewhere it says so, and the tests are skipped. Silent
# where they are there already.
set -u
PATH="$PATH:/usr/sbin:/usr/local/sbin"

missing=
command -v nginx >/dev/null || missing="nginx-light"
command -v haproxy >/dev/null || missing="$missing haproxy"
command -v prometheus >/dev/null && command -v promtool >/dev/null || missing="$missing prometheus"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed, so their tests are skipped: $missing (here needs root and apt-get)"
    exit 0
fi

# The packages would start their services, which nobody wants here.
if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 - several packages
if ! said=$({ timeout 120 apt-get update && timeout 240 apt-get install --yes --no-install-recommends \
    $missing; } 2>&1 </dev/null); then
    echo "could not be installed, so their tests are skipped: $missing"
    echo "$said" | tail -n 3
fi
