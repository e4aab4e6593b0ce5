#!/bin/sh
# Makes what docker-compose.yml takes as secrets, where it is not there yet: passwords, and the brokers' users.
#   secrets.sh ERRAND_PROGRAM [FOLDER]
set -eu
umask 077
program=$1
folder=${2:-deploy/secrets}
mkdir -p "$folder"
for name in postgres_password grafana_password; do
    [ -s "$folder/$name" ] || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$folder/$name"
done
# 32 bytes in base64. What a master key has sealed only it opens: keep them beside the backups, not with them.
for name in notifier_master_key vault_master_key storage_link_key; do
    [ -s "$folder/$name" ] || head -c 32 /dev/urandom | base64 >"$folder/$name"
done
"$program" nats-config "$folder/nats" --runners exec --tenants "${TENANTS:-default}"
# Compose hands files on as they are, and the containers' user is not yours: they may be read by whoever gets into the
# folder, and that is its owner.
chmod 0700 "$folder"
chmod 0644 "$folder"/*_password "$folder"/*_key "$folder"/nats/*.creds "$folder"/nats/server/*
chmod 0755 "$folder/nats" "$folder/nats/server"
