#!/bin/sh
# A PostgreSQL server of its own in FOLDER, from Debian's packages (apt-get install postgresql), reached by a socket in there.
#
#   sh tests/postgres.sh start FOLDER     prints the URL
#   sh tests/postgres.sh stop FOLDER
#
# Ends with 77 where PostgreSQL is not installed. The server refuses to be root's: it is then that of the user postgres.
set -eu
folder=$2
tools=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)
[ -n "$tools" ] || exit 77
as() { if [ "$(id -u)" = 0 ]; then (cd / && runuser -u postgres -- "$@"); else "$@"; fi; }
case $1 in
start)
    mkdir -p "$folder"
    [ "$(id -u)" != 0 ] || chown postgres "$folder"
    as "$tools/initdb" -D "$folder/data" -U hjepa -A trust --no-sync >/dev/null
    as "$tools/pg_ctl" -D "$folder/data" -w -l "$folder/log" -o "-k '$folder' -c listen_addresses='' -c fsync=off" start >/dev/null
    echo "postgresql://hjepa@/postgres?host=$folder"
    ;;
stop)
    as "$tools/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null
    ;;
esac
