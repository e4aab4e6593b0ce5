#!/bin/sh
# Makes the images that docker-compose.yml is based on where they can neither be found nor pulled: from Debian's packages,
# under the same names. They stand in for the public ones in a test, and are not meant for anything else: the Postgres is
# Debian's version, the Python too.
#   base-images.sh FOLDER NATS_SERVER_PROGRAM
# Needs root, debootstrap and a docker that answers.
set -eu
folder=$1
nats_server=$2
cd "$(dirname "$0")/../.."
runtime=${RUNTIME_IMAGE:-debian:12.11-slim}
exec_image=${EXEC_IMAGE:-python:3.13.5-slim-bookworm}
nats=${NATS_IMAGE:-nats:2.15.1-alpine}
postgres=${POSTGRES_IMAGE:-postgres:17.5-bookworm}
suite=bookworm

say() { echo "base-images: $*" >&2; }

# Whether an image must be made here.
missing() {
    docker image inspect "$1" >/dev/null 2>&1 && return 1
    if [ "${PULL:-yes}" = yes ] && timeout 20 docker pull -q "$1" >/dev/null 2>&1; then
        say "$1 was pulled"
        return 1
    fi
    say "$1 cannot be pulled; made from Debian's packages"
}

# A root file system in $folder/base, as small as a slim image.
base() {
    [ -e "$folder/base.done" ] && return 0
    rm -rf "$folder/base"
    debootstrap --variant=minbase --include=ca-certificates "$suite" "$folder/base" >"$folder/debootstrap.log"
    slim "$folder/base"
    touch "$folder/base.done"
}

slim() {
    rm -rf "$1"/usr/share/doc/* "$1"/usr/share/man/* "$1"/usr/share/locale/* "$1"/usr/share/info/* \
        "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/var/log/*.log
}

# A copy of the base with more packages: layer NAME PACKAGES...
layer() {
    name=$1
    shift
    rm -rf "${folder:?}/$name"
    cp -a "$folder/base" "$folder/$name"
    if [ $# -gt 0 ]; then
        cp /etc/resolv.conf "$folder/$name/etc/resolv.conf"
        DEBIAN_FRONTEND=noninteractive chroot "$folder/$name" sh -c "apt-get -q update && \
            apt-get -q -y install --no-install-recommends $*" >"$folder/$name.log" 2>&1
        slim "$folder/$name"
    fi
}

# import NAME IMAGE CHANGES...
import() {
    name=$1
    image=$2
    shift 2
    tar -C "$folder/$name" -c . | docker import "$@" - "$image" >/dev/null
    rm -rf "${folder:?}/$name"
}

mkdir -p "$folder"
if missing "$runtime"; then
    base
    layer runtime
    import runtime "$runtime" --change 'CMD ["bash"]'
fi
if missing "$exec_image"; then
    base
    layer python python3-minimal python3
    import python "$exec_image" --change 'CMD ["python3"]'
fi
if missing "$nats"; then
    base
    layer nats busybox
    ln -s /bin/busybox "$folder/nats/usr/bin/wget"
    install -m 0755 "$nats_server" "$folder/nats/usr/local/bin/nats-server"
    import nats "$nats" --change 'ENTRYPOINT ["nats-server"]'
fi
if missing "$postgres"; then
    base
    layer postgres postgresql
    install -m 0755 deploy/test/postgres-entrypoint.sh "$folder/postgres/usr/local/bin/docker-entrypoint.sh"
    # The programs under the names that the public image gives them.
    for program in "$folder"/postgres/usr/lib/postgresql/*/bin/*; do
        ln -sf "${program#"$folder/postgres"}" "$folder/postgres/usr/local/bin/"
    done
    import postgres "$postgres" --change 'ENTRYPOINT ["docker-entrypoint.sh"]' --change 'CMD ["postgres"]' \
        --change 'ENV PGDATA=/var/lib/postgresql/data'
fi
