#!/bin/sh
# A PostgreSQL with a database of its own, and the probe as its client. Arguments are the probe's.
set -eu
programs=/usr/lib/postgresql/18/bin
[ -s /data/db/PG_VERSION ] ||
  "$programs/initdb" --pgdata=/data/db --username=postgres --auth=trust --encoding=UTF8 --locale=C --no-sync
"$programs/postgres" -D /data/db -c listen_addresses= -c unix_socket_directories=/tmp &
exec /probe sql --socket=/tmp/.s.PGSQL.5432 "$@"
