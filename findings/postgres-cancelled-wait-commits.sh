#!/usr/bin/env bash
# PostgreSQL 16.2 (pgserver 0.1.4)
#
# Behaviour: synchronous_standby_names is set and no standby is connected. statement_timeout does not bound the wait
#   for the standby: an insert with a limit of 0.5 s still waits after 3 s. A cancel request (Ctrl-C, a driver's
#   cancel()) ends the wait, and the statement then succeeds: the row is committed on this server alone, and the
#   client receives INSERT 0 1 with a warning.
# Seen:
#   a statement that sleeps, statement_timeout 0.5 s: canceling statement due to statement timeout
#   an insert, statement_timeout 0.5 s, cancelled after 3 s: INSERT 0 1
#   rows stored: 1
# Wrong guess: statement_timeout bounds a statement; a cancelled statement fails and leaves no row; INSERT 0 1 means
#   that the standby has the row.
#
# Exits with 1 if the behaviour changes.
set -euo pipefail
work=$(mktemp -d)
data=$work/data
as_user=()
if [ "$(id -u)" = 0 ]; then # PostgreSQL refuses to run as root.
  as_user=(setpriv --reuid=nobody --clear-groups)
  chown nobody "$work"
fi
cleanup() {
  if [ -s "$data/postmaster.pid" ]; then
    "${as_user[@]}" "$bin/pg_ctl" -D "$data" -m immediate stop >/dev/null || true
  fi
  rm -rf "$work"
}
trap cleanup EXIT
chmod 755 "$work"
cd "$work"

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-deps pgserver==0.1.4
bin=$(echo "$work"/venv/lib/python3*/site-packages/pgserver/pginstall/bin)

"${as_user[@]}" "$bin/initdb" -D "$data" -U postgres -A trust >/dev/null
cat >>"$data/postgresql.conf" <<CONF
listen_addresses = ''
unix_socket_directories = '$work'
synchronous_standby_names = 'ANY 1 (standby)'
CONF
"${as_user[@]}" "$bin/pg_ctl" -w -D "$data" -l "$work/log" start >/dev/null
sql() { "${as_user[@]}" "$bin/psql" -h "$work" -U postgres -At -c "$1" 2>"$work/errors"; }
PGOPTIONS='-c synchronous_commit=local' sql 'create table t (n int)' >/dev/null
export PGOPTIONS='-c statement_timeout=500'

sql 'select pg_sleep(30)' || true
sleeping=$(sed -n 's/^ERROR:  //p' "$work/errors")
echo "a statement that sleeps, statement_timeout 0.5 s: $sleeping"

# psql sends a cancel request on SIGINT. timeout does not end it by force before 30 s.
start=$SECONDS
inserted=$(timeout --preserve-status -s INT -k 30 3 "${as_user[@]}" "$bin/psql" -h "$work" -U postgres -At \
  -c 'insert into t values (1)' 2>"$work/warning") || true
waited=$((SECONDS - start))
echo "an insert, statement_timeout 0.5 s, cancelled after 3 s: $inserted"
rows=$(sql 'select count(*) from t')
echo "rows stored: $rows"

if [ "$sleeping" != 'canceling statement due to statement timeout' ] || [ "$inserted" != 'INSERT 0 1' ] ||
  [ "$rows" != 1 ] || [ "$waited" -lt 2 ] ||
  ! grep -q 'canceling wait for synchronous replication' "$work/warning"; then
  echo "the behaviour changed" >&2
  exit 1
fi
